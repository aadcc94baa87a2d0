"""The import graph of an image: files that load other files, and the chunks that loading each of them reads.

It is advice and comes from elsewhere: a graph that is damaged or of another image raises InvalidInput, and
whoever wanted it gets on without. The file ``imports.bin``, all numbers u32 little-endian::

    "GPIMPORT"                             8 bytes
    version (1), nodes, edges, spans, names_bytes
    names        nodes names in UTF-8, each ended by a newline: ``torch.nn`` or ``/usr/bin/python3.11``
    edge_ends    where the edges of each node end, nodes numbers that never fall, the last is ``edges``
    edges        node numbers, in the order in which a node loads others
    span_ends    the same for spans
    spans        pairs: first chunk of the image's table, how many
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import InvalidInput

MAGIC = b"GPIMPORT"
VERSION = 1
MAX_GRAPH_BYTES = 32 << 20
MAX_NAMED_CHUNKS = 1 << 20  # by one command, counted as often as they are named
_HEADER = struct.Struct("<8s5I")
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class Node:
    """A module, program or library. ``spans``: (first chunk, count) of it; ``loads``: numbers of nodes."""

    name: str
    loads: Sequence[int]
    spans: Sequence[tuple[int, int]]


class ImportGraph:
    """Who loads whom. Names are unique."""

    def __init__(
        self,
        names: list[str],
        edge_ends: array[int],
        edges: array[int],
        span_ends: array[int],
        spans: array[int],
    ) -> None:
        self.names = names
        self._numbers = {name: number for number, name in enumerate(names)}
        self._edge_ends = edge_ends
        self._edges = edges
        self._span_ends = span_ends
        self._spans = spans

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> ImportGraph:
        """Of these, which are numbered in their order. Raises InvalidInput if they are too many."""
        names: list[str] = []
        edge_ends, edges, span_ends, spans = (array("I") for _ in range(4))
        for node in nodes:
            names.append(node.name)
            edges.extend(node.loads)
            edge_ends.append(len(edges))
            for first, count in node.spans:
                spans.extend((first, count))
            span_ends.append(len(spans) // 2)
            if (len(edges) + len(spans)) * _NUMBER_BYTES > MAX_GRAPH_BYTES // 2:
                raise InvalidInput(
                    "The import graph of this image would be too large.",
                    remedy="The image is pushed without.",
                )
        return cls(names, edge_ends, edges, span_ends, spans)

    @classmethod
    def parse(cls, data: bytes, table: ChunkTable) -> ImportGraph:
        """The graph in a file of the image with this table. Raises InvalidInput."""
        if len(data) < _HEADER.size:
            raise _damaged("it is cut off")
        magic, version, nodes, edges, spans, names_bytes = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise _damaged(f"it is not of version {VERSION}")
        numbers = 2 * nodes + edges + 2 * spans
        if len(data) != _HEADER.size + names_bytes + numbers * _NUMBER_BYTES:
            raise _damaged("it is not as long as it says")
        at = _HEADER.size + names_bytes
        try:
            names = data[_HEADER.size : at].decode().split("\n")[:-1]
        except UnicodeDecodeError as problem:
            raise _damaged("its names are not text") from problem
        arrays = []
        for count in (nodes, edges, nodes, 2 * spans):
            arrays.append(_numbers(data[at : at + count * _NUMBER_BYTES]))
            at += count * _NUMBER_BYTES
        edge_ends, loads, span_ends, places = arrays
        if len(names) != nodes or len(set(names)) != nodes:
            raise _damaged("its names are not those of its nodes")
        for ends, count in ((edge_ends, edges), (span_ends, spans)):
            if (ends[-1] if ends else 0) != count or any(one > next_one for one, next_one in pairwise(ends)):
                raise _damaged("its lists overlap")
        if edges and max(loads) >= nodes:
            raise _damaged("it names a node that is not there")
        if any(first + count > len(table) for first, count in zip(places[::2], places[1::2], strict=True)):
            raise _damaged("it names a chunk that the image does not have")
        return cls(names, edge_ends, loads, span_ends, places)

    def encode(self) -> bytes:
        """The file's content."""
        names = "".join(f"{name}\n" for name in self.names).encode()
        header = _HEADER.pack(
            MAGIC, VERSION, len(self.names), len(self._edges), len(self._spans) // 2, len(names)
        )
        arrays = (self._edge_ends, self._edges, self._span_ends, self._spans)
        return header + names + b"".join(map(_bytes_of, arrays))

    @property
    def is_useful(self) -> bool:
        """Something in it loads something else."""
        return len(self._edges) > 0

    def number(self, name: str) -> int | None:
        """The node of this name."""
        return self._numbers.get(name)

    def loaded(self, starts: Iterable[int]) -> list[int]:
        """These nodes and all that they load, each once, in the order in which it is loaded."""
        seen: dict[int, None] = {}
        pending = [iter(list(starts))]
        while pending:
            number = next(pending[-1], None)
            if number is None:
                pending.pop()
            elif number not in seen:
                seen[number] = None
                begin = self._edge_ends[number - 1] if number else 0
                pending.append(iter(self._edges[begin : self._edge_ends[number]]))
        return list(seen)

    def chunks(self, numbers: Iterable[int]) -> array[int]:
        """The chunks of these nodes, each once, in their order, up to MAX_NAMED_CHUNKS."""
        found: dict[int, None] = {}
        named = 0
        for number in numbers:
            begin = self._span_ends[number - 1] if number else 0
            for span in range(begin, self._span_ends[number]):
                first, count = self._spans[2 * span], self._spans[2 * span + 1]
                named += count
                if named > MAX_NAMED_CHUNKS:
                    return array("I", found)
                found.update(dict.fromkeys(range(first, first + count)))
        return array("I", found)


def _numbers(data: bytes) -> array[int]:
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _bytes_of(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _damaged(why: str) -> InvalidInput:
    return InvalidInput(
        f"This is not an import graph of the image: {why}.",
        remedy="Remove imports.bin from the image's folder and from the region; the next push makes it anew.",
    )
