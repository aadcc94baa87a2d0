"""One blob as the daemon serves it: its chunks, what is known of where they lie here, and what was read.

A blob's bytes are fixed by the image's digest, and are checked against it when the blob is opened: the
manifest must hash to the digest, the chunk table to what the manifest says. All that is kept per chunk is in
arrays, about 20 bytes each, and can be forgotten at any moment: it is found again from the folder.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import blake3

from glowplug.chunks.fetch import RemoteBlob
from glowplug.chunks.placement import Placement
from glowplug.chunks.ssd_packs import Location, place_of
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy.read_ahead import ReadAhead
from glowplug.types.errors import InvalidInput, NotFound
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")
NOWHERE = -1
VERIFIED = 1
_PACK_SHIFT = 33
_BLOCK_MASK = (1 << _PACK_SHIFT) - 1
_MAX_MANIFEST_BYTES = 1 << 20


@dataclass
class ReadCounts:
    """What was read of a blob, and from where. A chunk counts at its first use; bytes at each."""

    reads: int = 0
    read_bytes: int = 0
    ssd_bytes: int = 0  # of these, from packs on this machine
    waited_for_disk: int = 0
    waited_for_fetch: int = 0
    ssd_chunks: int = 0  # were here when they were first used
    fetched_chunks: int = 0  # were not
    corrupt_chunks: int = 0
    errors: int = 0


@dataclass(eq=False)
class Blob:
    """An attached blob. Its arrays are changed by any thread; each change is one store, whole by itself."""

    digest: str
    node: int
    table: ChunkTable
    remote: RemoteBlob
    folder: Path
    starts: array[int] = field(init=False)  # chunks' first blocks; then the end
    places: array[int] = field(init=False)  # see place_word; NOWHERE: not looked up, or not here
    touched: bytearray = field(init=False)  # 0: not read so far; by chunk, and never replaced
    answered: array[int] = field(init=False)  # by the pump: reads, and bytes in them
    _order: array[int] = field(init=False)
    ahead: ReadAhead = field(init=False)
    _counts: ReadCounts = field(init=False, default_factory=ReadCounts)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        chunks = len(self.table)
        self.starts = self.table.starts
        self.places = array("q", [NOWHERE]) * chunks
        self.touched = bytearray(chunks)
        self.answered = array("Q", (0, 0))
        self._order = array("I")
        self.ahead = ReadAhead(self.table)
        self.remote.kept = self._kept

    @property
    def size_bytes(self) -> int:
        """The length of the blob's file."""
        return self.table.blob_bytes

    def verified(self, index: int, place: int) -> None:
        """The chunk's bytes at ``place`` were hashed and are right."""
        self.places[index] = place | VERIFIED

    def misplace(self, index: int, place: int) -> None:
        """The chunk is not at ``place`` (any more)."""
        if self.places[index] | VERIFIED == place | VERIFIED:
            self.places[index] = NOWHERE
            self.ahead.forget((index,))

    def _kept(self, indices: Sequence[int], kept: Sequence[int | None]) -> None:
        """The fetcher hashed these chunks and wrote them there: their bytes count as verified."""
        for index, place in zip(indices, kept, strict=True):
            if place is not None:
                self.places[index] = place << 1 | VERIFIED  # as place_word

    def touch(self, first: int, last: int) -> list[int]:
        """Note a read of these chunks; returns those that were not read before, in order."""
        if self.touched.find(0, first, last + 1) < 0:
            return []
        with self._lock:
            new = [index for index in range(first, last + 1) if not self.touched[index]]
            self.touched[first : last + 1] = b"\1" * (last + 1 - first)
            self._order.extend(new)
        return new

    def trace(self) -> array[int]:
        """The chunks in the order of their first use."""
        with self._lock:
            return self._order[:]

    def reset_trace(self) -> None:
        """Begin the trace anew."""
        with self._lock:
            self.touched[:] = bytes(len(self.table))
            self._order = array("I")

    def count(self, **added: int) -> None:
        """Add to the counts."""
        counts = self._counts
        with self._lock:
            for name, number in added.items():
                setattr(counts, name, getattr(counts, name) + number)

    def count_read(self, size_bytes: int, ssd_bytes: int, ssd_chunks: int, fetched_chunks: int) -> None:
        """Count a good answer, and the chunks it was the first to use or had to wait for."""
        with self._lock:
            self._counts.reads += 1
            self._counts.read_bytes += size_bytes
            self._counts.ssd_bytes += ssd_bytes
            self._counts.ssd_chunks += ssd_chunks
            self._counts.fetched_chunks += fetched_chunks

    def counts(self) -> ReadCounts:
        """One reading of the counts."""
        pumped_reads, pumped_bytes = self.answered
        with self._lock:
            counts = self._counts
            return replace(
                counts,
                reads=counts.reads + pumped_reads,
                read_bytes=counts.read_bytes + pumped_bytes,
                ssd_bytes=counts.ssd_bytes + pumped_bytes,
            )

    def refresh(self) -> None:
        """Look again where the chunks lie elsewhere. Raises InvalidInput."""
        self.remote.placement = _open_placement(self.folder)


def place_word(location: Location) -> int:
    """Where a chunk lies, as one number, so that no thread ever sees half of a change.

    Bit 0 says that its bytes there were hashed (:data:`VERIFIED`), the rest is the block, then the pack.
    Chunks that follow each other in a pack differ by their blocks, as in the blob.
    """
    return place_of(*location) << 1


def pack_and_block(place: int) -> tuple[int, int]:
    """What :func:`place_word` was made from; the block is in units of ALIGN_BYTES."""
    return place >> _PACK_SHIFT, (place & _BLOCK_MASK) >> 1


def node_of(digest: str) -> int:
    """The node number of a blob: a pure function of its digest, so it outlives every server."""
    number = int(digest[:16], 16)
    return number if number > 1 else number + 2  # 0 and 1 (the root) are taken


def find_folder(state: StateDir, digest: str) -> Path | None:
    """The folder of a blob's table: its image index, or what a mount keeps of one that was removed."""
    for folder in (state.indexes / digest, state.lazy / "held" / digest):
        if (folder / "chunks.bin").is_file():
            return folder
    return None


def digests(state: StateDir) -> set[str]:
    """All blobs that could be served."""
    found: set[str] = set()
    for folder in (state.indexes, state.lazy / "held"):
        try:
            found.update(path.name for path in folder.iterdir() if DIGEST.fullmatch(path.name))
        except FileNotFoundError:
            continue
    return found


def open_blob(state: StateDir, digest: str) -> Blob:
    """Open and check it. Raises NotFound, InvalidInput for a folder that is not that image's, or OSError."""
    folder = find_folder(state, digest) if DIGEST.fullmatch(digest) else None
    if folder is None:
        raise NotFound(
            f"There is no image {digest[:16]} here.",
            remedy="`glowplug image ls` shows what there is; `glowplug image pull` fetches one.",
            digest=digest,
            errno=errno.ENOENT,
        )
    path = folder / "chunks.bin"
    table = ChunkTable.open(path)
    if folder.parent == state.indexes or (folder / "manifest.json").exists():
        _check(folder, digest, path)
    try:
        placement = _open_placement(folder)
    except InvalidInput as problem:  # what is here can be served all the same
        _log.warning("image %s can be read from this machine only: %s", digest[:16], problem)
        placement = None
    return Blob(digest, node_of(digest), table, RemoteBlob(table, placement), folder)


def _open_placement(folder: Path) -> Placement | None:
    try:
        return Placement.open(folder / "placement.bin")
    except FileNotFoundError:
        return None


def _check(folder: Path, digest: str, table: Path) -> None:
    with (folder / "manifest.json").open("rb") as file:
        manifest = file.read(_MAX_MANIFEST_BYTES + 1)
    if blake3.blake3(manifest).hexdigest() != digest:
        raise _damaged(digest, "its manifest is of another image")
    try:
        expected = json.loads(manifest)["chunks"]["blake3"]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise _damaged(digest, "its manifest names no chunk table") from problem
    if blake3.blake3().update_mmap(table).hexdigest() != expected:
        raise _damaged(digest, "its chunk table is not the one its manifest names")


def _damaged(digest: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"The index of image {digest[:16]} is damaged: {why}.",
        remedy="Remove the image and pull or import it again.",
        digest=digest,
    )
