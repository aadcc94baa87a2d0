"""``chunks.bin``: the chunks of one blob (an image's content, a snapshot's pages) in blob order.

A blob is its chunks one after the other, each starting at a multiple of ALIGN_BYTES; a chunk appears once,
however many files hold it. Format, little-endian::

    0   8  magic "GPCHUNK1"
    8   4  count
    12  4  reserved, 0
    16  8  blob_bytes: sum of the aligned sizes
    24  8  content_bytes: sum of the sizes
    32     count x 32 bytes: ids
    ..     count x  4 bytes: sizes, 1 to CHUNK_BYTES

Everything is checked when a table is opened: its length, its sums and its sizes. Opening maps the file, so a
table costs page cache and no memory of ours, until offsets are asked for.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import overload

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES, ID_BYTES, Chunk, aligned
from glowplug.types.errors import InvalidInput

MAGIC = b"GPCHUNK1"
HEADER = struct.Struct("<8sIIQQ")
MAX_CHUNKS = 1 << 26


class ChunkTable(Sequence[Chunk]):
    """The chunks of a blob. Immutable; safe to use from many threads."""

    def __init__(self, data: bytes | bytearray | mmap.mmap) -> None:
        """Raises InvalidInput for anything that is not a table."""
        if len(data) < HEADER.size:
            raise _damaged("it is shorter than its header")
        magic, count, reserved, blob_bytes, content_bytes = HEADER.unpack_from(data)
        if magic != MAGIC or reserved != 0:
            raise _damaged("it does not start as a table does")
        if blob_bytes // ALIGN_BYTES >= 1 << 32:
            raise _damaged("its blob is longer than 16 TiB")
        if count > MAX_CHUNKS or len(data) != HEADER.size + count * (ID_BYTES + 4):
            raise _damaged("its length is not what its header says")
        self._data = data
        self.sizes: array[int] = array("I", bytes(data[HEADER.size + count * ID_BYTES :]))
        if sys.byteorder == "big":
            self.sizes.byteswap()
        if count and not 0 < min(self.sizes) <= max(self.sizes) <= CHUNK_BYTES:
            raise _damaged("it has a chunk of an impossible size")
        self.blob_bytes: int = blob_bytes
        self.content_bytes: int = content_bytes
        if sum(self.sizes) != content_bytes or sum(map(aligned, self.sizes)) != blob_bytes:
            raise _damaged("its sums are wrong")

    @classmethod
    def open(cls, path: Path) -> ChunkTable:
        """Map a table's file. Raises InvalidInput, or OSError if it cannot be read."""
        with path.open("rb") as file:
            try:
                # Nobody writes to it; but only of memory that one may write to does ctypes give the address.
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError as empty:
                raise _damaged("it is empty") from empty
        table = cls(mapped)
        # Checking it has brought its pages into our memory; who opens many tables uses little of each.
        mapped.madvise(mmap.MADV_DONTNEED)
        return table

    @staticmethod
    def pack(chunks: Iterable[Chunk]) -> bytes:
        """The file's content for these chunks, in this order; each must appear once."""
        listed = list(chunks)
        sizes = array("I", (chunk.size_bytes for chunk in listed))
        if sys.byteorder == "big":
            sizes.byteswap()
        header = HEADER.pack(
            MAGIC,
            len(listed),
            0,
            sum(aligned(chunk.size_bytes) for chunk in listed),
            sum(chunk.size_bytes for chunk in listed),
        )
        return header + b"".join(chunk.id for chunk in listed) + sizes.tobytes()

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> list[Chunk]: ...

    def __getitem__(self, index: int | slice) -> Chunk | list[Chunk]:
        """A Chunk; slices give lists of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
            if index < 0:
                raise IndexError(index)
        size_bytes = self.sizes[index]  # raises IndexError
        start = HEADER.size + index * ID_BYTES
        return Chunk(bytes(self._data[start : start + ID_BYTES]), size_bytes)

    def __iter__(self) -> Iterator[Chunk]:
        return (self[i] for i in range(len(self)))

    @property
    def ids(self) -> memoryview:
        """The chunks' names, one behind the other."""
        return memoryview(self._data)[HEADER.size : HEADER.size + len(self) * ID_BYTES]

    @cached_property
    def starts(self) -> array[int]:
        """``len + 1`` numbers: where each chunk starts in the blob, in units of ALIGN_BYTES; then the end."""
        return array("I", accumulate((aligned(size) // ALIGN_BYTES for size in self.sizes), initial=0))

    def offset(self, index: int) -> int:
        """Where chunk ``index`` starts in the blob, in bytes."""
        return self.starts[index] * ALIGN_BYTES

    def at(self, offset: int) -> int:
        """The index of the chunk that byte ``offset`` of the blob lies in (or in whose padding)."""
        if not 0 <= offset < self.blob_bytes:
            raise IndexError(offset)
        return bisect_right(self.starts, offset // ALIGN_BYTES) - 1


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is not a chunk table: {why}.", remedy="Pull or import the image again (docs/image-format.md)."
    )
