"""Reading a range of a blob from packs on this machine: few system calls, and nothing unverified.

A chunk's bytes are hashed the first time they are read here. Later reads trust the place, with one
exception: a place may have been given up by a prune since, and then it is a hole, which reads as zeros. So a
piece whose last page is all zeros is hashed again before it is believed. (The last page is enough: a hole is
punched over whole chunks, and whatever of a chunk a read copies after that moment is zeros up to its end.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from typing_extensions import Buffer

from glowplug.chunks.chunk import ALIGN_BYTES, Chunk, ChunkInvalid, aligned
from glowplug.chunks.ssd_packs import Location
from glowplug.image.lazy.blob import VERIFIED, Blob, pack_and_block
from glowplug.image.lazy.fuse_session import Scratch
from glowplug.image.lazy.page_cache import is_cached
from glowplug.types.errors import Unavailable

_ZEROS = bytes(ALIGN_BYTES)
_NOT_NOW = (errno.EAGAIN, errno.EOPNOTSUPP)  # not in page cache; a filesystem that cannot tell


class LocalChunks(Protocol):
    """What a read needs of the SSD tier. Safe to use from many threads."""

    def locate_all(self, chunks: Sequence[Chunk]) -> list[Location | None]:
        """Where each chunk lies."""
        ...

    def open_pack(self, pack: int, *, past_cache: bool = False) -> int:
        """A descriptor that stays open as long as the returned object is held. Raises Unavailable.

        ``past_cache``: reads of whole blocks to aligned memory need not fill the page cache.
        """
        ...

    def forget_corrupt(self, chunk: Chunk) -> bool:
        """Check a chunk that was read wrong, and remove it if it is; whether it was removed."""
        ...

    def touch(self, chunk_ids: Sequence[bytes]) -> None:
        """These were used."""
        ...


class WouldBlock(Exception):
    """It needs the disk: read again where waiting is allowed."""


class Piece(NamedTuple):
    """The part of one chunk that a read wants. The others but ``place`` are bytes of the blob."""

    chunk: int  # its index
    start: int
    end: int
    content_end: int  # of the chunk: what lies behind it, up to ``end``, is padding
    place: int


STREAM_BYTES = 256 << 10
"""Whoever wants this much of the disk at once reads a long file in order. It is read past the page cache:
the image has one of its own, where it is kept."""

READ_AHEAD_BYTES = 8 << 20


class LocalReader:
    """Reads of chunks that were placed. Safe to use from many threads, each with its own scratch."""

    def __init__(self, chunks: LocalChunks) -> None:
        self._chunks = chunks

    def read(
        self, blob: Blob, pieces: list[Piece], start: int, scratch: Scratch, *, may_block: bool
    ) -> list[Piece]:
        """Put each piece into ``scratch.answer``, where byte ``start`` of the blob is the first.

        Returns those that are not at their place. Raises WouldBlock unless ``may_block``, and OSError.
        """
        reading = _Reading(self._chunks, blob, start, scratch, may_block)
        at = 0
        while at < len(pieces):
            behind = reading.run_end(pieces, at)
            reading.run(pieces[at:behind])
            at = behind
        return reading.misread


class _Reading:
    """One read under way."""

    __slots__ = ("_may_block", "_scratch", "_start", "answer", "blob", "chunks", "misread")

    def __init__(
        self, chunks: LocalChunks, blob: Blob, start: int, scratch: Scratch, may_block: bool
    ) -> None:
        self.chunks = chunks
        self.blob = blob
        self.answer = scratch.answer
        self.misread: list[Piece] = []
        self._start = start
        self._scratch = scratch
        self._may_block = may_block

    def run_end(self, pieces: list[Piece], at: int) -> int:
        """The end of the pieces from ``at`` on that lie in one pack as they lie in the blob."""
        if not self._can_be_read_in_place(pieces[at]):
            return at + 1
        shift = self._shift(pieces[at])
        behind = at + 1
        while (
            behind < len(pieces)
            and self._shift(pieces[behind]) == shift
            and self._can_be_read_in_place(pieces[behind])
        ):
            behind += 1
        return behind

    def run(self, run: list[Piece]) -> None:
        """Read these pieces, with one system call if all is well."""
        first = run[0]
        pack, block = pack_and_block(first.place)
        shift = (block - self.blob.starts[first.chunk]) * ALIGN_BYTES
        try:
            file = self.chunks.open_pack(pack)  # stays open as long as we hold this very object
            if not self._can_be_read_in_place(first):
                self._read_chunk(file, first, shift)
                return
            into = self.answer[first.start - self._start : run[-1].end - self._start]
            offset = first.start + shift
            if self._is_stream(first, into) and not is_cached(file, offset, len(into)):
                if not self._may_block:
                    raise WouldBlock
                got = _read_past_cache(self.chunks, pack, offset // ALIGN_BYTES, into)
            else:
                got = self._read_at(file, into, offset)
            read_end = first.start + got
        except (Unavailable, OSError) as problem:
            _raise_unless_lost(problem)
            self.misread.extend(run)
            return
        for piece in run:
            if not self._accept(piece, read_end):
                self._read_again(file, piece, shift)

    def _read_again(self, file: int, piece: Piece, shift: int) -> None:
        try:
            self._read_chunk(file, piece, shift)
        except OSError as problem:
            _raise_unless_lost(problem)
            self.misread.append(piece)

    def _accept(self, piece: Piece, read_end: int) -> bool:
        """Whether what was read to its place in the answer is the chunk's, for sure; pads it if so."""
        index, start, end, content_end, place = piece
        wanted_end = min(end, content_end)
        if read_end < wanted_end:
            return False
        if not place & VERIFIED:
            content = self.answer[start - self._start : content_end - self._start]
            if not _is_chunk(self.blob, index, content):
                return False
            self.blob.verified(index, place)
        elif wanted_end > start:
            page = max(start, (wanted_end - 1) // ALIGN_BYTES * ALIGN_BYTES)
            last_page = bytes(self.answer[page - self._start : wanted_end - self._start])
            if last_page == _ZEROS[: len(last_page)]:
                return False
        if end > content_end:
            padding = max(content_end, start)
            self.answer[padding - self._start : end - self._start] = _ZEROS[: end - padding]
        return True

    def _read_chunk(self, file: int, piece: Piece, shift: int) -> None:
        """Read and hash all of the chunk that the piece is of."""
        index, start, end, content_end, place = piece
        chunk_start = self.blob.starts[index] * ALIGN_BYTES
        size_bytes = content_end - chunk_start
        whole = self._scratch.chunk[: aligned(size_bytes)]
        if self._may_block and size_bytes >= STREAM_BYTES:
            # Somebody reads a file piece by piece, from page cache if it is there. The kernel does not see
            # that by itself: reads that must not wait do not count for its own read-ahead.
            os.posix_fadvise(file, chunk_start + shift, size_bytes + READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
        got = self._read_at(file, whole[:size_bytes], chunk_start + shift)
        if got < size_bytes or not _is_chunk(self.blob, index, whole[:size_bytes]):
            self.misread.append(piece)
            return
        self.blob.verified(index, place)
        whole[size_bytes:] = _ZEROS[: len(whole) - size_bytes]
        into = self.answer[start - self._start : end - self._start]
        into[:] = whole[start - chunk_start : end - chunk_start]

    def _is_stream(self, first: Piece, into: memoryview) -> bool:
        """Worth reading past the page cache, and aligned as that must be (scratch memory begins aligned)."""
        is_aligned = first.start % ALIGN_BYTES == self._start % ALIGN_BYTES == len(into) % ALIGN_BYTES == 0
        return is_aligned and len(into) >= STREAM_BYTES

    def _can_be_read_in_place(self, piece: Piece) -> bool:
        """It is of a verified chunk, or all of one."""
        return bool(piece.place & VERIFIED) or (
            piece.end >= piece.content_end and piece.start == self.blob.starts[piece.chunk] * ALIGN_BYTES
        )

    def _shift(self, piece: Piece) -> int:
        """Equal for chunks that are as far from each other in one pack as in the blob."""
        return (piece.place >> 1) - self.blob.starts[piece.chunk]

    def _read_at(self, file: int, into: memoryview, offset: int) -> int:
        """Fill ``into``, or up to the file's end. Raises WouldBlock, OSError."""
        if self._may_block:
            return _read_waiting(file, into, offset)
        try:
            got = os.preadv(file, (into,), offset, os.RWF_NOWAIT)
        except OSError as problem:
            if problem.errno in _NOT_NOW:
                raise WouldBlock from problem
            raise
        if got < len(into):
            raise WouldBlock  # the rest is on disk, or behind the pack's end: the next look tells
        return got


def _read_past_cache(chunks: LocalChunks, pack: int, block: int, into: memoryview) -> int:
    """Fill ``into``, aligned memory of whole blocks, from that block on, or up to the pack's end.

    Raises Unavailable, OSError.
    """
    offset = block * ALIGN_BYTES
    try:
        return _read_waiting(chunks.open_pack(pack, past_cache=True), into, offset)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # the disk's own blocks are longer
            raise
        return _read_waiting(chunks.open_pack(pack), into, offset)


def _raise_unless_lost(problem: Exception) -> None:
    """A pack that is gone, or that the disk cannot read, is a chunk not here; anything else is an error."""
    if isinstance(problem, OSError) and problem.errno != errno.EIO:
        raise problem


def _read_waiting(file: int, into: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(into):
        got = os.preadv(file, (into[filled:],), offset + filled)
        filled += got
        if got == 0 or filled % ALIGN_BYTES:
            break  # the file's end; past the page cache there is no reading on from between blocks
    return filled


def padded(blob: Blob, index: int, data: Buffer, start: int, end: int) -> tuple[memoryview, bytes]:
    """What a read from ``start`` to ``end`` wants of a whole chunk's bytes, and of their padding."""
    chunk_start = blob.starts[index] * ALIGN_BYTES
    view = memoryview(data)
    low, high = max(0, start - chunk_start), min(aligned(view.nbytes), end - chunk_start)
    content = view[low:high]
    return content, _ZEROS[: high - low - len(content)]


def pieces_of(blob: Blob, start: int, end: int) -> list[Piece]:
    """What bytes ``start`` to ``end`` of the blob consist of, and where the chunks are known to lie now."""
    starts, places, sizes = blob.starts, blob.places, blob.table.sizes
    pieces = []
    for index in range(blob.table.at(start), blob.table.at(end - 1) + 1):
        chunk_start = starts[index] * ALIGN_BYTES
        chunk_end = starts[index + 1] * ALIGN_BYTES
        pieces.append(
            Piece(
                index,
                max(start, chunk_start),
                min(end, chunk_end),
                chunk_start + sizes[index],
                places[index],
            )
        )
    return pieces


def _is_chunk(blob: Blob, index: int, data: memoryview) -> bool:
    try:
        blob.table[index].verify(data, "ssd")
    except ChunkInvalid:
        return False
    return True
