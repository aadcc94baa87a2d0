"""Did the bounds hold? Out of sample: a bound for each origin of the second half, from nothing but what was
before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from glowplug.pool.forecast.conformal import calibrate
from glowplug.pool.forecast.demand import Forecaster
from glowplug.pool.forecast.series import DemandSeries


@dataclass(frozen=True)
class Coverage:
    """Of ``tried`` bounds a share of ``covered`` held; ``level`` was promised."""

    level: float
    covered: float
    tried: int


def backtest(forecaster: Forecaster, series: DemandSeries) -> Coverage:
    """Of the bounds for windows that begin at their origin. ``covered`` is NaN when there is too little to
    try.
    """
    width = max(1, math.ceil(forecaster.lead_time_s / series.step_s))
    ((scores, delay),) = forecaster.scores(series, width)
    covered = calibrate(scores, forecaster.level, delay).covered
    tried = covered[len(covered) // 2 :]
    return Coverage(forecaster.level, float(np.mean(tried)) if len(tried) else math.nan, len(tried))
