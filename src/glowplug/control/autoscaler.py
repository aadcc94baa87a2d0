"""How many replicas a server should have. Pure logic on an injected clock: no I/O, no event loop.

The need of a moment is the number of requests (in flight and held) divided by ``target_concurrency``, rounded
up. Three rules turn it into a wish:

- **up**: follow the mean need of a short window, so that a single spike starts nothing extra; but a held
  request always wants at least one replica, at once.
- **down**: never below the highest need within ``scaledown_window_s``. A server that had a request within the
  window keeps one; after it, it falls to ``min_replicas``.
- **panic** (as in Knative): when the need is at least twice what is there, jump to it at once, and neither
  smooth nor shrink until the burst has been over for one short window.

``buffer_replicas`` come on top while the server is active; ``min`` and ``max`` bound everything.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from glowplug.types.clock import Clock
from glowplug.types.spec import Scaling

SHORT_WINDOW_S = 6.0
PANIC_FACTOR = 2
_SAMPLES_PER_WINDOW = 60


@dataclass(frozen=True)
class Load:
    """What a server is doing. ``peak`` is the highest ``in_flight + held`` since the last look."""

    ready: int
    starting: int
    in_flight: int
    held: int
    peak: int = 0

    @property
    def concurrency(self) -> int:
        """Requests somebody is waiting for."""
        return self.in_flight + self.held


@dataclass(frozen=True)
class Decision:
    """How many replicas there should be, and whether a burst is being answered."""

    desired: int
    is_panicking: bool


class _Window:
    """Readings of the last ``span_s`` seconds, thinned: of each slot of time the highest is kept."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._slot_s = span_s / _SAMPLES_PER_WINDOW
        self._readings: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float) -> None:
        if self._readings and now_s - self._readings[-1][0] < self._slot_s:
            slot_start_s, highest = self._readings[-1]
            # A later, equally high reading must not extend the slot for ever: the slot keeps its start.
            self._readings[-1] = (slot_start_s, max(highest, value))
        else:
            self._readings.append((now_s, value))
        # A slot's readings are up to one slot younger than its start.
        while self._readings and now_s - self._readings[0][0] > self._span_s + self._slot_s:
            self._readings.popleft()

    def highest(self) -> float:
        return max((value for _, value in self._readings), default=0.0)

    def mean(self) -> float:
        if not self._readings:
            return 0.0
        return sum(value for _, value in self._readings) / len(self._readings)


class Autoscaler:
    """Decides for one server. Ask :meth:`decide` regularly; every look is also a reading."""

    def __init__(self, scaling: Scaling, clock: Clock) -> None:
        self._clock = clock
        self._panic_until_s = -math.inf
        self._panic_desired = 0
        self._short = _Window(SHORT_WINDOW_S)
        self.configure(scaling)

    def configure(self, scaling: Scaling) -> None:
        """Follow other limits from now on (a new version was deployed)."""
        self._scaling = scaling
        self._needs = _Window(max(scaling.scaledown_window_s, 0.0))

    def decide(self, load: Load, last_activity_s: float | None) -> Decision:
        """The wish for now. ``last_activity_s``: when the last request came or ended (None: never)."""
        now_s = self._clock.monotonic()
        concurrency = max(load.concurrency, load.peak)
        need_now = self._replicas_for(concurrency)
        self._short.add(now_s, concurrency)
        self._needs.add(now_s, need_now if self._scaling.scaledown_window_s else 0)

        is_panicking = self._update_panic(now_s, need_now, load)
        smoothed = self._replicas_for(self._short.mean())
        is_active = concurrency > 0 or self._was_active_recently(now_s, last_activity_s)
        wish = max(min(smoothed, need_now), self._held_back(load, need_now))
        if is_active:
            wish = max(wish, 1)
        if is_panicking:
            wish = self._panic_desired = max(wish, self._panic_desired)
        if is_active:
            wish += self._scaling.buffer_replicas
        return Decision(self._bounded(wish), is_panicking)

    def _held_back(self, load: Load, need_now: int) -> int:
        """Not below what the window needed, as far as it exists: the window keeps, it never adds."""
        existing = load.ready + load.starting
        kept = min(int(self._needs.highest()), existing)
        return max(kept, 1 if load.held and need_now else 0)

    def _update_panic(self, now_s: float, need_now: int, load: Load) -> bool:
        existing = max(load.ready + load.starting, 1)
        is_burst = need_now >= PANIC_FACTOR * existing
        if is_burst:
            self._panic_until_s = now_s + SHORT_WINDOW_S
        if now_s >= self._panic_until_s:
            self._panic_desired = 0
            return False
        self._panic_desired = max(self._panic_desired, need_now)
        return True

    def _was_active_recently(self, now_s: float, last_activity_s: float | None) -> bool:
        if last_activity_s is None:
            return False
        return now_s - last_activity_s < self._scaling.scaledown_window_s

    def _replicas_for(self, concurrency: float) -> int:
        return math.ceil(concurrency / self._scaling.target_concurrency)

    def _bounded(self, wish: int) -> int:
        return min(max(wish, self._scaling.min_replicas), self._scaling.max_replicas)
