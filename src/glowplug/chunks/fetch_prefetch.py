"""Fetching many chunks ahead of their use, planned a slice at a time so that its length costs nothing.

What is given up (cancelled, the disk full, the tiers gone) stays fetchable: a prefetch is only ever advice.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.placement import PackRange
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput

RANGE_BYTES = 2 << 20
"""The longest request. 264 MB traced, 20 ms away: 0.71 s; with 1 MiB 0.90 s, with 4 MiB 0.65 s and
50 MB more memory. A reader whose chunk is in one waits for the rest of it, so longer is not better."""

SLICE_BYTES = 32 << 20
"""How far ahead ranges are planned. More joins more neighbours (237 requests, not 270 as with half of it, for
264 MB traced; no fewer with twice of it), less keeps closer to the order asked for."""

SLICE_CHUNKS = 1024

MAX_FAILED_RANGES = 16
"""In a row; then the tiers are taken to be gone and the rest is left to whoever reads it."""


class PlannedRange(NamedTuple):
    """A range to read, and its chunks, which were not here at the queue's arrival ``looked_at``."""

    range: PackRange
    chunks: Sequence[Chunk]
    looked_at: int


class Prefetch:
    """A prefetch under way: the handle its asker holds, and the state that the fetcher's workers advance."""

    def __init__(
        self,
        blob: RemoteBlob,
        order: Iterable[int],
        *,
        range_bytes: int = RANGE_BYTES,
        is_ahead: bool = False,
        is_guess: bool = False,
        when_given_up: Callable[[Sequence[int]], None] = lambda _indices: None,
    ) -> None:
        """``order`` are chunk indices, first wanted first. Raises InvalidInput for one out of range.

        ``range_bytes`` is the longest request; ``is_ahead`` that this is read-ahead, which hardly any of is
        here; ``is_guess`` that more than this will be wanted; ``when_given_up`` hears of what was not begun
        to be fetched, and of some that was, perhaps.
        """
        self.blob = blob
        self.range_bytes = range_bytes
        self.is_ahead = is_ahead
        self.is_guess = is_guess
        self.turn = -1  # the queue's
        self._when_given_up = when_given_up
        self.ranges: deque[PlannedRange] = deque()  # planned, for whoever took this from the queue's ring
        self._order = array("I", dict.fromkeys(_checked(order, len(blob.table))))
        self._next = 0
        self._lock = threading.Lock()
        self._open_chunks = len(self._order)
        self._done_bytes = 0
        self._total_bytes: int | None = None
        self._failed_ranges = 0
        self._over = threading.Event()
        self.failed_chunks = 0
        self.error: GlowplugError | None = None
        if not self._order:
            self._over.set()

    def cancel(self) -> None:
        """Fetch no more of it; what is in flight still arrives. Does nothing once it is over."""
        self.give_up(Conflict("The prefetch was cancelled.", remedy="Start it again if it is wanted."))

    def wait(self, timeout_s: float) -> bool:
        """Whether all of it is on this machine, once that is decided; False too if time ran out before."""
        return self._over.wait(timeout_s) and self.error is None and not self.failed_chunks

    def progress(self) -> tuple[int, int]:
        """Bytes that are there, and bytes of all of it."""
        if self._total_bytes is None:  # asked for by people, not by a cold start
            self._total_bytes = sum(map(self.blob.table.sizes.__getitem__, self._order))
        return self._done_bytes, self._total_bytes

    @property
    def is_over(self) -> bool:
        """Nothing more will be fetched for it: finished, cancelled or given up (then ``error`` tells)."""
        return self._over.is_set()

    @property
    def has_more(self) -> bool:
        """There are chunks that no range was taken for yet."""
        return not self.is_over and (bool(self.ranges) or self._next < len(self._order))

    def next_slice(self) -> dict[int, Chunk]:
        """The next chunks to plan for, by index. Only for the worker that took this from the ring."""
        table = self.blob.table
        taken: dict[int, Chunk] = {}
        taken_bytes = 0
        for index in self._order[self._next : self._next + SLICE_CHUNKS]:
            if taken_bytes >= SLICE_BYTES:
                break
            taken[index] = chunk = table[index]
            taken_bytes += chunk.size_bytes
        self._next += len(taken)
        return taken

    def settled(self, size_bytes: int, error: GlowplugError | None, *, chunks: int = 1) -> None:
        """One (or more) of its chunks is there now, or cannot be had."""
        with self._lock:
            self._open_chunks -= chunks
            if error is None:
                self._done_bytes += size_bytes
            else:
                self.failed_chunks += chunks
            if self._open_chunks <= 0:
                self._over.set()

    def note_range(self, error: GlowplugError | None) -> None:
        """A range of it was read, or could not be: too many failures in a row end the prefetch."""
        with self._lock:
            self._failed_ranges = 0 if error is None else self._failed_ranges + 1
            is_hopeless = self._failed_ranges >= MAX_FAILED_RANGES
        if error is not None and is_hopeless:
            self.give_up(error)

    def give_up(self, error: GlowplugError) -> None:
        """Fetch no more of it, because of ``error``. Does nothing once it is over."""
        with self._lock:
            if self._over.is_set():
                return
            self.error = error
            self._over.set()
            planned = [index for wanted in list(self.ranges) for index in wanted.range.indices]
            left = [*planned, *self._order[self._next :]]
        self._when_given_up(left)


def _checked(order: Iterable[int], chunks: int) -> Iterable[int]:
    for index in order:
        if not 0 <= index < chunks:
            raise InvalidInput(
                f"The blob has {chunks} chunks, so there is no chunk {index} to prefetch.",
                remedy="Use a trace of this image.",
            )
        yield index
