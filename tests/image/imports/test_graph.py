"""A graph comes back as it was, and a damaged one not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chunks.blobs import held

from glowplug.chunks.table import ChunkTable
from glowplug.image.imports import graph as graphs
from glowplug.image.imports.command import predicted_chunks
from glowplug.image.imports.graph import ImportGraph, Node
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.types.errors import InvalidInput

CHUNKS = 12


@pytest.fixture(scope="module")
def table() -> ChunkTable:
    pieces = held([100] * CHUNKS).content
    children = {
        f"{number:02}".encode(): Inode(0o100644, size_bytes=chunk.size_bytes, extents=(Extent(0, (chunk,)),))
        for number, chunk in enumerate(pieces)
    }
    return ChunkTable(write_index(Tree(Inode(0o40755, children=children)))[1])


GRAPH = ImportGraph.of(
    [
        Node("torch", (1, 2), [(3, 1)]),
        Node("torch.nn", (0, 3), [(4, 2)]),
        Node("/lib/libtorch.so", (), [(9, 3)]),
        Node("json", (), [(0, 1)]),
        Node("site", (), [(1, 1)]),
        Node("/usr/bin/python3.11", (), [(2, 1)]),
        Node("/usr/bin/serve", (1,), [(6, 1)]),
        Node("/", (), [(7, 1), (8, 1)]),
    ]
)


def test_it_comes_back(table: ChunkTable) -> None:
    again = ImportGraph.parse(GRAPH.encode(), table)
    assert again.names == GRAPH.names
    assert again.encode() == GRAPH.encode()
    assert again.loaded([1]) == [1, 0, 2, 3]


STARTUP = [7, 8, 2, 1]  # small files, the interpreter, site


@pytest.mark.parametrize(
    ("command", "chunks"),
    [
        (["python", "-c", "import torch"], [*STARTUP, 3, 4, 5, 0, 9, 10, 11]),
        (["/venv/bin/python3.11", "-X", "dev", "-c", "x = 1; import json"], [*STARTUP, 0]),
        (["python3", "-m", "torch.nn"], [*STARTUP, 3, 4, 5, 0, 9, 10, 11]),
        (["serve", "--port", "1"], [*STARTUP, 6, 4, 5, 3, 9, 10, 11, 0]),
        (["/usr/bin/serve"], [*STARTUP, 6, 4, 5, 3, 9, 10, 11, 0]),
        (["python", "/nowhere.py"], STARTUP),
        (["/bin/other"], []),
        ([], []),
    ],
)
def test_a_command_reads_what_it_enters_and_loads(
    table: ChunkTable, command: list[str], chunks: list[int]
) -> None:
    found = predicted_chunks(ImportGraph.parse(GRAPH.encode(), table), command)
    assert sorted(found) == sorted(chunks)
    assert list(found[: len(STARTUP)]) == chunks[: len(STARTUP)]


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(table: ChunkTable, at: int, value: int) -> None:
    data = bytearray(GRAPH.encode())
    data[at % len(data)] = value
    try:
        graph = ImportGraph.parse(bytes(data), table)
    except InvalidInput:
        return
    found = graph.chunks(graph.loaded(range(len(graph.names))))
    assert all(index < CHUNKS for index in found)


@given(st.binary(max_size=120))
def test_anything_else_is_refused(table: ChunkTable, data: bytes) -> None:
    for content in (data, GRAPH.encode()[: len(data)], GRAPH.encode() + data + b"x"):
        with pytest.raises(InvalidInput):
            ImportGraph.parse(content, table)


def test_a_graph_of_another_image_is_refused(table: ChunkTable) -> None:
    with pytest.raises(InvalidInput, match="a chunk that the image does not have"):
        ImportGraph.parse(ImportGraph.of([Node("a", (), [(CHUNKS, 1)])]).encode(), table)


def test_chunks_that_are_named_over_and_over_end_somewhere(
    table: ChunkTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_NAMED_CHUNKS", 30)
    graph = ImportGraph.of([Node("a", (), [(0, 10)] * 3 + [(10, 2)])])
    assert list(graph.chunks([0])) == list(range(10))


def test_a_graph_that_would_be_too_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPH_BYTES", 80)
    with pytest.raises(InvalidInput, match="too large"):
        ImportGraph.of([Node("a", [0] * 11, [])])
