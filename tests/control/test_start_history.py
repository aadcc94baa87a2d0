"""When the next start is tried, on a clock that only moves when it is told to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.control.start_history import StartHistory
from glowplug.control.timings import Timings
from glowplug.types.clock import ManualClock
from glowplug.types.replica import ErrorInfo

TIMINGS = Timings()
BROKEN = ErrorInfo(code="replica_failed", message="It exited.")

lives_s = st.floats(min_value=0.0, max_value=20.0)
events = st.one_of(
    st.tuples(st.just("died"), lives_s),
    st.tuples(st.sampled_from(("failed", "interrupted", "postponed", "got_ready", "stopped")), lives_s),
)


def happen(history: StartHistory, clock: ManualClock, what: str, seconds: float) -> None:
    clock.advance(seconds)
    arguments = {
        "died": (seconds,),
        "failed": ("shop-web-1", BROKEN),
        "interrupted": ("the agent died",),
        "postponed": ("no room",),
    }
    getattr(history, what)(*arguments.get(what, ()))


@given(st.lists(events, max_size=40))
def test_whoever_is_held_waits_a_bounded_time_for_the_next_try(history_of: list[tuple[str, float]]) -> None:
    clock = ManualClock()
    history = StartHistory(clock, TIMINGS)
    for what, seconds in history_of:
        happen(history, clock, what, seconds)
        # In a crash loop nobody is held: callers are told when it is tried again.
        assert history.is_crash_looping or history.wait_s <= TIMINGS.held_backoff_max_s


def test_a_held_request_outlives_every_wait_for_the_next_try() -> None:
    assert 2 * TIMINGS.held_backoff_max_s < TIMINGS.hold_slack_s


@pytest.mark.parametrize("deaths", [1, 2, 30])
def test_starts_that_a_part_of_glowplug_broke_are_no_crash_loop(deaths: int) -> None:
    clock = ManualClock()
    history = StartHistory(clock, TIMINGS)
    for _ in range(deaths):
        happen(history, clock, "interrupted", 0.1)
    assert not history.is_crash_looping
    assert history.wait_s == 0
    assert history.problem == "the agent died"


def test_starts_that_fail_by_themselves_are_tried_less_and_less_often() -> None:
    clock = ManualClock()
    history = StartHistory(clock, TIMINGS)
    waits_s = []
    for _ in range(8):
        happen(history, clock, "failed", 0.0)
        waits_s.append(history.wait_s)
        clock.advance(history.wait_s)
    assert waits_s == [1, 2, 4, 8, 16, 32, 60, 60]
