"""The remote pack format: what is written can be read, what was not written is refused."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path

import blake3
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, ChunkInvalid
from glowplug.chunks.compression import compress, expand, expand_at_most
from glowplug.chunks.pack import (
    MAX_INDEX_BYTES,
    MAX_MEMBERS,
    Encoding,
    Pack,
    PackIndex,
    PackWriter,
    decode,
    index_key,
    index_members,
    pack_key,
    pack_of_index_key,
    pack_of_key,
)
from glowplug.chunks.placement import Place, Placement
from glowplug.types.errors import InvalidInput

PIECES = st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=12, unique=True)


def packed(pieces: list[bytes], *, is_compressing: bool = False) -> Pack:
    writer = PackWriter(is_compressing=is_compressing)
    for piece in pieces:
        writer.add(Chunk.of(piece), piece)
    return writer.finish()


@given(PIECES, st.booleans())
def test_every_chunk_comes_back_by_what_the_index_says(pieces: list[bytes], is_compressing: bool) -> None:
    pack = packed(pieces, is_compressing=is_compressing)
    index = PackIndex(pack.index)
    assert tuple(index) == pack.members
    for piece, member in zip(pieces, index, strict=True):
        body = pack.data[member.offset : member.offset + member.stored_bytes]
        assert bytes(decode(body, member.encoding, member.chunk, "region")) == piece


def test_the_bodies_fill_the_pack_and_its_name_is_their_hash() -> None:
    pack = packed([b"one", b"two", b"three"])
    assert pack.data == b"onetwothree"
    assert pack.id == blake3.blake3(b"onetwothree").digest()


def test_the_document_describes_what_is_written() -> None:
    """The test vector at the end of docs/image-store.md."""
    text = (Path(__file__).parents[2] / "docs" / "image-store.md").read_text()
    vector = re.search(r"```\n(pack  .*?)```", text, re.DOTALL)
    assert vector
    stated: dict[str, str] = {}
    name = ""
    for line in vector[1].splitlines():
        name = line[:10].strip() or name
        stated[name] = stated.get(name, "") + line[10:].strip()
    pack = packed([b"glow", b"plug"])
    placement = Placement.pack([Place(pack.id, m.offset, m.stored_bytes, m.encoding) for m in pack.members])
    assert stated == {
        "pack": pack.data.hex(),
        "pack id": pack.id.hex(),
        "index": pack.index.hex(),
        "placement": placement.hex(),
    }


def test_the_top_bit_of_a_stored_size_stands_for_zstd() -> None:
    pack = packed([b"glow", b"plug" * 100], is_compressing=True)
    assert int.from_bytes(pack.index[96:100], "little") == 4
    assert int.from_bytes(pack.index[100:], "little") == (1 << 31) | (len(pack.data) - 4)


def test_what_hardly_shrinks_is_stored_as_it_is() -> None:
    noise, text = random.Random(1).randbytes(5000), b"the same words " * 400
    pack = packed([noise, text], is_compressing=True)
    assert [member.encoding for member in pack.members] == [Encoding.RAW, Encoding.ZSTD]


def test_keys_name_packs_and_indexes_and_nothing_else_does() -> None:
    pack_id = bytes(range(32))
    assert pack_key(pack_id) == f"packs/00/{pack_id.hex()}"
    assert pack_of_key(pack_key(pack_id)) == pack_of_index_key(index_key(pack_id)) == pack_id
    for key in (index_key(pack_id), f"packs/01/{pack_id.hex()}", f"packs/00/{pack_id.hex()}x", "packs/00/00"):
        assert pack_of_key(key) is None
    assert pack_of_index_key(pack_key(pack_id)) is None


def test_the_length_of_an_index_tells_how_many_chunks_there_are() -> None:
    assert index_members(len(packed([b"a", b"b"]).index)) == 2
    assert index_members(0) == 0


@settings(max_examples=300)
@given(PIECES, st.randoms(use_true_random=False))
def test_a_damaged_index_is_refused_or_still_lies_within_its_pack(
    pieces: list[bytes], source: random.Random
) -> None:
    data = bytearray(packed(pieces, is_compressing=True).index)
    for _ in range(source.randint(1, 4)):
        data[source.randrange(len(data))] = source.randrange(256)
    if source.random() < 0.3:
        del data[source.randrange(len(data)) :]
    try:
        index = PackIndex(bytes(data))
    except InvalidInput:
        return
    end = 0
    for member in index:
        assert member.offset == end
        assert 0 < member.stored_bytes <= member.chunk.size_bytes <= CHUNK_BYTES
        end += member.stored_bytes
    assert end == index.pack_bytes


@pytest.mark.parametrize("count", [0, MAX_MEMBERS + 1, 0xFFFFFFFF])
def test_an_impossible_count_is_refused_before_anything_is_allocated(count: int) -> None:
    data = bytearray(packed([b"a"]).index)
    data[8:12] = count.to_bytes(4, "little")
    with pytest.raises(InvalidInput):
        PackIndex(bytes(data))


def test_no_index_is_longer_than_a_reader_allows_for() -> None:
    writer = PackWriter(is_compressing=False)
    for number in range(MAX_MEMBERS):
        piece = number.to_bytes(4, "little")
        writer.add(Chunk(piece * 8, 4), piece)
    assert writer.is_full
    assert len(writer.finish().index) == MAX_INDEX_BYTES


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_body_that_is_another_chunk_is_refused(encoding: Encoding) -> None:
    body = b"wrong" if encoding is Encoding.RAW else compress(b"wrong")
    with pytest.raises(ChunkInvalid):
        decode(body, encoding, Chunk.of(b"right"), "zone")


def bomb(size_bytes: int) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(bytes(size_bytes))


def test_a_bomb_is_refused_by_what_it_announces() -> None:
    frame = bomb(256 << 20)
    assert len(frame) < 32 << 10
    with pytest.raises(ChunkInvalid):
        decode(frame, Encoding.ZSTD, Chunk.of(bytes(CHUNK_BYTES)), "region")
    with pytest.raises(InvalidInput, match="more than 1000"):
        expand_at_most(frame, 1000)


def test_a_bomb_that_announces_nothing_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    frame = compressor.compress(bytes(1 << 20))
    with pytest.raises(InvalidInput, match="how long"):
        expand(frame, 1 << 20)


def test_a_bomb_that_lies_about_its_length_is_refused() -> None:
    frame = bytearray(compress(bytes(1000)))
    # A frame's descriptor says how its content's length is written; this one in two bytes, less 256.
    assert frame[4] >> 6 == 1
    frame[5:7] = (300 - 256).to_bytes(2, "little")
    with pytest.raises(InvalidInput):
        expand(bytes(frame), 300)


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_garbage_in_place_of_a_frame_is_refused(data: bytes, size_bytes: int) -> None:
    with contextlib.suppress(InvalidInput):
        assert len(expand(data, size_bytes)) == size_bytes


@given(st.binary(max_size=5000))
def test_what_is_compressed_expands_to_itself(data: bytes) -> None:
    assert expand(compress(data), len(data)) == expand_at_most(compress(data), len(data)) == data


def test_bytes_behind_a_frame_are_refused() -> None:
    with pytest.raises(InvalidInput):
        expand(compress(b"content") + b"more", 7)
