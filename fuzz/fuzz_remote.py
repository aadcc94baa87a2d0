"""Fuzz what comes from regions and zones: ``python fuzz/fuzz_remote.py -max_total_time=60``.

Inputs are: a byte that chooses the parser, then what it parses or, for a capital letter, changes to something
sound. Whatever comes in, it is refused by the error that the parser promises, or what it says of itself is
possible; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import sys

import atheris

with atheris.instrument_imports(include=["glowplug.chunks", "glowplug.image.region_refs"]):
    from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
    from glowplug.chunks.compression import compress, expand_at_most
    from glowplug.chunks.http_address import HttpAddress
    from glowplug.chunks.http_connection import parse_head
    from glowplug.chunks.http_stream import BadAnswer
    from glowplug.chunks.object_keys import check_key
    from glowplug.chunks.pack import PackIndex, PackWriter
    from glowplug.chunks.placement import RANGE_BYTES, Place, Placement
    from glowplug.image.region_refs import Ref
    from glowplug.types.errors import InvalidInput


def fuzz(data: bytes) -> None:
    """One input."""
    kind, rest = data[:1], data[1:]
    parse, sound = _PARSERS.get(kind.lower(), _PARSERS[b"i"])
    with contextlib.suppress(InvalidInput, BadAnswer):
        parse(_changed(sound, rest) if kind.isupper() else rest)


def _changed(sound: bytes, changes: bytes) -> bytes:
    """After changes of {position, length, bytes}: fuzzing starts inside the format."""
    data = bytearray(sound)
    at = 0
    while at + 3 <= len(changes):
        position, length = int.from_bytes(changes[at : at + 2], "little") % len(data), changes[at + 2] % 8
        data[position : position + length] = changes[at + 3 : at + 3 + length]
        at += 3 + length
    return bytes(data)


def _require(is_so: bool) -> None:
    if not is_so:
        raise AssertionError("what was parsed is impossible")


def _pack_index(data: bytes) -> None:
    index = PackIndex(data)
    members = list(index)
    _require(sum(member.stored_bytes for member in members) == index.pack_bytes)
    _require(all(0 < member.stored_bytes <= member.chunk.size_bytes <= CHUNK_BYTES for member in members))


def _placement(data: bytes) -> None:
    placement = Placement(data)
    ranges = placement.plan(range(len(placement)))
    _require(sum(len(each.indices) for each in ranges) == len(placement))
    _require(all(0 < each.size_bytes <= RANGE_BYTES for each in ranges))


def _answer(data: bytes) -> None:
    """A range's bytes, cut off or not."""
    (wanted,) = Placement(_PLACEMENT).plan(range(len(_PIECES)))
    run = wanted.open(data, [Chunk.of(piece) for piece in _PIECES])
    wrong = set(run.wrong())
    _require(all(run.body(at) == piece for at, piece in enumerate(_PIECES) if at not in wrong))
    _require(data != _PACK or not wrong)


def _frame(data: bytes) -> None:
    _require(len(expand_at_most(data, 1 << 16)) <= 1 << 16)


def _head(data: bytes) -> None:
    head = parse_head(data)
    _require(0 <= head.length_bytes() < 10**15)


def _address(data: bytes) -> None:
    address = HttpAddress.parse(data.decode("utf-8", "replace"))
    _require(HttpAddress.parse(str(address)) == address)


def _key(data: bytes) -> None:
    key = check_key(data.decode("utf-8", "replace"))
    _require(".." not in key.split("/"))
    _require(not key.startswith("/"))


def _ref(data: bytes) -> None:
    Ref.parse(data, "name")


def _samples() -> tuple[bytes, bytes, bytes]:
    """A pack, its index, and a placement in that pack."""
    writer = PackWriter(is_compressing=True)
    for piece in _PIECES:
        writer.add(Chunk.of(piece), piece)
    pack = writer.finish()
    places = [Place(pack.id, each.offset, each.stored_bytes, each.encoding) for each in pack.members]
    return bytes(pack.data), pack.index, Placement.pack(places)


_PIECES = (b"one", b"two " * 500, bytes(range(256)))
_PACK, _INDEX, _PLACEMENT = _samples()
_HEAD = b"HTTP/1.1 206 OK\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/10\r\nX-Cache-Status: HIT"
_PARSERS = {
    b"i": (_pack_index, _INDEX),
    b"p": (_placement, _PLACEMENT),
    b"c": (_answer, _PACK),
    b"z": (_frame, compress(b"some words " * 100)),
    b"h": (_head, _HEAD),
    b"a": (_address, b"https://host.example:8443/some/prefix"),
    b"k": (_key, b"refs/team/name:1.json"),
    b"r": (_ref, Ref("0" * 64, ("a" * 32,)).encode()),
}


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
