"""Fuzz what comes from regions and zones. Run as :mod:`fuzz.engine` says, and inputs are as there.

Whatever comes in, it is refused by the error that the parser promises, or what it says of itself is possible;
anything else is a finding.
"""

from __future__ import annotations

from fuzz.engine import Parser, instrumented, is_taken, require, run, sound

with instrumented(__name__, "glowplug.chunks", "glowplug.image.region_refs"):
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


def fuzz(data: bytes) -> bool:
    """One input."""
    return is_taken(data, _PARSERS, (InvalidInput, BadAnswer))


def _pack_index(data: bytes) -> None:
    index = PackIndex(data)
    members = list(index)
    require(sum(member.stored_bytes for member in members) == index.pack_bytes)
    require(all(0 < member.stored_bytes <= member.chunk.size_bytes <= CHUNK_BYTES for member in members))


def _placement(data: bytes) -> None:
    placement = Placement(data)
    ranges = placement.plan(range(len(placement)))
    require(sum(len(each.indices) for each in ranges) == len(placement))
    require(all(0 < each.size_bytes <= RANGE_BYTES for each in ranges))


def _answer(data: bytes) -> None:
    """A range's bytes, cut off or not."""
    (wanted,) = Placement(_PLACEMENT).plan(range(len(_PIECES)))
    run = wanted.open(data, [Chunk.of(piece) for piece in _PIECES])
    wrong = set(run.wrong())
    require(all(run.body(at) == piece for at, piece in enumerate(_PIECES) if at not in wrong))
    require(data != _PACK or not wrong)


def _frame(data: bytes) -> None:
    require(len(expand_at_most(data, 1 << 16)) <= 1 << 16)


def _head(data: bytes) -> None:
    head = parse_head(data)
    require(0 <= head.length_bytes() < 10**15)


def _address(data: bytes) -> None:
    address = HttpAddress.parse(data.decode("utf-8", "replace"))
    require(HttpAddress.parse(str(address)) == address)


def _key(data: bytes) -> None:
    key = check_key(data.decode("utf-8", "replace"))
    require(".." not in key.split("/"))
    require(not key.startswith("/"))


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
    b"i": Parser(_pack_index, _INDEX),
    b"p": Parser(_placement, _PLACEMENT),
    b"c": Parser(_answer, _PACK),
    b"z": Parser(_frame, compress(b"some words " * 100)),
    b"h": Parser(_head, _HEAD),
    b"a": Parser(_address, b"https://host.example:8443/some/prefix"),
    b"k": Parser(_key, b"refs/team/name:1.json"),
    b"r": Parser(_ref, Ref("0" * 64, ("a" * 32,)).encode()),
}
SOUND = sound(_PARSERS)


if __name__ == "__main__":
    run(fuzz)
