"""What the SSD tier tells about itself: for metrics, `image ls` and `image verify`."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class SsdStats:
    """``used_bytes`` and ``chunks`` are of the whole store, the counts of this process since it opened it."""

    used_bytes: int
    chunks: int
    hits: int
    misses: int
    corrupt_chunks: int
    full_errors: int
    index_resets: int


@dataclass(frozen=True)
class Usage:
    """How much of a chunk table is here."""

    chunks: int
    bytes: int
    total_chunks: int
    total_bytes: int

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return self.chunks == self.total_chunks


@dataclass(frozen=True)
class VerifyReport:
    """What hashing everything again found. What was damaged is gone, to be fetched again."""

    chunks: int
    bytes: int
    damaged: int
    was_cancelled: bool


class Counts:
    """Counters that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += number

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
