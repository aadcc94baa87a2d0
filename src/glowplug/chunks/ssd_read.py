"""Reading from the SSD tier: what is not right where it lies is never given out, and is forgotten at once."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from glowplug.chunks import ssd_errors, ssd_rows
from glowplug.chunks.chunk import Chunk, ChunkInvalid
from glowplug.chunks.ssd_index import WRITE_TIMEOUT_S, Index
from glowplug.chunks.ssd_packs import Location, PackFolder, location_of, pack_of
from glowplug.chunks.ssd_prune import Pruner
from glowplug.chunks.ssd_reports import Counts
from glowplug.chunks.ssd_rows import Body
from glowplug.chunks.ssd_write import ChunkWriter
from glowplug.types.errors import GlowplugError

_LOG = logging.getLogger(__name__)

_ATTEMPTS = 3  # a chunk may be removed and put again elsewhere while it is read
_GONE = frozenset({errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODATA, errno.EUCLEAN})


class ChunkReader:
    """Finds chunks, committed or not, and checks them. Safe to use from many threads."""

    def __init__(
        self,
        root: Path,
        packs: PackFolder,
        index: Index,
        writer: ChunkWriter,
        pruner: Pruner,
        counts: Counts,
        tier: str,
    ) -> None:
        self._root = root
        self._packs = packs
        self._index = index
        self._writer = writer
        self._pruner = pruner
        self._counts = counts
        self._tier = tier

    def find(self, chunk_id: bytes) -> Body | None:
        """Where a chunk lies."""
        return self._writer.find(chunk_id) or self._index.read(partial(ssd_rows.find, chunk_id=chunk_id))

    def find_all(self, chunks: Sequence[Chunk]) -> dict[bytes, Body]:
        """Where those of these lie that are here, by id."""
        pending = self._writer.find_all(chunks)
        ids = [chunk.id for chunk in chunks if chunk.id not in pending]
        return pending | self._index.read(partial(ssd_rows.find_all, ids=ids)) if ids else pending

    def locate_all(self, chunks: Sequence[Chunk]) -> list[Location | None]:
        """Where these lie; None for those that are not here."""
        return locations_in(self.find_all(chunks), chunks)

    def get(self, chunk: Chunk, timeout_s: float) -> bytes | None:
        """The chunk's bytes, or None if they are not here, or not any more."""
        for _ in range(_ATTEMPTS):
            body = self.find(chunk.id)
            if body is None:
                return None
            data = self.right_bytes(chunk, body)
            if data is not None:
                return data
            if self.drop(body, timeout_s):
                return None
        return None

    def read_at(self, location: Location, size_bytes: int) -> bytes:
        """What lies there, unchecked; short if the pack ends, empty if it is gone. Raises Unavailable."""
        try:
            return self._packs.read(location, size_bytes)
        except OSError as error:
            if error.errno in _GONE:
                return b""
            raise ssd_errors.from_os(error, self._root) from error

    def right_bytes(self, chunk: Chunk, body: Body) -> bytes | None:
        """What lies there, if it is the chunk."""
        if not body.is_of(chunk):
            return None
        data = self.read_at(location_of(body.place), body.size_bytes)
        try:
            chunk.verify(data, self._tier)
        except ChunkInvalid:
            return None
        return data

    def is_right(self, body: Body) -> bool:
        """Whether a chunk is right where it lies, or lies elsewhere by now; one that is not is forgotten."""
        chunk = Chunk(body.id, body.size_bytes)
        return self.right_bytes(chunk, body) is not None or not self.drop(body, WRITE_TIMEOUT_S)

    def drop(self, body: Body, timeout_s: float) -> bool:
        """Forget a chunk that is not right where it lies; False if by now it lies elsewhere."""
        try:
            if self._writer.find(body.id) is not None:
                self._writer.commit()
            if not self._pruner.forget_corrupt(body, timeout_s):
                return False
            if not self._packs.path_of(pack_of(body.place)).exists():
                self._counts.add("corrupt_chunks", self._pruner.forget_lost_packs())
        except GlowplugError as error:
            _LOG.warning("a corrupt chunk stays known, and is not used: %s", error.message)
        self._counts.add("corrupt_chunks")
        _LOG.warning("chunk %s was not right in %s, it is fetched again", body.id.hex()[:16], self._root)
        return True


def locations_in(found: dict[bytes, Body], chunks: Sequence[Chunk]) -> list[Location | None]:
    """Where these lie according to what was found."""
    bodies = (found.get(chunk.id) for chunk in chunks)
    return [
        location_of(body.place) if body is not None and body.is_of(chunk) else None
        for chunk, body in zip(chunks, bodies, strict=True)
    ]
