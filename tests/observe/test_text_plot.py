from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.observe.text_plot import cdf_text
from glowplug.types.coldstart import Outcome
from glowplug.types.replica import StartPath

MARKS = {StartPath.COLD: "●", StartPath.CPU_SNAPSHOT: "▲", StartPath.PARKED: "■"}


def rows(text):
    """The picture without its axis and legend, top first."""
    return [line for line in text.splitlines() if "┤" in line]


@pytest.fixture
def records(make_record):
    cold = [make_record(path=StartPath.COLD, total_s=60.0 + i) for i in range(40)]
    restored = [make_record(path=StartPath.CPU_SNAPSHOT, total_s=1.5 + 0.03 * i) for i in range(40)]
    parked = [make_record(path=StartPath.PARKED, total_s=0.02 + 0.001 * i) for i in range(40)]
    return cold + restored + parked


def test_every_path_has_a_curve_of_its_own_left_of_the_slower_one(records):
    for row in rows(cdf_text(records, 80)):
        assert row.rindex("■") < row.index("▲") <= row.rindex("▲") < row.index("●")


def test_the_legend_tells_how_many_and_the_quantiles(records):
    text = cdf_text(records, 80)
    assert "● cold          n = 40    p50 80 s  p90 95 s  p99 99 s" in text
    assert "■ parked        n = 40    p50 40 ms" in text


def test_round_times_stand_below_the_axis(records):
    axis = cdf_text(records, 80).splitlines()[12]
    assert "50 ms" in axis
    assert "2.0 s" in axis


def test_failed_starts_are_not_drawn(make_record):
    text = cdf_text([make_record(outcome=Outcome.FAILED)], 80)
    assert text == "There is no answered start to draw."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    starts=st.lists(st.tuples(st.sampled_from(sorted(MARKS)), st.floats(1e-4, 1e5)), min_size=1, max_size=60),
    width=st.integers(1, 200),
)
def test_whatever_the_times_it_fits_and_climbs(make_record, starts, width):
    text = cdf_text([make_record(path=path, total_s=seconds) for path, seconds in starts], width)
    picture = rows(text)
    assert len(picture) == 11
    assert all(len(row) <= max(width, 30) for row in picture)
    for path in {path for path, _ in starts}:
        last = [row.rindex(MARKS[path]) for row in picture if MARKS[path] in row]
        assert last == sorted(last, reverse=True), "a curve never goes back"


def test_one_start_is_a_picture_too(make_record):
    assert "n = 1 " in cdf_text([make_record()], 80)
