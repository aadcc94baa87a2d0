"""``placement.bin``: where in a region's packs the chunks of one blob lie, and how to read many at once.

It stands beside a blob's ``chunks.bin`` and speaks of its chunks by index. It is no part of an image's
digest: a region may be repacked, and a push that finds chunks of other images there points at their packs.
Nothing in it is trusted: what a place yields is verified against the chunk's name. Little-endian::

    0   8  magic "GPPLACE1"
    8   4  count: chunks
    12  4  packs
    16     packs x 32 bytes: pack ids
    ..     count x  4 bytes: numbers of packs in that list
    ..     count x  4 bytes: offsets in the pack
    ..     count x  4 bytes: stored sizes; the top bit is set for zstd

Opening maps the file, and places are read from the map: a placement costs page cache and none of our memory.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, ID_BYTES, Chunk
from glowplug.chunks.pack import (
    MAX_PACK_BYTES,
    ZSTD_BIT,
    Encoding,
    content_of_frame,
    little_endian_array,
    little_endian_bytes,
    pack_key,
)
from glowplug.chunks.run import Run
from glowplug.chunks.table import MAX_CHUNKS
from glowplug.types.errors import InvalidInput

GAP_BYTES = 64 << 10
"""Reading over a gap this long is cheaper than one more request: under a millisecond at 100 MB/s."""

RANGE_BYTES = 4 << 20
"""The longest read: beyond it a connection's rate, not its latency, is what counts."""

_MAGIC = b"GPPLACE1"
_HEADER = struct.Struct("<8sII")
_PLACE_BYTES = 12


def placement_limit_bytes(chunks: int) -> int:
    """No placement of that many chunks is longer."""
    return _HEADER.size + chunks * (ID_BYTES + _PLACE_BYTES)


class Place(NamedTuple):
    """Where one chunk lies."""

    pack_id: bytes
    offset: int
    stored_bytes: int
    encoding: Encoding

    @property
    def end(self) -> int:
        """Just behind its last byte in the pack."""
        return self.offset + self.stored_bytes


@dataclass(frozen=True, slots=True)
class PackRange:
    """One range of one object to read, and the chunks in it, in pack order.

    Of each, ``indices`` has its index in the blob, ``offsets`` where it begins in the pack, ``stored`` how
    long it is there, as a placement has it.
    """

    key: str
    start: int
    size_bytes: int
    indices: Sequence[int]
    offsets: Sequence[int]
    stored: Sequence[int]

    def only(self, numbers: Sequence[int]) -> PackRange:
        """The same range, of whose chunks no others than these are wanted."""
        indices, offsets, stored = (
            [column[number] for number in numbers] for column in (self.indices, self.offsets, self.stored)
        )
        return PackRange(self.key, self.start, self.size_bytes, indices, offsets, stored)

    def alone(self, number: int) -> PackRange:
        """The range of one of its chunks."""
        offset, stored = self.offsets[number], self.stored[number]
        return PackRange(self.key, offset, stored & ~ZSTD_BIT, (self.indices[number],), (offset,), (stored,))

    def open(self, data: Buffer, chunks: Sequence[Chunk]) -> Run:
        """Its chunks, given in its order, out of its bytes. None is verified, or need be there."""
        if max(self.stored) < ZSTD_BIT:
            return Run(chunks, [offset - self.start for offset in self.offsets], data)
        view = memoryview(data)
        bodies: list[Buffer] = []
        for chunk, offset, stored in zip(chunks, self.offsets, self.stored, strict=True):
            begin = offset - self.start
            body = view[begin : begin + (stored & ~ZSTD_BIT)]
            bodies.append(content_of_frame(body, chunk) if stored & ZSTD_BIT else body)
        ends = accumulate((len(memoryview(body)) for body in bodies), initial=0)
        return Run(chunks, list(ends)[:-1], b"".join(bodies))


class Placement:
    """Where the chunks of a blob lie. Immutable; safe to use from many threads."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        """Raises InvalidInput for anything that is not a placement."""
        if len(data) < _HEADER.size:
            raise _damaged("it is shorter than its header")
        magic, count, packs = _HEADER.unpack_from(data)
        self._count: int = count
        self._packs: int = packs
        if magic != _MAGIC:
            raise _damaged("it does not start as one does")
        if self._count > MAX_CHUNKS or self._packs > self._count:
            raise _damaged("it has impossible counts")
        if len(data) != _HEADER.size + self._packs * ID_BYTES + self._count * _PLACE_BYTES:
            raise _damaged("its length is not what its header says")
        self._data = data
        view = memoryview(data)
        numbers_start = _HEADER.size + self._packs * ID_BYTES
        columns = [
            view[numbers_start + 4 * self._count * i : numbers_start + 4 * self._count * (i + 1)]
            for i in range(3)
        ]
        self._numbers, self._offsets, self._stored = (_numbers(column) for column in columns)
        self._check()

    def _check(self) -> None:
        if not self._count:
            return
        if max(self._numbers) >= self._packs:
            raise _damaged("it names a pack that it does not list")
        if max(self._offsets) >= MAX_PACK_BYTES:
            raise _damaged("it points behind the end of any pack")
        if min(self._stored) > 0 and max(self._stored) <= CHUNK_BYTES:
            return
        if not all(0 < stored & ~ZSTD_BIT <= CHUNK_BYTES for stored in self._stored):
            raise _damaged("it has a body of an impossible size")

    @classmethod
    def open(cls, path: Path) -> Placement:
        """Map a placement's file. Raises InvalidInput, or OSError if it cannot be read."""
        with path.open("rb") as file:
            try:
                return cls(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError as empty:
                raise _damaged("it is empty") from empty

    @staticmethod
    def pack(places: Sequence[Place]) -> bytes:
        """The file's content for these places, in chunk order."""
        numbers: dict[bytes, int] = {}
        for place in places:
            numbers.setdefault(place.pack_id, len(numbers))
        return b"".join(
            (
                _HEADER.pack(_MAGIC, len(places), len(numbers)),
                *numbers,
                little_endian_bytes(numbers[place.pack_id] for place in places),
                little_endian_bytes(place.offset for place in places),
                little_endian_bytes(
                    place.stored_bytes | (ZSTD_BIT if place.encoding is Encoding.ZSTD else 0)
                    for place in places
                ),
            )
        )

    @property
    def data(self) -> bytes | mmap.mmap:
        """The content of ``placement.bin``."""
        return self._data

    def __len__(self) -> int:
        return self._count

    def place(self, index: int) -> Place:
        """Where chunk ``index`` lies. Raises IndexError."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        stored = self._stored[index]
        return Place(
            self.pack_id(self._numbers[index]),
            self._offsets[index],
            stored & ~ZSTD_BIT,
            Encoding.ZSTD if stored & ZSTD_BIT else Encoding.RAW,
        )

    def pack_id(self, number: int) -> bytes:
        """The id of pack ``number`` of this placement."""
        start = _HEADER.size + number * ID_BYTES
        return bytes(self._data[start : start + ID_BYTES])

    def pack_ids(self) -> list[bytes]:
        """The packs it points into."""
        return [self.pack_id(number) for number in range(self._packs)]

    def plan(
        self, indices: Iterable[int], gap_bytes: int = GAP_BYTES, max_bytes: int = RANGE_BYTES
    ) -> list[PackRange]:
        """Ranges that yield these chunks: neighbours in a pack together, the first asked for first.

        Each chunk is in one range. Raises IndexError for a chunk there is not.
        """
        asked: dict[int, int] = {}
        for index in indices:
            asked.setdefault(index, len(asked))
        if asked and not 0 <= min(asked) <= max(asked) < self._count:
            raise IndexError(min(asked), max(asked))
        numbers, offsets, stored = self._numbers, self._offsets, self._stored
        groups: list[list[int]] = []
        pack, start, end = -1, 0, 0  # of the last group
        for index in sorted(asked, key=lambda index: numbers[index] * MAX_PACK_BYTES + offsets[index]):
            offset, behind = offsets[index], offsets[index] + (stored[index] & ~ZSTD_BIT)
            if numbers[index] == pack and offset - end <= gap_bytes and behind - start <= max_bytes:
                groups[-1].append(index)
            else:
                groups.append([index])
                pack, start = numbers[index], offset
            end = behind
        groups.sort(key=lambda group: min(map(asked.__getitem__, group)))
        return [self._range_of(group) for group in groups]

    def _range_of(self, group: Sequence[int]) -> PackRange:
        offsets = [self._offsets[index] for index in group]
        stored = [self._stored[index] for index in group]
        # Overlaps are hostile, not impossible: the last chunk need not be the one that ends last.
        end = max(offset + (length & ~ZSTD_BIT) for offset, length in zip(offsets, stored, strict=True))
        key = pack_key(self.pack_id(self._numbers[group[0]]))
        return PackRange(key, offsets[0], end - offsets[0], group, offsets, stored)


def _numbers(column: memoryview) -> Sequence[int]:
    return column.cast("I") if sys.byteorder == "little" else little_endian_array(column)


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is not a placement: {why}.",
        remedy="`glowplug image pull` fetches the placement again.",
    )
