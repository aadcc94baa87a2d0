"""Where the data of a sparse file in a tar archive belongs: the four ways in which GNU tar has written that.

All give the file's real size and its data ranges, and are checked against how much data the archive holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from glowplug.image.origin.port import Range
from glowplug.image.origin.tar_headers import BLOCK_BYTES, MAX_FILE_BYTES, header_number
from glowplug.image.origin.tar_pax import damaged, number

MAX_RANGES = 1 << 20
_OLD_FIELD_BYTES = 12
_OLD_IN_HEADER = (386, 4)
_OLD_IN_EXTENSION = (0, 21)
_MAX_DIGITS = 20

Take = Callable[[int], bytes]
"""Exactly so many of the archive's next bytes."""


@dataclass(frozen=True, slots=True)
class SparseMap:
    """``name`` is the file's real one where the entry's own is made up for readers that know no better."""

    size_bytes: int
    ranges: list[Range]
    name: bytes | None = None
    map_bytes: int = 0  # how much of the entry's data was the map itself

    def check(self, stored_bytes: int) -> None:
        """Raise InvalidInput unless it fits a body of ``stored_bytes`` after the map."""
        end = 0
        for start, length in self.ranges:
            if start < end or start + length > self.size_bytes:
                raise damaged("the ranges of a sparse file overlap, go back, or lie beyond its end")
            end = start + length
        if sum(length for _, length in self.ranges) != stored_bytes:
            raise damaged("a sparse file has another amount of data than its map says")


def read_old_map(block: bytes, take: Take) -> SparseMap:
    """The map of an entry of type ``S``: in its header and in blocks that follow it."""
    ranges = list(_old_ranges(block, *_OLD_IN_HEADER))
    more = block[482]
    while more:
        extension = take(BLOCK_BYTES)
        ranges.extend(_old_ranges(extension, *_OLD_IN_EXTENSION))
        _bound(len(ranges))
        more = extension[504]
    return SparseMap(header_number(block[483:495], b"", "size", maximum=MAX_FILE_BYTES), ranges)


def read_extended_map(records: Sequence[tuple[bytes, bytes]], take: Take) -> SparseMap | None:
    """The map that the ``GNU.sparse.`` records hold or, as of format 1.0, announce. None without records."""
    if not records:
        return None
    keys = dict(records)
    size = keys.get(b"GNU.sparse.realsize", keys.get(b"GNU.sparse.size"))
    if size is None:
        raise damaged("a sparse file has no size")
    size_bytes = number(size, "a size", MAX_FILE_BYTES)
    name = keys.get(b"GNU.sparse.name") or None
    version = (keys.get(b"GNU.sparse.major", b"0"), keys.get(b"GNU.sparse.minor", b"0"))
    if version == (b"1", b"0"):
        ranges, map_bytes = _map_in_data(take)
        return SparseMap(size_bytes, ranges, name, map_bytes)
    if version[0] != b"0":
        raise damaged("a sparse file is of an unknown format")
    listed = keys.get(b"GNU.sparse.map")
    if listed is not None:
        values = [value for value in listed.split(b",") if value]
    else:
        wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        values = [value for key, value in records if key in wanted]
    _bound(len(values) // 2)
    return SparseMap(size_bytes, _pairs([number(value, "a range", MAX_FILE_BYTES) for value in values]), name)


def _old_ranges(block: bytes, at: int, count: int) -> Iterator[Range]:
    for _ in range(count):
        start = block[at : at + _OLD_FIELD_BYTES]
        length = block[at + _OLD_FIELD_BYTES : at + 2 * _OLD_FIELD_BYTES]
        at += 2 * _OLD_FIELD_BYTES
        if length[0] == 0:
            return
        length_bytes = header_number(length, b"", "size", maximum=MAX_FILE_BYTES)
        if length_bytes:
            yield header_number(start, b"", "offset", maximum=MAX_FILE_BYTES), length_bytes


def _map_in_data(take: Take) -> tuple[list[Range], int]:
    """Format 1.0: decimal lines at the start of the data, their count first, padded to a whole block."""
    lines = _Lines(take)
    count = lines.next()
    _bound(count)
    values = [lines.next() for _ in range(2 * count)]
    return _pairs(values), lines.taken_bytes


class _Lines:
    """Numbers, one a line, from as many blocks as it takes."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._rest = b""
        self.taken_bytes = 0

    def next(self) -> int:
        while b"\n" not in self._rest[: _MAX_DIGITS + 1]:
            if len(self._rest) > _MAX_DIGITS:
                raise damaged("the map of a sparse file is no list of numbers")
            self._rest += self._take(BLOCK_BYTES)
            self.taken_bytes += BLOCK_BYTES
        line, _, self._rest = self._rest.partition(b"\n")
        return number(line, "a range", MAX_FILE_BYTES)


def _pairs(values: list[int]) -> list[Range]:
    if len(values) % 2:
        raise damaged("the map of a sparse file lacks a number")
    return [(start, length) for start, length in zip(values[::2], values[1::2], strict=True) if length]


def _bound(ranges: int) -> None:
    if ranges > MAX_RANGES:
        raise damaged(f"a sparse file has more than {MAX_RANGES} ranges")
