"""``chunks.bin``: what was packed is read back, and nothing else is taken for a table."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, aligned
from glowplug.chunks.table import HEADER, ChunkTable
from glowplug.types.errors import InvalidInput

chunk_lists = st.lists(
    st.builds(Chunk, st.binary(min_size=32, max_size=32), st.integers(1, CHUNK_BYTES)),
    max_size=20,
    unique_by=lambda chunk: chunk.id,
)
ONE = Chunk(bytes(range(32)), 5000)
TWO = Chunk(bytes(range(32, 64)), CHUNK_BYTES)


@given(chunk_lists)
def test_unpacking_is_the_inverse_of_packing(chunks: list[Chunk]) -> None:
    table = ChunkTable(ChunkTable.pack(chunks))
    assert (list(table), len(table)) == (chunks, len(chunks))
    assert table.content_bytes == sum(chunk.size_bytes for chunk in chunks)
    assert table.blob_bytes == sum(aligned(chunk.size_bytes) for chunk in chunks) == table.offset(len(chunks))


@given(chunk_lists.filter(bool), st.data())
def test_every_byte_of_the_blob_belongs_to_the_chunk_before_it(
    chunks: list[Chunk], data: st.DataObject
) -> None:
    table = ChunkTable(ChunkTable.pack(chunks))
    offset = data.draw(st.integers(0, table.blob_bytes - 1))
    index = table.at(offset)
    assert table.offset(index) <= offset < table.offset(index) + aligned(table[index].size_bytes)


def test_a_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "chunks.bin"
    path.write_bytes(ChunkTable.pack([ONE, TWO]))
    table = ChunkTable.open(path)
    assert list(table) == [ONE, TWO]
    assert list(table.starts) == [0, 2, 258]
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="empty"):
        ChunkTable.open(path)


def test_it_is_a_sequence() -> None:
    table = ChunkTable(ChunkTable.pack([ONE, TWO]))
    assert (table[-1], table[-2], table[:1], table[::-1]) == (TWO, ONE, [ONE], [TWO, ONE])
    assert table.index(TWO) == 1
    for index in (2, -3, -5, 1 << 40):
        with pytest.raises(IndexError):
            table[index]


@pytest.mark.parametrize("offset", [-1, 258 * 4096, 1 << 60])
def test_no_chunk_lies_outside_of_the_blob(offset: int) -> None:
    with pytest.raises(IndexError):
        ChunkTable(ChunkTable.pack([ONE, TWO])).at(offset)


def test_no_chunks_are_a_table_too() -> None:
    table = ChunkTable(ChunkTable.pack([]))
    assert (len(table), table.blob_bytes, list(table.starts)) == (0, 0, [0])


@given(st.binary(max_size=200))
def test_random_bytes_are_no_table(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        ChunkTable(data)


@pytest.mark.parametrize("position", range(HEADER.size))
def test_every_byte_of_the_header_counts(position: int) -> None:
    data = bytearray(ChunkTable.pack([ONE, TWO]))
    data[position] ^= 0x10
    with pytest.raises(InvalidInput):
        ChunkTable(bytes(data))


def test_lengths_that_no_chunk_has_are_refused() -> None:
    for size_bytes in (0, CHUNK_BYTES + 1, 0xFFFFFFFF):
        data = HEADER.pack(b"GPCHUNK1", 1, 0, aligned(size_bytes), size_bytes) + bytes(32)
        with pytest.raises(InvalidInput, match="impossible size"):
            ChunkTable(data + struct.pack("<I", size_bytes))


def test_cut_off_or_longer_it_is_no_table() -> None:
    data = ChunkTable.pack([ONE, TWO])
    for wrong in (data[:-1], data + b"\0", data[: HEADER.size], data[: HEADER.size - 1]):
        with pytest.raises(InvalidInput):
            ChunkTable(wrong)
