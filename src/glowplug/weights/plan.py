"""In which pieces files are read: blocks of megabytes, each read at once, cut where tensors are skipped.

A block holds parts of one tensor or of many; a tensor's bytes lie in one block or in several. Blocks are in
the order of the tensors, so that the first tensors are whole first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glowplug.weights.header import Entry

BLOCK_BYTES = 8 << 20
MAX_PIECES = 512
"""Pieces of a block are read by one call; the kernel takes 1,024 (IOV_MAX)."""


@dataclass(frozen=True)
class Piece:
    """``length`` bytes of tensor ``tensor`` (a number), from ``offset`` of it on."""

    tensor: int
    offset: int
    length: int


@dataclass(frozen=True)
class Block:
    """``length`` bytes of file ``file`` (a number) from ``offset`` on: its pieces, one behind the other."""

    file: int
    offset: int
    length: int
    pieces: tuple[Piece, ...]


def plan_blocks(tensors: Sequence[tuple[int, Entry]], block_bytes: int = BLOCK_BYTES) -> list[Block]:
    """Blocks of at most ``block_bytes`` that hold exactly the tensors, ``(file, entry)`` in reading order."""
    blocks: list[Block] = []
    pieces: list[Piece] = []
    file = start = end = 0

    def close() -> None:
        if pieces:
            blocks.append(Block(file, start, end - start, tuple(pieces)))
            pieces.clear()

    for number, (tensor_file, entry) in enumerate(tensors):
        done = 0
        while done < entry.size_bytes:
            at = entry.begin + done
            is_next = bool(pieces) and (tensor_file, at) == (file, end)
            if not is_next or end - start >= block_bytes or len(pieces) >= MAX_PIECES:
                close()
                file, start, end = tensor_file, at, at
            length = min(entry.size_bytes - done, block_bytes - (end - start))
            pieces.append(Piece(number, done, length))
            done += length
            end += length
    close()
    return blocks
