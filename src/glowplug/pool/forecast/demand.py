"""The demand that a plan must cover: forecasts, and what users know better (floors, schedules, expected
peaks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

import numpy as np

from glowplug.pool.forecast.baseline import SeasonalBaseline
from glowplug.pool.forecast.conformal import calibrate, window_maxima
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
    make held, out of ``tried``; None without history. ``rarer``: levels above ``level``, ascending, and the
    slots that bounds of those levels say; fewer levels than were asked for while history is too short.
    """

    slots: Floats
    basis: Basis
    level: float
    coverage: float | None = None
    tried: int = 0
    rarer: tuple[tuple[float, Floats], ...] = ()

    def at_least(self, slots: Floats) -> Forecast:
        """The same, nowhere below ``slots``."""
        raised = tuple((level, np.maximum(found, slots)) for level, found in self.rarer)
        return replace(self, slots=np.maximum(self.slots, slots), rarer=raised)


@dataclass(frozen=True, eq=False)
class Bounds:
    """How far above its baseline demand must be expected, by how far ahead (both ascending); seconds, slots.

    No distances: too little history. They change slowly, and are what a forecast costs most to make.
    ``rarer``: distances of higher levels.
    """

    ahead_s: Floats
    distance: Floats
    coverage: float | None
    tried: int
    rarer: tuple[tuple[float, Floats], ...] = ()


@dataclass(frozen=True)
class Forecaster:
    """Bounds of the highest demand in windows of ``lead_time_s``, which hold with chance ``level``; and what
    holds with the chances ``rarer``, which ascend above it.
    """

    level: float
    lead_time_s: float
    rarer: tuple[float, ...] = ()
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

        def bound(distance: Floats) -> Floats:
            above = np.interp(starts, bounds.ahead_s, distance)
            return np.asarray(np.clip(np.ceil(peaks + above - 1e-9), 0.0, highest_to_come(known)))

        found = Forecast(
            bound(bounds.distance),
            Basis.HISTORY,
            self.level,
            bounds.coverage,
            bounds.tried,
            tuple((level, bound(distance)) for level, distance in bounds.rarer),
        )
        return found.at_least(self._wished(starts, now_s, wishes))

    def bounds(self, known: DemandSeries) -> Bounds:
        """How far demand was above its baseline, as far as ``known`` tells."""
        width = self._width(known)
        scored = self.scores(known, width, [round(ahead_s / known.step_s) for ahead_s in _HORIZONS_S])
        calibrations = [calibrate(scores, self.level, delay) for scores, delay in scored]
        # The further ahead, the fewer scores.
        too_few = [place for place, found in enumerate(calibrations) if math.isinf(found.distance)]
        known_ahead = min(too_few, default=len(calibrations))
        if not known_ahead:
            return Bounds(np.empty(0), np.empty(0), None, 0)
        covered = calibrations[0].covered
        distance = np.array([found.distance for found in calibrations[:known_ahead]])
        rarer = []
        higher = distance
        for level in self.rarer:
            further = np.array(
                [calibrate(scores, level, delay).distance for scores, delay in scored[:known_ahead]]
            )
            if not math.isfinite(further[0]):
                break
            # Where only the near future has scores enough, the far one is as it was at the level below.
            higher = np.maximum(higher, np.where(np.isfinite(further), further, higher))
            rarer.append((level, higher))
        return Bounds(
            np.array(_HORIZONS_S[:known_ahead]),
            distance,
            float(covered.mean()) if len(covered) else None,
            len(covered),
            tuple(rarer),
        )

    def _width(self, known: DemandSeries) -> int:
        return max(1, math.ceil(self.lead_time_s / known.step_s))

    def scores(
        self, known: DemandSeries, width: int, aheads: Sequence[int] = (0,)
    ) -> list[tuple[Floats, int]]:
        """How far the highest demand of past windows, so many steps after their origin, was above the
        baseline's; and after how many more origins such a score is known. For each of ``aheads``, which
        ascend; all from the same origins, whose baseline is what costs.
        """
        lasts = [len(known.slots) - ahead - width for ahead in aheads]
        first = max(1, min(lasts[0] // 10, 100))
        stride = max(1, math.ceil((lasts[0] - first) / _ORIGINS_AT_MOST))
        found: list[list[float]] = [[] for _ in aheads]
        for origin in range(first, lasts[0] + 1, stride):
            before = DemandSeries(known.start_s, known.step_s, known.slots[:origin])
            within = [place for place, last in enumerate(lasts) if origin <= last]
            expected = self.baseline.forecast(before, aheads[within[-1]] + width)
            for place in within:
                begin, end = aheads[place], aheads[place] + width
                highest = known.slots[origin + begin : origin + end].max()
                found[place].append(float(highest - expected[begin:end].max()))
        return [
            (np.array(scores), math.ceil((ahead + width) / stride))
            for scores, ahead in zip(found, aheads, strict=True)
        ]

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
