"""Slots needed at once, from requests: against counting them one by one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.pool.forecast.series import read_requests, slots_needed
from glowplug.types.errors import InvalidInput

EXAMPLES = Path(__file__).parents[3] / "examples" / "pools"
requests = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 40)), min_size=1, max_size=30)


@given(requests, st.sampled_from([1.0, 5.0, 7.0]), st.integers(1, 4))
def test_each_step_needs_the_most_that_ran_in_it_at_once(
    spans: list[tuple[int, int]], step_s: float, requests_per_slot: int
) -> None:
    starts, durations = (np.array(column, dtype=float) for column in zip(*spans, strict=True))
    series = slots_needed(starts, durations, step_s, requests_per_slot)
    for index, slots in enumerate(series.slots):
        begin = series.start_s + index * step_s
        # Requests run from their start up to, not including, their end; one that takes no time takes no slot
        # for longer than its own instant, at which it does count.
        instants = [at / 2 for at in range(int(begin * 2), int((begin + step_s) * 2))]
        running = [sum(s <= at < s + d for s, d in spans) for at in instants]
        instant_ones = [
            sum(s <= at < s + d for s, d in spans) + sum(s == at and d == 0 for s, d in spans)
            for at in instants
        ]
        assert np.ceil(max(running) / requests_per_slot) <= slots
        assert slots <= np.ceil(max(instant_ones) / requests_per_slot)


def test_steps_line_up_from_day_to_day() -> None:
    series = slots_needed(np.array([86_407.0]), np.array([10.0]), 60.0, 1)
    assert series.start_s == 86_400.0
    assert series.until(86_401.0).slots.tolist() == []
    assert series.until(1e9).slots.tolist() == series.slots.tolist()


@pytest.mark.parametrize(
    ("starts", "durations", "step_s"),
    [
        ([1.0], [-1.0], 10.0),
        ([np.nan], [1.0], 10.0),
        ([], [], 10.0),
        ([1.0], [1.0], 0.0),
        ([0.0, 1e12], [1, 1], 1.0),
    ],
)
def test_times_that_cannot_be_are_refused(starts: list[float], durations: list[float], step_s: float) -> None:
    with pytest.raises(InvalidInput):
        slots_needed(np.array(starts, dtype=float), np.array(durations, dtype=float), step_s, 1)


def test_azure_s_trace_is_read_with_seven_digits_of_a_second() -> None:
    starts, durations = read_requests(EXAMPLES / "azure_conv.csv.gz", 5_000.0, 40.0)
    assert len(starts) == 19_366
    assert starts[0] == pytest.approx(1_700_158_546.680590)  # 2023-11-16 18:15:46.68 UTC
    assert durations[0] == pytest.approx(374 / 5_000 + 44 / 40)


def test_a_plain_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("at,duration_s\n2026-01-01T00:00:00Z,2\n1767225601.5,3\n")
    starts, durations = read_requests(path, 1, 1)
    assert starts.tolist() == [1_767_225_600.0, 1_767_225_601.5]
    assert durations.tolist() == [2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "time,duration\n1,2\n",
        "at,duration_s\n1,\n",
        "at,duration_s\nyesterday,1\n",
        "at,duration_s\nnan,1\n",
        "",
    ],
)
def test_a_log_with_a_hole_is_refused_whole(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        read_requests(path, 1, 1)
