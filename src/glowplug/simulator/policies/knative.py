"""Replicas as Knative's pod autoscaler (KPA) counts them: a stable and a panic window of mean concurrency.

Its defaults: 60 s and 6 s, panic at twice what is ready, at most half as many in one step down, 30 s of grace
before the last one goes.
"""

from __future__ import annotations

import math
from collections import deque

from glowplug.control.autoscaler import Decision, Load
from glowplug.types.clock import Clock
from glowplug.types.spec import Scaling

_STABLE_S = 60.0
_PANIC_S = 6.0
_PANIC_FACTOR = 2.0
_DOWN_RATE = 2.0
_GRACE_S = 30.0


class _Mean:
    """Of readings of the last ``span_s`` seconds."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._readings: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, now_s: float, value: float) -> float:
        """One more; the mean with it."""
        self._readings.append((now_s, value))
        self._sum += value
        while now_s - self._readings[0][0] >= self._span_s:
            self._sum -= self._readings.popleft()[1]
        return max(self._sum, 0.0) / len(self._readings)


class KnativeScaler:
    """In place of production's autoscaler. ``utilisation``: of ``target_concurrency``, what is aimed at."""

    def __init__(self, scaling: Scaling, clock: Clock, utilisation: float) -> None:
        self._scaling = scaling
        self._clock = clock
        self._target = utilisation * scaling.target_concurrency
        self._stable, self._panic = _Mean(_STABLE_S), _Mean(_PANIC_S)
        self._panic_until_s = -math.inf
        self._panic_most = 0
        self._zero_since_s: float | None = None

    def decide(self, load: Load, last_activity_s: float | None) -> Decision:
        """The wish for now."""
        now_s = self._clock.monotonic()
        concurrency = load.concurrency
        stable = math.ceil(self._stable.add(now_s, concurrency) / self._target - 1e-9)
        panic = math.ceil(self._panic.add(now_s, concurrency) / self._target - 1e-9)
        stable = max(stable, math.floor(load.ready / _DOWN_RATE))
        if panic >= _PANIC_FACTOR * max(load.ready, 1):
            self._panic_until_s = now_s + _STABLE_S
        is_panicking = now_s < self._panic_until_s
        self._panic_most = max(self._panic_most, panic) if is_panicking else 0
        wish = max(stable, self._panic_most)
        wish = self._with_grace(now_s, max(wish, 1 if load.held else 0), load)
        return Decision(min(max(wish, self._scaling.min_replicas), self._scaling.max_replicas), is_panicking)

    def _with_grace(self, now_s: float, wish: int, load: Load) -> int:
        if wish:
            self._zero_since_s = None
            return wish
        if self._zero_since_s is None:
            self._zero_since_s = now_s
        return 1 if load.ready and now_s - self._zero_since_s < _GRACE_S else 0
