"""Content to move around: a table of chunks and a store that holds them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.table import ChunkTable


class Held:
    """A store of these pieces; ``asked`` are the chunks that were read from it."""

    tier = "ssd"

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.content = {Chunk.of(piece): piece for piece in pieces}
        self.asked: list[Chunk] = []

    @property
    def table(self) -> ChunkTable:
        return ChunkTable(ChunkTable.pack(self.content))

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        self.asked.append(chunk)
        if chunk not in self.content:
            raise chunk.missing(self.tier)
        return self.content[chunk]

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        return [chunk for chunk in dict.fromkeys(chunks) if chunk not in self.content]


def held(sizes: Sequence[int], seed: int = 0) -> Held:
    """Random pieces of these sizes, all different for all seeds."""
    source = random.Random(seed)
    return Held(source.randbytes(size) for size in sizes)
