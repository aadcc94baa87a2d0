"""Remote packs: many chunks in one immutable object, so that a hot set is a handful of large reads.

The format is a contract (docs/image-store.md). ``packs/<xx>/<id>`` is the bodies of its chunks one after the
other, nothing between, before or behind them; ``<id>`` is the BLAKE3 of all its bytes and ``<xx>`` its first
two digits. A body is the chunk itself or one zstd frame of it, which must be smaller. What a pack holds is
told twice: by the placement of each image that uses it, and, so that any pusher can see what is there
already, by ``packs/<xx>/<id>.index``, little-endian::

    0   8  magic "GPPACKI1"
    8   4  count
    12  4  reserved, 0
    16  8  pack_bytes
    24     count x 32 bytes: ids, in pack order
    ..     count x  4 bytes: sizes
    ..     count x  4 bytes: stored sizes; the top bit is set for zstd

Offsets are the running sum of the stored sizes, so members cannot overlap or leave the pack.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator, Set
from dataclasses import dataclass
from enum import IntEnum

import blake3
from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, ID_BYTES, Chunk
from glowplug.chunks.compression import compress, expand
from glowplug.types.errors import InvalidInput

PACK_BYTES = 64 << 20
"""Where a pusher ends a pack: large enough for long range reads, small enough to hold four in memory."""

MAX_PACK_BYTES = 1 << 30
MAX_MEMBERS = 1 << 16
PREFIX = "packs/"

_MAGIC = b"GPPACKI1"
_HEADER = struct.Struct("<8sIIQ")
_MEMBER_BYTES = ID_BYTES + 8
MAX_INDEX_BYTES = _HEADER.size + MAX_MEMBERS * _MEMBER_BYTES
ZSTD_BIT = 1 << 31
_KEPT_FRACTION = 0.9  # a zstd body is kept if it is at least 10 % smaller: below that expanding costs more
_INDEX_KEY = re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})\.index")
_PACK_KEY = re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class Encoding(IntEnum):
    """How a body lies in its pack."""

    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One chunk in a pack."""

    chunk: Chunk
    offset: int
    stored_bytes: int
    encoding: Encoding


def pack_key(pack_id: bytes) -> str:
    """The object that is this pack."""
    name = pack_id.hex()
    return f"{PREFIX}{name[:2]}/{name}"


def index_key(pack_id: bytes) -> str:
    """The object that tells what is in this pack."""
    return pack_key(pack_id) + ".index"


def pack_of_key(key: str) -> bytes | None:
    """The pack's id if ``key`` is a pack."""
    found = _PACK_KEY.fullmatch(key)
    return bytes.fromhex(found[2]) if found else None


def pack_of_index_key(key: str) -> bytes | None:
    """The pack's id if ``key`` is a pack's index."""
    found = _INDEX_KEY.fullmatch(key)
    return bytes.fromhex(found[2]) if found else None


def index_members(index_bytes: int) -> int:
    """How many chunks a pack has whose index is that long."""
    return max(0, index_bytes - _HEADER.size) // _MEMBER_BYTES


def decode(body: Buffer, encoding: Encoding, chunk: Chunk, tier: str) -> Buffer:
    """The verified chunk that ``body`` stands for; ``tier`` is where it came from. Raises ChunkInvalid."""
    content = body if encoding is Encoding.RAW else content_of_frame(body, chunk)
    chunk.verify(content, tier)
    return content


def content_of_frame(frame: Buffer, chunk: Chunk) -> bytes:
    """What a zstd body holds, unverified; nothing, which no chunk is, unless that is as long as the chunk."""
    try:
        return expand(frame, chunk.size_bytes)
    except InvalidInput:
        return b""


class PackIndex:
    """What one pack holds. Immutable; as hostile as the object it was parsed from until then, sound after."""

    def __init__(self, data: Buffer) -> None:
        """Raises InvalidInput for anything that is not a pack's index."""
        view = memoryview(data)
        if view.nbytes < _HEADER.size:
            raise _damaged("it is shorter than its header")
        magic, count, reserved, self.pack_bytes = _HEADER.unpack_from(view)
        if magic != _MAGIC or reserved != 0:
            raise _damaged("it does not start as one does")
        if not 0 < count <= MAX_MEMBERS or view.nbytes != _HEADER.size + count * _MEMBER_BYTES:
            raise _damaged("its length is not what its header says")
        ids_end = _HEADER.size + count * ID_BYTES
        self._ids = bytes(view[_HEADER.size : ids_end])
        self._sizes = little_endian_array(view[ids_end : ids_end + 4 * count])
        self._stored = little_endian_array(view[ids_end + 4 * count :])
        self._check()

    def _check(self) -> None:
        total_bytes = 0
        for size, stored in zip(self._sizes, self._stored, strict=True):
            if not 0 < size <= CHUNK_BYTES:
                raise _damaged("it has a chunk of an impossible size")
            stored_bytes = stored & ~ZSTD_BIT
            if not (0 < stored_bytes < size if stored & ZSTD_BIT else stored_bytes == size):
                raise _damaged("it has a body of an impossible size")
            total_bytes += stored_bytes
        if total_bytes != self.pack_bytes or total_bytes > MAX_PACK_BYTES:
            raise _damaged("its sums are wrong")

    def __len__(self) -> int:
        return len(self._sizes)

    def holds_any(self, ids: Set[bytes]) -> bool:
        """Whether one of these chunks is in the pack: much faster than looking at its members."""
        return not ids.isdisjoint(
            [self._ids[at : at + ID_BYTES] for at in range(0, len(self._ids), ID_BYTES)]
        )

    def __iter__(self) -> Iterator[Member]:
        offset = 0
        for number, (size, stored) in enumerate(zip(self._sizes, self._stored, strict=True)):
            chunk = Chunk(self._ids[number * ID_BYTES : (number + 1) * ID_BYTES], size)
            stored_bytes = stored & ~ZSTD_BIT
            yield Member(chunk, offset, stored_bytes, Encoding(stored >> 31))
            offset += stored_bytes


@dataclass(frozen=True)
class Pack:
    """A finished pack, ready to be uploaded: first ``data``, then ``index``."""

    id: bytes
    data: bytearray
    index: bytes
    members: tuple[Member, ...]


class PackWriter:
    """Collects chunks into one pack. Not for several threads at once."""

    def __init__(self, *, is_compressing: bool) -> None:
        self._is_compressing = is_compressing
        self._data = bytearray()
        self._members: list[Member] = []

    @property
    def size_bytes(self) -> int:
        """How long the pack is so far."""
        return len(self._data)

    @property
    def is_full(self) -> bool:
        """No more chunk may be added."""
        return len(self._members) >= MAX_MEMBERS or len(self._data) > MAX_PACK_BYTES - CHUNK_BYTES

    def add(self, chunk: Chunk, data: Buffer) -> None:
        """Append a chunk; the caller has verified it."""
        body, encoding = data, Encoding.RAW
        if self._is_compressing:
            frame = compress(data)
            if len(frame) <= chunk.size_bytes * _KEPT_FRACTION:
                body, encoding = frame, Encoding.ZSTD
        offset = len(self._data)
        self._data += memoryview(body)
        self._members.append(Member(chunk, offset, len(self._data) - offset, encoding))

    def finish(self) -> Pack:
        """The pack of all that was added: at least one chunk. The writer is spent."""
        members = tuple(self._members)
        return Pack(
            blake3.blake3(self._data).digest(), self._data, _pack_index(members, len(self._data)), members
        )


def _pack_index(members: tuple[Member, ...], pack_bytes: int) -> bytes:
    return b"".join(
        (
            _HEADER.pack(_MAGIC, len(members), 0, pack_bytes),
            *(member.chunk.id for member in members),
            little_endian_bytes(member.chunk.size_bytes for member in members),
            little_endian_bytes(
                member.stored_bytes | (ZSTD_BIT if member.encoding is Encoding.ZSTD else 0)
                for member in members
            ),
        )
    )


def little_endian_array(data: Buffer) -> array[int]:
    """The unsigned 32-bit numbers in ``data``."""
    numbers = array("I")
    numbers.frombytes(memoryview(data))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def little_endian_bytes(numbers: Iterator[int]) -> bytes:
    """The inverse of :func:`little_endian_array`."""
    packed = array("I", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is not a pack's index: {why}.", remedy="Push the image again to write it anew."
    )
