from __future__ import annotations

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.observe.quantiles import quantile, speedups, summarise
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import StartPath

durations = st.floats(min_value=1e-3, max_value=1e4, allow_nan=False)
samples = st.lists(durations, min_size=1, max_size=50)
fractions = st.floats(min_value=0.0, max_value=1.0)


@given(samples, fractions)
def test_a_quantile_is_what_numpy_says(values, q):
    assert quantile(sorted(values), q) == pytest.approx(float(numpy.quantile(values, q)), rel=1e-9)


@given(samples, fractions, fractions)
def test_quantiles_grow_with_q_and_stay_within_the_sample(values, q, r):
    ordered = sorted(values)
    low, high = quantile(ordered, min(q, r)), quantile(ordered, max(q, r))
    # Two neighbours of one value may come out a rounding error apart.
    assert low <= high or low == pytest.approx(high, rel=1e-12)
    assert ordered[0] <= low
    assert high <= ordered[-1]


def test_the_quantile_of_one_value_is_that_value():
    assert [quantile([3.5], q) for q in (0.0, 0.5, 0.99, 1.0)] == [3.5] * 4


def test_no_values_have_no_quantile():
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_zero_to_one_is_refused(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], q)


def test_a_summary_per_path_coldest_first(make_record):
    records = [make_record(path=StartPath.CPU_SNAPSHOT, total_s=s) for s in (2.0, 4.0, 3.0)]
    records += [make_record(path=StartPath.COLD, total_s=90.0)]
    cold, restored = summarise(records)
    assert (cold.path, cold.n, cold.p50_s, cold.p99_s) == (StartPath.COLD, 1, 90.0, 90.0)
    assert (restored.path, restored.n, restored.p50_s) == (StartPath.CPU_SNAPSHOT, 3, 3.0)
    assert restored.mean_s == pytest.approx(3.0)
    assert restored.p90_s == pytest.approx(3.8)


def test_failed_starts_are_counted_and_do_not_move_the_figures(make_record):
    records = [make_record(total_s=80.0), make_record(total_s=600.0, outcome=Outcome.FAILED)]
    (summary,) = summarise(records)
    assert (summary.n, summary.failed, summary.p99_s) == (1, 1, 80.0)


def test_a_path_that_only_failed_is_shown_without_figures(make_record):
    (summary,) = summarise([make_record(outcome=Outcome.FAILED)])
    assert (summary.n, summary.failed) == (0, 1)
    assert math.isnan(summary.p50_s)
    assert math.isnan(summary.mean_s)


def test_a_start_whose_caller_went_away_says_nothing(make_record):
    assert summarise([make_record(outcome=Outcome.ABANDONED, total_s=0.1)]) == []


def test_no_records_have_no_summaries():
    assert summarise([]) == []


def test_speedups_compare_the_same_quantile_of_both():
    half, last = speedups([100.0, 60.0, 80.0], [4.0, 2.0, 3.0], at=(0.5, 1.0))
    assert (half.cold_s, half.restored_s, half.ratio) == (80.0, 3.0, pytest.approx(80 / 3))
    assert (last.q, last.ratio) == (1.0, 25.0)


@given(samples, st.floats(min_value=1.5, max_value=100))
def test_starts_that_are_k_times_faster_show_as_k_at_every_quantile(values, k):
    for speedup in speedups([value * k for value in values], values):
        assert speedup.ratio == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_speedup_over_no_real_duration_is_refused(bad):
    with pytest.raises(ValueError, match="positive number"):
        speedups([80.0], [bad])


def test_a_speedup_needs_both_samples():
    with pytest.raises(ValueError, match="no values"):
        speedups([80.0], [])
