"""Demand to be covered, forecast anew in each step; what is dear about that only now and then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from glowplug.pool.forecast.demand import Bounds, Forecast, Forecaster
from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.plan_file import DemandEntry
from glowplug.pool.planning import rarer_levels, wishes_of
from glowplug.pool.program.grid import Floats

_MOST_SLOTS = 1e6
_SAME_LEAD_TIME = 0.25
_SOON = 2.0
_STEPS_OF_NOW = 3
_MOST_WAITING_SLOT_S = 1e9


@dataclass(frozen=True, eq=False)
class _Kept:
    forecaster: Forecaster
    bounds: Bounds
    made_at_s: float


class Outlook:
    """Forecasts of every entry of a file's ``demand``. Bounds are kept for ``recalibrate_s``, or until the
    lead time has moved by a quarter.
    """

    def __init__(self, recalibrate_s: float) -> None:
        self._recalibrate_s = recalibrate_s
        self._kept: dict[int, _Kept] = {}

    def forecast(
        self,
        place: int,
        entry: DemandEntry,
        series: DemandSeries,
        lead_time_s: float,
        now_s: float,
        starts_s: Floats,
        waiting_slot_s: float = 0.0,
    ) -> Forecast:
        """Of the entry at ``place``. ``waiting_slot_s``: for how long one slot would work on what waits."""
        known = series.until(now_s)
        kept = self._kept.get(place)
        if kept is None or not self._holds(kept, lead_time_s, now_s):
            forecaster = Forecaster(entry.level, lead_time_s, rarer_levels(entry))
            kept = self._kept[place] = _Kept(forecaster, forecaster.bounds(known), now_s)
        found = kept.forecaster.forecast(known, now_s, starts_s, wishes_of(entry), kept.bounds)
        soon_s = _SOON * lead_time_s
        least = _needed_now(known) + _to_catch_up(waiting_slot_s, soon_s)
        # A bound that holds 19 times in 20 is no help the twentieth time, while the crowd is there already.
        is_soon = np.asarray(starts_s) <= soon_s
        return found.at_least(np.where(is_soon, least, 0.0))

    def _holds(self, kept: _Kept, lead_time_s: float, now_s: float) -> bool:
        ratio = lead_time_s / kept.forecaster.lead_time_s
        is_alike = 1 / (1 + _SAME_LEAD_TIME) <= ratio <= 1 + _SAME_LEAD_TIME
        # Without bounds everything is new yet: then every step may be the one that has enough.
        is_new = not len(kept.bounds.distance)
        return is_alike and not is_new and 0 <= now_s - kept.made_at_s < self._recalibrate_s


def _needed_now(known: DemandSeries) -> float:
    """What is needed now is believed to be needed until it could be replaced, and as long again. The middle
    one of the last steps: a peak of one step is over before a machine for it could come.
    """
    last = np.sort(known.slots[-_STEPS_OF_NOW:])
    return float(last[(len(last) - 1) // 2]) if len(last) else 0.0


def _to_catch_up(waiting_slot_s: float, within_s: float) -> float:
    """Slots more, so that who waits now is served within a time."""
    if not 0 < waiting_slot_s <= _MOST_WAITING_SLOT_S:
        return 0.0
    return float(math.ceil(waiting_slot_s / within_s - 1e-9))


def usable(series: DemandSeries) -> tuple[DemandSeries, int]:
    """The series with what is no number of slots made one, and how many steps that were."""
    slots = np.asarray(series.slots, dtype=np.float64)
    bad = ~np.isfinite(slots) | (slots < 0) | (slots > _MOST_SLOTS)
    if not bad.any():
        return series, 0
    mended = np.clip(np.nan_to_num(slots, nan=0.0, posinf=_MOST_SLOTS, neginf=0.0), 0.0, _MOST_SLOTS)
    return DemandSeries(series.start_s, series.step_s, mended), int(bad.sum())
