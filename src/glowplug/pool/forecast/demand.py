"""The demand that a plan must cover: forecasts, and what users know better (floors, schedules, expected
peaks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

import numpy as np

from glowplug.pool.forecast.baseline import SeasonalBaseline
from glowplug.pool.forecast.conformal import Calibration, calibrate, window_maxima
from glowplug.pool.forecast.series import DemandSeries, Floats

_ORIGINS_AT_MOST = 1_000
_HORIZONS_S = (0.0, 900.0, 3_600.0, 14_400.0)
_GROWTH = 2.0
_GROWTH_OF_MANY, _GROWTH_OF_FEW = 1.1, 4.0


class Basis(StrEnum):
    """What a forecast rests on."""

    HISTORY = "history"
    NEW = "new"
    """Too little history for a bound: :func:`highest_to_come`, the expected peak or the floor."""


@dataclass(frozen=True)
class Schedule:
    """At least ``slots`` between two times of day, minutes since midnight; the end may be past the next."""

    slots: float
    from_minute: int = 0
    to_minute: int = 1_440
    weekdays: frozenset[int] = frozenset(range(7))
    """0 is Monday; the day on which the span begins."""
    timezone: str = "UTC"

    def overlaps(self, start_s: float, end_s: float) -> bool:
        """Whether any minute between two Unix times is in the span."""
        zone = ZoneInfo(self.timezone)
        step_s = 60.0
        moments = np.arange(start_s, max(end_s, start_s + 1), step_s)
        return any(
            self._is_in(datetime.fromtimestamp(float(moment), UTC).astimezone(zone)) for moment in moments
        )

    def _is_in(self, moment: datetime) -> bool:
        minute, day = moment.hour * 60 + moment.minute, moment.weekday()
        length = (self.to_minute - self.from_minute) % 1_440 or 1_440
        since = (minute - self.from_minute) % 1_440
        began = day if minute >= self.from_minute else (day - 1) % 7
        return since < length and began in self.weekdays


@dataclass(frozen=True)
class Wishes:
    """What a user says about a class of demand. Slots."""

    floor: float = 0.0
    expected_peak: float = 0.0
    schedules: tuple[Schedule, ...] = ()


@dataclass(frozen=True, eq=False)
class Forecast:
    """Slots to cover in each window that was asked for. ``coverage``: how often earlier bounds of the same
    make held, out of ``tried``; None without history.
    """

    slots: Floats
    basis: Basis
    level: float
    coverage: float | None = None
    tried: int = 0


@dataclass(frozen=True, eq=False)
class Bounds:
    """How far above its baseline demand must be expected, by how far ahead (both ascending); seconds, slots.

    No distances: too little history. They change slowly, and are what a forecast costs most to make.
    """

    ahead_s: Floats
    distance: Floats
    coverage: float | None
    tried: int


@dataclass(frozen=True)
class Forecaster:
    """Bounds of the highest demand in windows of ``lead_time_s``, which hold with chance ``level``."""

    level: float
    lead_time_s: float
    baseline: SeasonalBaseline = field(default_factory=SeasonalBaseline)

    def forecast(
        self,
        history: DemandSeries,
        now_s: float,
        starts_s: Sequence[float] | Floats,
        wishes: Wishes,
        bounds: Bounds | None = None,
    ) -> Forecast:
        """For windows that begin ``starts_s`` after now. What lies after ``now_s`` in the history is not
        looked at. ``bounds`` of a short while ago spare making them anew.
        """
        known = history.until(now_s)
        starts = np.asarray(starts_s, dtype=np.float64)
        bounds = bounds or self.bounds(known)
        if not len(bounds.distance):
            return Forecast(self._new(known, starts, now_s, wishes), Basis.NEW, self.level)
        width = self._width(known)
        begins = (starts // known.step_s).astype(np.int64)
        expected = self.baseline.forecast(known, int(begins.max()) + width)
        peaks = window_maxima(expected, width)[begins]
        distance = np.interp(starts, bounds.ahead_s, bounds.distance)
        bound = np.clip(np.ceil(peaks + distance - 1e-9), 0.0, highest_to_come(known))
        return Forecast(
            np.maximum(bound, self._wished(starts, now_s, wishes)),
            Basis.HISTORY,
            self.level,
            bounds.coverage,
            bounds.tried,
        )

    def bounds(self, known: DemandSeries) -> Bounds:
        """How far demand was above its baseline, as far as ``known`` tells."""
        width = self._width(known)
        calibrations = [
            self._calibrated(known, width, round(ahead_s / known.step_s)) for ahead_s in _HORIZONS_S
        ]
        finite = [
            (ahead_s, found.distance)
            for ahead_s, found in zip(_HORIZONS_S, calibrations, strict=True)
            if math.isfinite(found.distance)
        ]
        if not finite or finite[0][0] > 0:
            return Bounds(np.empty(0), np.empty(0), None, 0)
        covered = calibrations[0].covered
        ahead_s, distance = np.array(finite).T
        return Bounds(ahead_s, distance, float(covered.mean()) if len(covered) else None, len(covered))

    def _width(self, known: DemandSeries) -> int:
        return max(1, math.ceil(self.lead_time_s / known.step_s))

    def _calibrated(self, known: DemandSeries, width: int, ahead: int) -> Calibration:
        scores, delay = self.scores(known, width, ahead)
        return calibrate(scores, self.level, delay)

    def scores(self, known: DemandSeries, width: int, ahead: int = 0) -> tuple[Floats, int]:
        """How far the highest demand of past windows, ``ahead`` steps after their origin, was above the
        baseline's; and after how many more origins such a score is known.
        """
        last = len(known.slots) - ahead - width
        first = max(1, min(last // 10, 100))
        if last < first:
            return np.empty(0), 0
        stride = max(1, math.ceil((last - first) / _ORIGINS_AT_MOST))
        found = []
        for origin in range(first, last + 1, stride):
            before = DemandSeries(known.start_s, known.step_s, known.slots[:origin])
            expected = self.baseline.forecast(before, ahead + width)[ahead:].max()
            found.append(float(known.slots[origin + ahead : origin + ahead + width].max() - expected))
        return np.array(found), math.ceil((ahead + width) / stride)

    def _new(self, known: DemandSeries, starts: Floats, now_s: float, wishes: Wishes) -> Floats:
        least = max(highest_to_come(known), wishes.expected_peak)
        return np.maximum(self._wished(starts, now_s, wishes), least)

    def _wished(self, starts: Floats, now_s: float, wishes: Wishes) -> Floats:
        least = np.full(len(starts), wishes.floor)
        for schedule in wishes.schedules:
            for place, start_s in enumerate(starts):
                begin_s = now_s + float(start_s)
                if schedule.overlaps(begin_s, begin_s + self.lead_time_s):
                    least[place] = max(least[place], schedule.slots)
        return least


def highest_to_come(known: DemandSeries) -> float:
    """Slots that no forecast goes beyond: twice the most that was ever needed, or a tenth and four slots
    more, where that is less. Who has just grown a hundredfold is not expected to do it again: what is needed
    in fact is covered as it comes.
    """
    most = float(known.slots.max()) if len(known.slots) else 0.0
    return float(math.ceil(min(_GROWTH * most, _GROWTH_OF_MANY * most + _GROWTH_OF_FEW) - 1e-9))
