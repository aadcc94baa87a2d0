"""From an origin to an image of this machine: content to the store, index to the catalog, in that order.

The catalog gets an index only when everything that it names is in the store and on disk, so an import that
fails, is killed or runs out of room leaves some chunks that pruning takes, and nothing that looks like an
image. Two builds of one tree give one digest.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import blake3

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.store import WriteStore
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.manifest import FileDigest, ImageManifest
from glowplug.image.job import Job
from glowplug.image.origin.clamp import clamp_mtimes
from glowplug.image.origin.port import Origin
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.errors import ResourceExhausted

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class BuildResult:
    """An image that is ready, and what it took. ``new_bytes`` is content that the store did not have."""

    digest: str
    entries: int
    content_bytes: int
    new_bytes: int
    seconds: float


def build_image(
    origin: Origin,
    store: WriteStore,
    catalog: Catalog,
    job: Job,
    *,
    order: Sequence[Chunk] | None = None,
    clamp_to_s: int | None = None,
    name: str | None = None,
) -> BuildResult:
    """Make an image of what ``origin`` gives and, if told to, name it.

    ``order`` is which chunks lie first, ``clamp_to_s`` the newest time (Unix) that a file may have. Raises
    what the origin raises; ResourceExhausted when disk or store are too small.
    """
    started_s = job.clock.monotonic()
    with _full_disk_in_words(origin), ChunkSink(store, check=partial(job.check, "reading files")) as sink:
        tree, config = origin.read(sink, job)
        if clamp_to_s is not None:
            clamp_mtimes(tree, clamp_to_s)
        job.check("writing the index")
        job.say("writing the index")
        index, chunks = write_index(tree, order)
        table = ChunkTable(chunks)
        manifest = ImageManifest(
            index=_digest_of(index),
            chunks=_digest_of(chunks),
            entries=sum(1 for _ in tree.walk()),
            content_bytes=table.content_bytes,
            config=config,
        )
        store.flush()
        _require_all(table, store)
        job.check("writing the index")
        catalog.add(manifest, index, chunks)
        if name is not None:
            catalog.name(name, manifest.image_digest)
    return BuildResult(
        digest=manifest.image_digest,
        entries=manifest.entries,
        content_bytes=manifest.content_bytes,
        new_bytes=sink.new_bytes,
        seconds=job.clock.monotonic() - started_s,
    )


def _digest_of(data: bytes) -> FileDigest:
    return FileDigest(size_bytes=len(data), blake3=blake3.blake3(data).hexdigest())


def _require_all(table: ChunkTable, store: WriteStore) -> None:
    """A store with a budget may have dropped the first chunks of an image by the time the last ones came."""
    lost = store.missing(table)
    if lost:
        raise ResourceExhausted(
            f"The {store.tier} store does not hold this image: {len(lost)} of its {len(table)} chunks were "
            "dropped again while it was made.",
            remedy="Give the store a larger budget, or make room with `glowplug image gc`.",
            missing_chunks=len(lost),
            content_bytes=table.content_bytes,
        )


@contextmanager
def _full_disk_in_words(origin: Origin) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceExhausted(
            f"The disk is full: making an image of {origin.describe()} was given up.",
            remedy="Make room (`glowplug image gc`) and try again; what was read already is not read again.",
        ) from error
