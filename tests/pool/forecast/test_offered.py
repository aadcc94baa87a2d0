"""What requests need, if they may wait; and what is read of it from counts while a line stands."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.pool.forecast.offered import OfferedLoad, Trust, patient_need, put_right
from glowplug.pool.forecast.series import slots_needed

WORK = st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60)


def longest_wait_s(work_s: list[float], room: float) -> float:
    """Of a fluid line: what came waits for all that came before it."""
    behind_s, longest_s = 0.0, 0.0
    for work in work_s:
        behind_s = max(behind_s - 1.0, 0.0) + work / room
        longest_s = max(longest_s, behind_s)
    return longest_s


@given(WORK, st.floats(1.0, 30.0))
def test_with_room_for_what_is_needed_nobody_waits_much_longer_than_allowed(
    work_s: list[float], wait_s: float
) -> None:
    room = float(patient_need(np.array(work_s), 1.0, wait_s).max())
    # Spans are tried at some lengths only, and what comes in one second comes at its beginning at worst.
    assert room == 0 or longest_wait_s(work_s, room * 1.25) <= wait_s + 1.0 + 1e-6


@given(WORK, st.floats(1.0, 30.0))
def test_who_may_wait_longer_needs_no_more(work_s: list[float], wait_s: float) -> None:
    less, more = (patient_need(np.array(work_s), 1.0, s) for s in (wait_s, 2 * wait_s))
    assert (more <= less + 1e-9).all()


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.floats(0.5, 60.0),
)
def test_patience_never_needs_more_slots_and_whoever_comes_needs_one(
    spans: list[tuple[int, int]], requests_per_slot: int, wait_s: float
) -> None:
    starts, durations = (np.array(column, dtype=float) for column in zip(*spans, strict=True))
    at_once = slots_needed(starts, durations, 10.0, requests_per_slot)
    patient = slots_needed(starts, durations, 10.0, requests_per_slot, wait_s=wait_s)
    assert patient.start_s == at_once.start_s
    assert (patient.slots <= at_once.slots).all()
    assert ((patient.slots > 0) == (at_once.slots > 0)).all()


def test_a_short_peak_needs_no_room_of_its_own() -> None:
    # Two at a time all the time, and once twenty more for a second.
    starts = np.concatenate((np.arange(0.0, 600.0, 0.5), np.full(20, 300.0)))
    durations = np.ones(len(starts))
    assert slots_needed(starts, durations, 10.0, 1).slots.max() >= 22
    assert slots_needed(starts, durations, 10.0, 1, wait_s=10.0).slots.max() <= 4


class Line:
    """Requests that take ``service_s`` each, so many a second, for ``room`` at once."""

    def __init__(self, load: OfferedLoad, per_s: int, service_s: float) -> None:
        self.load, self.per_s, self.service_s = load, per_s, service_s
        self.ends_s: list[float] = []
        self.waiting, self.ended, self.now_s = 0, 0, 0.0

    def run(self, seconds: int, room: int) -> float:
        """What is needed, as read at the end; once a second before that."""
        need = 0.0
        for _ in range(seconds):
            self.now_s += 1.0
            self.waiting += self.per_s
            while self.ends_s and self.ends_s[0] <= self.now_s:
                heappop(self.ends_s)
                self.ended += 1
            while self.waiting and len(self.ends_s) < room:
                self.waiting -= 1
                heappush(self.ends_s, self.now_s + self.service_s)
            need = self.load.read(self.now_s, len(self.ends_s), self.waiting, self.ended)
        return need


@pytest.mark.parametrize("wait_s", [0.0, 5.0])
def test_a_line_that_grows_for_lack_of_room_is_not_what_is_needed(wait_s: float) -> None:
    line = Line(OfferedLoad(wait_s), per_s=4, service_s=5.0)
    enough = line.run(120, room=100)
    assert 20 * 0.8 <= enough <= 20
    needed = line.run(300, room=2)
    assert line.waiting > 1_000
    assert 20 * 0.8 <= needed <= 20 * 1.3
    assert line.load.service_s == pytest.approx(5.0, rel=0.1)
    assert line.load.waiting_work_s == pytest.approx(line.waiting * 5.0, rel=0.1)


def test_before_anything_has_ended_everybody_counts_who_came_in_the_last_half_minute() -> None:
    load = OfferedLoad(5.0)
    assert load.read(0.0, 0, 7, 0) == 7
    assert load.read(1.0, 2, 9, 0) == 11
    assert (load.service_s, load.trust) == (None, Trust.GUESS)
    assert load.waiting_work_s == 9 * 30
    assert load.read(60.0, 2, 9, 0) == 2
    assert load.read(61.0, 3, 0, 0) == 3
    assert load.trust is Trust.COUNT


def test_a_line_before_the_first_replica_is_a_guess_until_requests_end() -> None:
    line = Line(OfferedLoad(5.0), per_s=4, service_s=5.0)
    guess = line.run(240, room=0)
    assert (line.waiting, line.load.trust) == (960, Trust.GUESS)
    assert guess <= 4 * 30 * 1.3
    known = line.run(30, room=60)
    assert line.load.trust is Trust.KNOWN
    assert 20 * 0.8 <= put_right(guess, known) <= 20 * 1.3
    assert put_right(1.0, 0.0) == 1.0


def test_how_long_a_request_takes_is_not_forgotten_in_quiet_weeks() -> None:
    line = Line(OfferedLoad(5.0), per_s=2, service_s=4.0)
    line.run(200, room=50)
    before_s = line.load.service_s
    line.per_s = 0
    line.run(60, room=50)
    line.load.read(line.now_s + 30 * 86_400.0, 0, 3, line.ended)
    assert line.load.service_s == pytest.approx(before_s, rel=0.1)


def test_requests_that_take_longer_than_any_before_are_believed_before_ten_of_them_ended() -> None:
    line = Line(OfferedLoad(5.0), per_s=2, service_s=1.0)
    line.run(200, room=50)
    line.per_s = 0
    line.run(3_600, room=50)
    line.per_s, line.service_s = 50, 600.0
    line.run(1, room=50)
    line.per_s = 0
    assert 40 <= line.run(120, room=50) <= 50
    line.run(600, room=50)
    assert line.load.service_s is not None
    assert 300 <= line.load.service_s <= 600, "what was too long while few had ended is put right"


def test_a_control_plane_that_began_anew_is_no_flood() -> None:
    line = Line(OfferedLoad(5.0), per_s=2, service_s=4.0)
    before = line.run(200, room=50)
    line.ended = 0
    assert line.run(1, room=50) <= before * 1.5


def test_a_clock_that_is_set_back_is_survived() -> None:
    line = Line(OfferedLoad(5.0), per_s=2, service_s=4.0)
    before = line.run(200, room=50)
    line.now_s -= 3_600.0
    line.ends_s = [end_s - 3_600.0 for end_s in line.ends_s]
    assert line.run(60, room=50) <= before * 1.5


@given(
    st.lists(
        st.tuples(st.floats(-5, 50), st.integers(0, 99), st.integers(0, 99), st.integers(0, 999)),
        min_size=1,
        max_size=50,
    ),
    st.sampled_from([0.0, 5.0]),
)
def test_whatever_is_read_the_need_is_a_number(
    readings: list[tuple[float, int, int, int]], wait_s: float
) -> None:
    load, now_s = OfferedLoad(wait_s), 1_700_000_000.0
    for step_s, in_flight, waiting, ended in readings:
        now_s += step_s
        need = load.read(now_s, in_flight, waiting, ended)
        assert 0 <= need < 1e9
        assert need <= in_flight or waiting
        assert 0 <= load.waiting_work_s < 1e12
