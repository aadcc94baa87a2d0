"""Time as a parameter. Logic takes a :class:`Clock`; tests hand it a :class:`ManualClock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time. Duties: ``monotonic`` never goes back; ``wall`` is Unix time in seconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def wall(self) -> float:
        """Unix time, seconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix time, seconds."""
        return time.time()


class ManualClock:
    """A clock that moves only when told to."""

    def __init__(self, start_s: float = 1_000_000.0) -> None:
        self._now_s = start_s

    def monotonic(self) -> float:
        """The time set so far, seconds."""
        return self._now_s

    def wall(self) -> float:
        """The same reading as :meth:`monotonic`."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward. Raises ValueError for a negative step."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self._now_s += seconds
