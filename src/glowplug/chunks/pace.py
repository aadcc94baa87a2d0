"""Whether an answer comes fast enough: judged by its bytes per second, never by how long it takes in all.

A server that falls silent, or sends a byte now and then, is given up after a second and the rest of the
answer asked for again, with twice the patience each time: one that is merely slow to begin is waited for in
the end, and one that is gone costs :data:`PATIENCE_S` together. A slow server that keeps sending is never
disturbed.
"""

from __future__ import annotations

import threading

from glowplug.types.clock import Clock
from glowplug.types.errors import Unavailable

PATIENCE_S = (1.0, 2.0, 4.0)
"""How long the first, second, .. attempt may bring next to nothing. Object stores' first byte comes within
0.1 to 0.2 s (AWS: "Performance design patterns for Amazon S3"), of a cold one rarely after a second."""

LEAST_BYTES_PER_S = 16 << 10
"""Of one connection; less is next to nothing. A fetcher's 16 connections share 256 KiB/s then: no restore
from there is faster than a cold start."""

TICK_S = 0.25
"""How often a wait for bytes looks at the clock."""


class Stalled(Unavailable):
    """An answer brought next to nothing for a while; ``received`` is what came of its body."""

    def __init__(self, who: str, patience_s: float, received: bytes | memoryview = b"") -> None:
        super().__init__(
            f"{who} sent fewer than {LEAST_BYTES_PER_S >> 10} KiB/s for {patience_s:g} s.",
            remedy="Look at the network and at what the server reports.",
        )
        self.received = received


class Meter:
    """What has come from one server, counted as it comes. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.received_bytes = 0
        self.stalls = 0

    def add(self, *, received_bytes: int = 0, stalls: int = 0) -> None:
        """So much more has come, or so many attempts stalled."""
        with self._lock:
            self.received_bytes += received_bytes
            self.stalls += stalls


class Pace:
    """One attempt's progress. Not thread-safe, but for reading :attr:`received_bytes`."""

    def __init__(self, clock: Clock, patience_s: float, meter: Meter) -> None:
        self._clock = clock
        self._meter = meter
        self.patience_s = patience_s
        self.received_bytes = 0
        self._since_s = clock.monotonic()
        self._since_bytes = 0

    def got(self, count: int) -> None:
        """So many bytes more have come."""
        self.received_bytes += count
        self._meter.add(received_bytes=count)

    @property
    def is_stalled(self) -> bool:
        """Next to nothing has come for as long as the patience lasts."""
        now_s = self._clock.monotonic()
        if now_s - self._since_s < self.patience_s:
            return False
        is_slow = self.received_bytes - self._since_bytes < LEAST_BYTES_PER_S * self.patience_s
        self._since_s, self._since_bytes = now_s, self.received_bytes
        return is_slow


class Attempts:
    """How patient the attempts at one read are: more each time, unless the last one brought something."""

    def __init__(self) -> None:
        self._failed = 0

    @property
    def patience_s(self) -> float:
        """Of the attempt that is to be made now."""
        return PATIENCE_S[self._failed]

    def may_repeat(self, brought_bytes: int) -> bool:
        """An attempt stalled after so many bytes: whether to make another one."""
        self._failed = 1 if brought_bytes >= LEAST_BYTES_PER_S else self._failed + 1
        return self._failed < len(PATIENCE_S)
