"""Forecasts: bounds that hold as often as they promise, out of sample, whatever the demand; and what users
wish.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from glowplug.pool.forecast.backtest import backtest
from glowplug.pool.forecast.baseline import DAY_S, SeasonalBaseline
from glowplug.pool.forecast.conformal import calibrate, scores_needed, window_maxima
from glowplug.pool.forecast.demand import Basis, Forecast, Forecaster, Schedule, Wishes
from glowplug.pool.forecast.series import DemandSeries, read_requests, slots_needed

EXAMPLES = Path(__file__).parents[3] / "examples" / "pools"
STEP_S = 300.0
STEPS_A_DAY = int(DAY_S / STEP_S)


def diurnal(days: int, seed: int = 1, burst: float = 1.0, growth: float = 1.0) -> DemandSeries:
    rng = np.random.default_rng(seed)
    steps = days * STEPS_A_DAY
    rate = 20 + 15 * np.sin(2 * np.pi * np.arange(steps) / STEPS_A_DAY)
    rate = rate * np.where(rng.random(steps) < 0.01, burst, 1.0) * np.linspace(1.0, growth, steps)
    return DemandSeries(0.0, STEP_S, rng.poisson(rate).astype(float))


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize(
    "series",
    [diurnal(20), diurnal(20, 2, burst=4.0), diurnal(20, 3, growth=3.0)],
    ids=["diurnal", "bursty", "growing"],
)
def test_bounds_hold_as_often_as_they_promise(series: DemandSeries, level: float) -> None:
    found = backtest(Forecaster(level, 1_200.0), series)
    assert found.tried > 400
    assert abs(found.covered - level) <= 0.02


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_bounds_hold_on_a_real_trace(level: float) -> None:
    starts, durations = read_requests(EXAMPLES / "azure_conv.csv.gz", 5_000.0, 30.0)
    found = backtest(Forecaster(level, 60.0), slots_needed(starts, durations, 1.0, 4))
    assert found.tried > 200
    assert abs(found.covered - level) <= 0.02


def test_a_season_is_seen_coming() -> None:
    series = diurnal(10)
    night = SeasonalBaseline().forecast(series, STEPS_A_DAY)
    true = 20 + 15 * np.sin(2 * np.pi * np.arange(STEPS_A_DAY) / STEPS_A_DAY)
    assert np.abs(night - true).mean() < 3
    flat = SeasonalBaseline().forecast(series.until(DAY_S * 1.5), 10)
    assert np.ptp(flat) == 0


def test_nothing_after_now_is_looked_at() -> None:
    series, now_s = diurnal(6), 4.3 * DAY_S
    spoilt = DemandSeries(
        0.0, STEP_S, np.where(np.arange(len(series.slots)) * STEP_S >= now_s, 1e6, series.slots)
    )
    starts = np.array([0.0, 3_600.0, 18_000.0])
    forecaster = Forecaster(0.95, 900.0)
    seen = [forecaster.forecast(known, now_s, starts, Wishes()).slots.tolist() for known in (series, spoilt)]
    assert seen[0] == seen[1]


def test_longer_lead_times_and_higher_levels_need_more() -> None:
    series, starts = diurnal(8), np.array([0.0])

    def bound(level: float, lead_time_s: float) -> float:
        return float(Forecaster(level, lead_time_s).forecast(series, 8 * DAY_S, starts, Wishes()).slots[0])

    assert bound(0.95, 300) <= bound(0.95, 3_600) <= bound(0.99, 3_600)


def test_rarer_levels_are_those_of_a_forecaster_of_their_own_and_never_lower() -> None:
    series, starts = diurnal(8), np.array([0.0, 3_600.0])

    def forecast(*levels: float) -> Forecast:
        return Forecaster(levels[0], 900.0, levels[1:]).forecast(series, 8 * DAY_S, starts, Wishes())

    found = forecast(0.8, 0.95, 0.99)
    assert [level for level, _ in found.rarer] == [0.95, 0.99]
    assert found.slots.tolist() == forecast(0.8).slots.tolist()
    assert found.rarer[0][1].tolist() == forecast(0.95).slots.tolist()
    assert (found.slots <= found.rarer[0][1]).all()
    assert (found.rarer[0][1] <= found.rarer[1][1]).all()
    assert (found.at_least(np.full(2, 1e3)).rarer[1][1] == 1e3).all()


def test_levels_that_history_is_too_short_for_are_left_out() -> None:
    short = DemandSeries(0.0, 10.0, np.ones(120))
    found = Forecaster(0.8, 60.0, (0.9, 0.999)).forecast(short, 1_200.0, np.array([0.0]), Wishes())
    assert [level for level, _ in found.rarer] == [0.9]


def test_a_new_app_gets_twice_its_highest_demand_or_its_expected_peak() -> None:
    none = DemandSeries(0.0, 60.0, np.empty(0))
    young = DemandSeries(0.0, 60.0, np.array([1.0, 3.0, 2.0]))
    forecaster, starts = Forecaster(0.95, 600.0), np.array([0.0, 60.0])
    assert forecaster.forecast(none, 0.0, starts, Wishes(floor=1.0)).slots.tolist() == [1, 1]
    assert forecaster.forecast(none, 0.0, starts, Wishes(expected_peak=4.0)).slots.tolist() == [4, 4]
    found = forecaster.forecast(young, 180.0, starts, Wishes(expected_peak=4.0))
    assert (found.slots.tolist(), found.basis, found.coverage) == ([6, 6], Basis.NEW, None)


def test_who_has_just_grown_a_hundredfold_is_not_expected_to_do_so_again() -> None:
    grown = DemandSeries(0.0, 60.0, np.repeat([3.0, 300.0], (120, 30)))
    for level, basis in ((0.95, Basis.HISTORY), (0.999, Basis.NEW)):
        found = Forecaster(level, 600.0).forecast(grown, 9_000.0, np.array([0.0, 900.0]), Wishes())
        assert found.basis is basis
        assert found.slots.max() <= 1.15 * 300


def test_a_schedule_is_covered_from_a_lead_time_before_it_begins() -> None:
    none = DemandSeries(0.0, 60.0, np.empty(0))
    wishes = Wishes(schedules=(Schedule(5.0, 8 * 60, 18 * 60, frozenset({0})),))
    monday_s = 4 * DAY_S  # 1970-01-05
    starts = np.array([7.5, 7.9, 12.0, 17.9, 18.1, 32.0]) * 3_600
    slots = Forecaster(0.95, 900.0).forecast(none, monday_s, starts, wishes).slots
    assert slots.tolist() == [0, 5, 5, 5, 0, 0]


def test_a_schedule_may_go_past_midnight_and_keeps_local_time() -> None:
    night = Schedule(1.0, 22 * 60, 6 * 60, frozenset({0}), "Europe/Berlin")
    monday_s = 4 * DAY_S
    hours = [20.9, 21.1, 26.0, 28.9, 29.1, 3.0]
    covered = [night.overlaps(monday_s + hour * 3_600, monday_s + hour * 3_600 + 60) for hour in hours]
    assert covered == [False, True, True, True, False, False]


def test_conformal_bounds_need_enough_scores() -> None:
    assert scores_needed(0.95) == 19
    assert scores_needed(0.99) == 99
    assert calibrate(np.zeros(18), 0.95).distance == math.inf
    assert calibrate(np.arange(19.0), 0.95).distance == 18.0


def test_levels_adapt_when_demand_does_not_stay_as_it_was() -> None:
    calm, wild = np.random.default_rng(1).normal(0, 1, 400), np.random.default_rng(2).normal(0, 4, 1_600)
    covered = calibrate(np.concatenate((calm, wild)), 0.95).covered
    assert covered[380:430].mean() < 0.9
    assert covered[-800:].mean() == pytest.approx(0.95, abs=0.02)


def test_window_maxima() -> None:
    assert window_maxima(np.array([1.0, 3.0, 2.0, 0.0]), 2).tolist() == [3, 3, 2]
