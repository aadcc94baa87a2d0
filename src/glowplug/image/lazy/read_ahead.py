"""What to fetch ahead of a reader of whom nothing is known but what it lacked last.

Whoever reads an image here and there reads more around there: a directory of modules, the pages of a library.
So each miss brings a window of the blob around it, on other connections than the chunk itself. How large
a window follows from how far away the tiers are: as much as can come in about the time that a miss takes,
after a few misses in short order. A reader that comes to the middle of what was fetched ahead has the next
window fetched, so one that reads in order does not wait again.

What is missed tells what kind is read: of a long file its own pages, of small ones their neighbours, never a
library that happens to lie among them. Replaying a recorded ``import torch``, which took as long either way
(2.2 s from 2 ms away, n = 6; 3.5 s from 20 ms, n = 3), this fetched 533 MB instead of 590, and 809 instead
of 942. Simulated with this class and that recording, and not worth their while: other sizes and shapes of
the window, whole files of up to 32 MiB, a shorter first request.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from operator import or_

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.fetch_plan import beside
from glowplug.chunks.table import ChunkTable

SMALLEST_BYTES = 1 << 20
LARGEST_BYTES = 12 << 20
"""Chosen by replaying one recorded ``import torch``, 20 ms away: n = 1 for each of eight sizes."""

BYTES_PER_S = 500e6  # of all connections together
BACK_SHARE = 2  # a window is half as long before the chunk as behind it
BURST_S = 1.0  # a miss this long after the last one is the first of others

_NEW, _ASKED, _MARKED = 0, 1, 2


class ReadAhead:
    """Of one blob. Safe to use from many threads."""

    def __init__(self, table: ChunkTable) -> None:
        self._starts = table.starts
        self._chunks = len(table)
        self._states = bytearray(self._chunks)
        self._is_long = _of_long_files(table)
        self._lock = threading.Lock()
        self._waits_s: deque[float] = deque(maxlen=16)
        self._last_miss_s = -math.inf
        self._misses = 0

    def missed(self, blob: RemoteBlob, first: int, last: int, now_s: float) -> list[int]:
        """What to fetch besides these chunks, which a reader waits for, and those that come along with them.

        In the order to fetch it. Little where a trace is being followed, since little else will be read.
        """
        with self._lock:
            is_burst = now_s - self._last_miss_s < BURST_S and not blob.is_prefetched
            self._misses = self._misses + 1 if is_burst else 0
            self._last_miss_s = now_s
            for index in (*range(first, last + 1), *beside(blob, first)):
                self._states[index] = _ASKED
            size_bytes = self._size_bytes()
            start = self._starts[first] * ALIGN_BYTES
            after = self._after(last, size_bytes)
            before = self._take(bisect_left(self._starts, self._back(start, size_bytes)), first, first)
            return after + before

    def reached(self, first: int, last: int) -> list[int]:
        """What to fetch since these chunks were read for the first time."""
        if self._states.find(_MARKED, first, last + 1) < 0:
            return []
        with self._lock:
            marked = self._states.find(_MARKED, first, last + 1)
            if marked < 0:
                return []
            self._states[marked] = _ASKED
            return self._after(last, self._size_bytes())

    def waited(self, seconds: float) -> None:
        """A reader had a chunk this long after it missed it."""
        self._waits_s.append(seconds)

    def forget(self, indices: Iterable[int]) -> None:
        """These are not here and not being fetched ahead."""
        for index in indices:
            self._states[index] = _NEW

    def _size_bytes(self) -> int:
        """How far to fetch behind a chunk."""
        waits_s = sorted(self._waits_s)
        reach_bytes = int(waits_s[len(waits_s) // 2] * BYTES_PER_S) if waits_s else 0
        ramp_bytes = SMALLEST_BYTES << min(self._misses, 10)
        return max(SMALLEST_BYTES, min(LARGEST_BYTES, reach_bytes, ramp_bytes))

    def _after(self, last: int, size_bytes: int) -> list[int]:
        """The window behind chunk ``last``, marked for :meth:`reached`."""
        end = self._starts[last + 1] * ALIGN_BYTES
        after = self._take(last + 1, self._index_at(end + size_bytes), last)
        if after:
            self._states[after[len(after) // 2]] = _MARKED
        return after

    def _back(self, start: int, size_bytes: int) -> int:
        return max(0, start - size_bytes // BACK_SHARE) // ALIGN_BYTES

    def _index_at(self, offset: int) -> int:
        """The end of the chunks that start before ``offset``."""
        return min(self._chunks, bisect_left(self._starts, offset // ALIGN_BYTES))

    def _take(self, first: int, end: int, like: int) -> list[int]:
        """Those of the range that nobody asked for, of ``like``'s kind; now somebody has."""
        is_long = self._is_long[like]
        taken = []
        index = self._states.find(_NEW, first, end)
        while index >= 0:
            if self._is_long[index] == is_long:
                taken.append(index)
                self._states[index] = _ASKED
            index = self._states.find(_NEW, index + 1, end)
        return taken


def _of_long_files(table: ChunkTable) -> bytes:
    """1 for each chunk of a file of several: those of full size, and what follows one."""
    is_full = [size_bytes == CHUNK_BYTES for size_bytes in table.sizes]
    return bytes(map(or_, is_full, [False, *is_full]))
