"""Content to keep, and tables of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.run import Run
from glowplug.chunks.table import ChunkTable

SIZES = (1, 4095, 4096, 4097, 100_000, CHUNK_BYTES)
"""Around every boundary there is."""

TIMEOUT_S = 60.0


def contents(sizes: Iterable[int], seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(size) for size in sizes]


def chunks_of(bodies: Iterable[bytes]) -> list[Chunk]:
    return [Chunk.of(body) for body in bodies]


def run_of(bodies: Sequence[bytes], gap: bytes = b"between") -> Run:
    """These, in one buffer, with something between them."""
    offsets = [at * len(gap) + sum(map(len, bodies[:at])) for at in range(len(bodies))]
    return Run(chunks_of(bodies), offsets, gap.join(bodies))


def table_file(path: Path, chunks: Sequence[Chunk]) -> Path:
    """``chunks.bin`` of these."""
    path.write_bytes(ChunkTable.pack(chunks))
    return path
