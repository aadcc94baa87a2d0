"""Bounds that keep their promise whatever the baseline: split conformal prediction of the *maximum over a
window*.

The score of an origin is how far the highest demand in the window after it was above the baseline's highest
there. The bound adds a quantile of past scores. Demand is not exchangeable, so the quantile's level adapts
(Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift", 2021): after every miss it rises,
after every hit it falls a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glowplug.pool.forecast.series import Floats

KEPT_SCORES = 2_000
_ADAPTATION = 0.02


@dataclass(frozen=True, eq=False)
class Calibration:
    """What scores so far say: the bound's distance from the baseline, and how often it held.

    ``distance`` is infinite where there are too few scores for the level; ``covered`` says of each bound that
    could be made, in order of time, whether it held.
    """

    distance: float
    covered: NDArray[np.bool_]


def calibrate(scores: Floats, level: float, delay: int = 0) -> Calibration:
    """Walk through scores in order of time, each bound made of those known then: ``delay`` steps back and
    older.
    """
    target = 1.0 - level
    missed = target  # the share of misses that is aimed at now; moves around the target
    covered = []
    for now in range(scores_needed(level), len(scores) - delay):
        distance = _quantile(scores[max(0, now - KEPT_SCORES) : now], 1.0 - missed)
        held = bool(scores[now + delay] <= distance)
        covered.append(held)
        missed = float(np.clip(missed + _ADAPTATION * (target - (not held)), target / 10, 0.5))
    if len(scores) < scores_needed(level):
        return Calibration(float("inf"), np.empty(0, dtype=bool))
    return Calibration(_quantile(scores[-KEPT_SCORES:], 1.0 - missed), np.array(covered, dtype=bool))


def scores_needed(level: float) -> int:
    """With fewer scores the highest of them promises less than ``level``."""
    return int(np.ceil(level / (1.0 - level) - 1e-9))


def _quantile(scores: Floats, level: float) -> float:
    """The conformal quantile: the k-th smallest of n, k = ceil((n + 1) level); the highest where k is beyond
    n.
    """
    rank = min(int(np.ceil((len(scores) + 1) * level - 1e-9)), len(scores))
    return float(np.partition(scores, rank - 1)[rank - 1])


def window_maxima(values: Floats, width: int) -> Floats:
    """The highest of each ``width`` values in a row; ``width - 1`` fewer than there are values."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(values, width).max(axis=1))
