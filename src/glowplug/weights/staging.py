"""From files onto a device: each thread has two buffers, and copies from one while it fills the other.

Pinning host memory takes longer than copying it (9.2 of 11.5 s for 62 GiB, as published for CRIU's CUDA
plugin), so a few small buffers are pinned, by the threads themselves, the first while nothing has been read
yet; none waits for all. What moves bytes is a :class:`Copier`: CUDA's is in :mod:`glowplug.weights.tensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from glowplug.weights.plan import Block, Piece
from glowplug.weights.reading import Lander, read_into

BUFFERS_PER_THREAD = 2


class Copier(Protocol):
    """One thread's way to the device."""

    def buffer(self, size_bytes: int) -> tuple[Any, memoryview]:
        """A host buffer the device can fetch from, as the copier knows it and as bytes."""
        ...

    def copy(self, buffer: Any, start: int, piece: Piece) -> None:
        """Begin to copy the piece, which lies at ``start`` of ``buffer``, to its tensor."""
        ...

    def mark(self) -> Any:
        """Something to wait for: the end of all copies that were begun so far."""
        ...

    def wait(self, mark: Any) -> None:
        """Until they have ended."""
        ...


class StagedLanding:
    """A landing for threads of which each gets a copier from ``new_copier``."""

    def __init__(self, new_copier: Callable[[], Copier], block_bytes: int) -> None:
        self._new_copier = new_copier
        self._block_bytes = block_bytes

    def lander(self) -> Lander:
        """Called in the thread that will use it."""
        return _StagedLander(self._new_copier(), self._block_bytes)


class _StagedLander:
    def __init__(self, copier: Copier, block_bytes: int) -> None:
        self._copier = copier
        self._block_bytes = block_bytes
        self._buffers: list[tuple[Any, memoryview]] = []
        self._under_way: list[tuple[Any, Block] | None] = [None] * BUFFERS_PER_THREAD
        self._next = 0

    def take(self, descriptor: int, block: Block) -> list[Block]:
        """See :class:`~glowplug.weights.reading.Lander`."""
        turn, self._next = self._next, (self._next + 1) % BUFFERS_PER_THREAD
        arrived = self._finish(turn)
        if turn == len(self._buffers):
            self._buffers.append(self._copier.buffer(self._block_bytes))
        buffer, view = self._buffers[turn]
        read_into(descriptor, [view[: block.length]], block)
        start = 0
        for piece in block.pieces:
            self._copier.copy(buffer, start, piece)
            start += piece.length
        self._under_way[turn] = (self._copier.mark(), block)
        return arrived

    def drain(self) -> list[Block]:
        """See :class:`~glowplug.weights.reading.Lander`. The older first."""
        turns = [(self._next + number) % BUFFERS_PER_THREAD for number in range(BUFFERS_PER_THREAD)]
        return [block for turn in turns for block in self._finish(turn)]

    def _finish(self, turn: int) -> list[Block]:
        under_way, self._under_way[turn] = self._under_way[turn], None
        if under_way is None:
            return []
        mark, block = under_way
        self._copier.wait(mark)
        return [block]
