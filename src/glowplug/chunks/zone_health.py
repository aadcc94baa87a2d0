"""What a zone's servers have been like lately: whom to leave alone for a while, and how long to wait for one.

All of it is advice. A server that is left alone comes back on probation: one request tries it, and only an
answer in time brings the others back.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, fields

from glowplug.types.clock import Clock

FAILURES_TO_SKIP = 3
FIRST_SKIP_S = 1.0
LONGEST_SKIP_S = 30.0

HEDGE_FLOOR_S = 0.05
HEDGE_CEILING_S = 2.0
HEDGE_QUANTILE = 0.95
_REMEMBERED = 256
_RECOMPUTED_AFTER = 16

HEDGES_SAVED_UP = 32.0
HEDGES_PER_READ = 0.1
"""Second requests may add a tenth to the load in the long run: a zone that is slow because it is overloaded
is not helped by twice the requests."""


class ServerHealth:
    """One server's record. Safe to use from many threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._skip_s = FIRST_SKIP_S
        self._skipped_until_s: float | None = None

    @property
    def is_skipped(self) -> bool:
        """It is being left alone, or on probation."""
        return self._skipped_until_s is not None

    def may_ask(self) -> bool:
        """Whether to ask it now. A yes while it is skipped is its one trial for the time being."""
        if self._skipped_until_s is None:
            return True
        with self._lock:
            now_s = self._clock.monotonic()
            if self._skipped_until_s is None:
                return True
            if now_s < self._skipped_until_s:
                return False
            self._skipped_until_s = now_s + self._skip_s  # nobody else tries it until this trial is over
            return True

    def answered(self) -> None:
        """It gave what it was asked for, in time."""
        if self._failures == 0 and self._skipped_until_s is None:
            return
        with self._lock:
            self._failures = 0
            self._skip_s = FIRST_SKIP_S
            self._skipped_until_s = None

    def failed(self) -> bool:
        """It failed, or somebody else was faster. True if this is why it is left alone from now on."""
        with self._lock:
            self._failures += 1
            if self._skipped_until_s is not None:
                self._skip_s = min(2 * self._skip_s, LONGEST_SKIP_S)
                self._skipped_until_s = self._clock.monotonic() + self._skip_s
                return False
            if self._failures < FAILURES_TO_SKIP:
                return False
            self._skipped_until_s = self._clock.monotonic() + self._skip_s
            return True


class Patience:
    """How long to wait for an answer before asking somebody else as well. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._since_computed = 0
        self._hedges = HEDGES_SAVED_UP
        self.hedge_after_s = HEDGE_FLOOR_S

    def took(self, latency_s: float) -> None:
        """A read was answered after this long."""
        with self._lock:
            self._latencies_s.append(latency_s)
            self._hedges = min(self._hedges + HEDGES_PER_READ, HEDGES_SAVED_UP)
            self._since_computed += 1
            if self._since_computed >= _RECOMPUTED_AFTER:
                self._since_computed = 0
                usual_s = sorted(self._latencies_s)[int(HEDGE_QUANTILE * (len(self._latencies_s) - 1))]
                self.hedge_after_s = min(max(usual_s, HEDGE_FLOOR_S), HEDGE_CEILING_S)

    def may_hedge(self) -> bool:
        """Whether a second request may be made now; a yes is counted."""
        with self._lock:
            if self._hedges < 1.0:
                return False
            self._hedges -= 1.0
            return True


@dataclass
class ZoneCounters:
    """What a zone did so far. ``hits`` and ``misses`` are the cache servers' own word."""

    reads: int = 0
    read_bytes: int = 0
    hits: int = 0
    misses: int = 0
    hedges: int = 0
    hedges_won: int = 0
    failures: int = 0
    skips: int = 0
    region_reads: int = 0


class Counting:
    """Counters that many threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = ZoneCounters()

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._counters, name, getattr(self._counters, name) + amount)

    def snapshot(self) -> ZoneCounters:
        """A copy of them as they are now."""
        with self._lock:
            return ZoneCounters(
                **{field.name: getattr(self._counters, field.name) for field in fields(ZoneCounters)}
            )
