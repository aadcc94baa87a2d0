"""Replicas kept by histograms of idle times: the hybrid histogram policy (Shahrad et al., USENIX ATC 2020).

There, an app's idle times say when to load it again (their 5th percentile) and how long to keep it (their
99th). Here each level has a histogram of its own, the k-th replica being idle while fewer than k are needed:
with one level that is theirs. With too few idle times the usual ten minutes hold. Its third part, a
time-series model for idle times beyond the histogram, is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from glowplug.control.autoscaler import Decision, Load
from glowplug.types.clock import Clock
from glowplug.types.spec import Scaling

_BIN_S = 60.0
_BINS = 240
_FEW = 10
_USUAL_KEEP_S = 600.0
_MARGIN = 0.1
_HEAD, _TAIL = 0.05, 0.99


@dataclass
class _Level:
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))
    idle_since_s: float | None = None
    load_s: float = 0.0
    keep_s: float = _USUAL_KEEP_S

    def ended(self, idle_s: float) -> None:
        """It was needed again after so long."""
        self.counts[min(int(idle_s // _BIN_S), _BINS - 1)] += 1
        total = int(self.counts.sum())
        if total < _FEW:
            return
        shares = np.cumsum(self.counts) / total
        head = int(np.searchsorted(shares, _HEAD)) * _BIN_S
        tail = (int(np.searchsorted(shares, _TAIL)) + 1) * _BIN_S
        self.load_s = (1 - _MARGIN) * head
        self.keep_s = (1 + _MARGIN) * tail

    def is_wanted(self, now_s: float) -> bool:
        """Needed, or likely to be soon."""
        if self.idle_since_s is None:
            return True
        return self.load_s <= now_s - self.idle_since_s < self.keep_s


class HistogramScaler:
    """In place of production's autoscaler."""

    def __init__(self, scaling: Scaling, clock: Clock) -> None:
        self._scaling = scaling
        self._clock = clock
        self._levels: list[_Level] = []

    def decide(self, load: Load, last_activity_s: float | None) -> Decision:
        """The wish for now."""
        now_s = self._clock.monotonic()
        concurrency = max(load.concurrency, load.peak)
        need = min(math.ceil(concurrency / self._scaling.target_concurrency), self._scaling.max_replicas)
        while len(self._levels) < need:
            self._levels.append(_Level())
        for place, level in enumerate(self._levels):
            if place < need and level.idle_since_s is not None:
                level.ended(now_s - level.idle_since_s)
                level.idle_since_s = None
            elif place >= need and level.idle_since_s is None:
                level.idle_since_s = now_s
        wish = sum(level.is_wanted(now_s) for level in self._levels)
        return Decision(min(max(wish, self._scaling.min_replicas), self._scaling.max_replicas), False)
