"""What every tier that keeps chunks asks of one before it lets it in."""

from __future__ import annotations

from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, ChunkInvalid


def accept(chunk: Chunk, data: Buffer, tier: str) -> None:
    """Raise ChunkInvalid unless ``data`` is the chunk, and of a size that a chunk can have."""
    if not 0 < chunk.size_bytes <= CHUNK_BYTES:
        raise ChunkInvalid(
            f"A chunk of {chunk.size_bytes} bytes cannot be.",
            remedy=f"Cut content into chunks of 1 to {CHUNK_BYTES} bytes.",
            chunk=chunk.id.hex(),
            tier=tier,
        )
    chunk.verify(data, tier)
