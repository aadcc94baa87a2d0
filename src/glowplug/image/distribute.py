"""Images between machines: a push makes one known to a region, a pull fetches what is needed to start it.

In the region an image is its content in packs and, under ``images/<digest>/``, its small files:
``manifest.json`` (written last: an image without one is not there), ``index.erofs.zst``, ``chunks.bin.zst``,
and what may be replaced later, ``placement.bin.zst`` and ``traces/``. A name comes last of all, so what it
stands for is always whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from glowplug.chunks.chunk import ChunkInvalid, ChunkMissing
from glowplug.chunks.compression import compress
from glowplug.chunks.object_keys import PLACEMENT_NAME
from glowplug.chunks.objects import Objects, WriteObjects
from glowplug.chunks.placement import Placement
from glowplug.chunks.region import Region
from glowplug.chunks.region_leases import Lease
from glowplug.chunks.store import Store
from glowplug.chunks.table import ChunkTable
from glowplug.image.download import (
    CHUNKS_NAME,
    IMPORTS_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    REQUEST_TIMEOUT_S,
    Download,
    image_key,
    replace_file,
)
from glowplug.image.imports.analyse import analyse
from glowplug.image.imports.graph import ImportGraph
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.index.image_name import check_name, is_digest, is_digest_prefix
from glowplug.image.job import Job
from glowplug.image.lazy import trace
from glowplug.image.region_refs import MAX_TRACES, TRACE_KEY, Ref, ref_key, refs
from glowplug.image.region_trees import KIND_LABEL
from glowplug.types.errors import DeadlineExceeded, InvalidInput, NotFound, Unavailable

__all__ = ["pull", "push", "refs", "remove"]

_log = logging.getLogger(__name__)

READ_TIMEOUT_S = 30.0  # of one chunk, from this machine mostly
ANALYSIS_S = 300.0  # of an image's programs: it is advice, and others wait for the push to end


def push(
    folder: IndexFolder,
    name: str,
    region: Region,
    source: Store,
    job: Job,
    is_compressing: bool = False,
) -> dict[str, Any]:
    """Bring an image there under this name: ``{"digest", "sent_bytes", "skipped_bytes", "packs"}``.

    A name that reads as a digest gives it none. Content comes from ``source``. May be repeated at any time;
    until it is done, the name stands for what it stood for before.
    """
    if not is_digest_prefix(name):
        check_name(name)
    table = folder.table()
    with region.pushing() as lease:
        pushed = region.push_chunks(
            table,
            source,
            lease,
            known=_known_placement(folder, region),
            is_compressing=is_compressing,
            progress=lambda done, total: job.say(
                f"pushing {done / 1e6:,.0f} of {total / 1e6:,.0f} MB", done / total if total else 1.0
            ),
            check=lambda: job.check("pushing"),
        )
        placement = bytes(memoryview(pushed.placement.data))
        is_image = KIND_LABEL not in folder.manifest.config.labels
        imports = _import_graph(folder, table, source, job, lease) if is_image else None
        _publish(folder, name, region.objects, placement, imports, job, lease)
    replace_file(folder.placement_path, placement)
    return {
        "digest": folder.digest,
        "sent_bytes": pushed.sent_bytes,
        "skipped_bytes": pushed.skipped_bytes,
        "packs": pushed.packs,
    }


def pull(image: str, source: Region | Objects, catalog: Catalog, job: Job) -> dict[str, Any]:
    """Fetch an image's small files by name or digest, unless they are here: ``{"digest", "bytes"}``.

    Raises NotFound, InvalidInput for anything that is not what it should be, and what ``source`` raises.
    """
    download = Download(source.objects if isinstance(source, Region) else source, job)
    ref = download.resolve(image)
    job.say(f"fetching the index of {ref.digest[:16]}", None)
    try:
        folder = catalog.get(ref.digest)
    except (NotFound, InvalidInput):
        folder = download.index_into(catalog, ref.digest)
    table = folder.table()
    download.placement_into(folder, table)
    if KIND_LABEL not in folder.manifest.config.labels:
        download.imports_into(folder, table)
    for key in ref.traces:
        download.trace_into(folder, key, table)
    if not is_digest_prefix(image):
        catalog.name(image, ref.digest)
    return {"digest": ref.digest, "bytes": download.got_bytes}


def remove(image: str, region: Region, job: Job) -> None:
    """Forget a name in the region, and the image once no name stands for it; its packs go with the garbage.

    Raises NotFound, or Conflict while somebody pushes.
    """
    objects = region.objects
    with region.collecting() as lease:
        digest = Download(objects, job).resolve(image).digest
        names = [name for name, named in refs(objects).items() if named == digest]
        if is_digest(image) or names == [image]:
            objects.delete([ref_key(name) for name in names])
            lease.renew()
            # The manifest first: an image without one is not there.
            objects.delete([image_key(digest, MANIFEST_NAME)])
            objects.delete([info.key for info in objects.list(image_key(digest, ""))])
        else:
            objects.delete([ref_key(image)])


def _publish(
    folder: IndexFolder,
    name: str,
    objects: WriteObjects,
    placement: bytes,
    imports: ImportGraph | None,
    job: Job,
    lease: Lease,
) -> None:
    job.say("pushing the index", 1.0)
    traces = dict(_sound_traces(folder))
    files = {
        PLACEMENT_NAME: compress(placement),
        **({IMPORTS_NAME: compress(imports.encode())} if imports is not None else {}),
        **{f"traces/{key}.json": data for key, data in traces.items()},
        INDEX_NAME: compress(folder.index_path.read_bytes()),
        CHUNKS_NAME: compress(folder.chunks_path.read_bytes()),
        MANIFEST_NAME: folder.manifest.canonical(),
    }
    for file, data in files.items():
        job.check("pushing the index")
        lease.renew()
        objects.write(image_key(folder.digest, file), data, REQUEST_TIMEOUT_S)
    if not is_digest_prefix(name):
        lease.renew()
        objects.write(ref_key(name), Ref(folder.digest, tuple(traces)).encode(), REQUEST_TIMEOUT_S)


def _import_graph(
    folder: IndexFolder, table: ChunkTable, source: Store, job: Job, lease: Lease
) -> ImportGraph | None:
    """What programs of the image will read: made at its first push, and kept beside its index.

    None if it has no programs that can be told something of, or if it cannot be made: it is advice.
    """
    try:
        return ImportGraph.parse(folder.imports_path.read_bytes(), table)
    except FileNotFoundError:
        pass
    except InvalidInput as problem:
        _log.warning("%s is made anew: %s", folder.imports_path, problem.message)
    stage = "looking at what its programs load"
    job.say(stage, 1.0)
    until_s = job.clock.monotonic() + ANALYSIS_S

    def check() -> None:
        job.check(stage)
        lease.renew()
        if job.clock.monotonic() > until_s:
            raise InvalidInput(
                f"This takes more than {ANALYSIS_S:g} s: {stage}.", remedy="The image is pushed without."
            )

    try:
        made = analyse(folder.tree(), table, lambda chunk: source.get(chunk, READ_TIMEOUT_S), check)
    except (ChunkInvalid, ChunkMissing, DeadlineExceeded, InvalidInput, Unavailable) as problem:
        job.check(stage)  # cancelled, or over: no matter of the graph
        _log.warning("image %s has no import graph: %s", folder.digest[:16], problem.message)
        return None
    if not made.is_useful:
        return None
    replace_file(folder.imports_path, made.encode())
    return made


def _sound_traces(folder: IndexFolder) -> Iterator[tuple[str, bytes]]:
    table = folder.table()
    paths = sorted(folder.traces_path.glob("*.json")) if folder.traces_path.is_dir() else []
    for path in paths[:MAX_TRACES]:
        if TRACE_KEY.fullmatch(path.stem) and trace.load(folder.path, path.stem, table) is not None:
            yield path.stem, path.read_bytes()


def _known_placement(folder: IndexFolder, region: Region) -> Placement | None:
    """The one in the region, else the one here: nodes that hold either go on finding their packs."""
    key = image_key(folder.digest, PLACEMENT_NAME)
    try:
        return region.placement(key, max_chunks=len(folder.table()))
    except NotFound:
        pass
    except InvalidInput as problem:
        _log.warning("%s is replaced: %s", key, problem.message)
    try:
        return Placement.open(folder.placement_path)
    except (OSError, InvalidInput):
        return None
