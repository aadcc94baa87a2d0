"""The line of requests: who works on what, and when. By hand, and against a slow one that is obviously
right.
"""

import math
from heapq import heappop, heappush

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from glowplug.simulator.line import RequestLine
from glowplug.simulator.traces import Trace


def line(
    times: list[tuple[float, float]], limit: int = 1, hold_s: float = 1e9, room: int | None = None
) -> RequestLine:
    arrivals, durations = np.array(times, dtype=float).reshape(-1, 2).T
    return RequestLine(Trace(arrivals, durations), limit, hold_s, room)


def test_one_replica_takes_one_after_the_other() -> None:
    queue = line([(0, 2), (1, 2), (2, 2)])
    queue.add(0.0)
    queue.advance(100.0)
    assert queue.started_s == [0.0, 2.0, 4.0]
    assert queue.is_settled
    assert queue.last_activity_s == 6.0
    assert queue.serving_s(0, 100.0) == 6.0


def test_a_replica_with_room_for_two_takes_two_at_once() -> None:
    queue = line([(0, 2), (1, 2), (1, 2)], limit=2)
    queue.add(0.0)
    queue.advance(1.0)
    assert (queue.in_flight, queue.waiting, queue.take_peak()) == (2, 1, 3)
    queue.advance(10.0)
    assert queue.started_s == [0.0, 1.0, 2.0]
    assert queue.serving_s(0, 10.0) == 4.0


def test_what_waits_begins_when_a_replica_is_ready() -> None:
    queue = line([(0, 5), (1, 5)])
    queue.advance(7.0)
    assert math.isnan(queue.started_s[0])
    queue.add(7.0)
    queue.advance(20.0)
    assert queue.started_s == [7.0, 12.0]


def test_the_least_busy_replica_takes_a_request() -> None:
    queue = line([(0, 10), (1, 10), (2, 10)], limit=4)
    queue.add(0.0)
    queue.add(0.0)
    queue.advance(1.5)
    assert not queue.is_idle(0)
    assert not queue.is_idle(1)


def test_who_is_to_spare_gets_requests_only_when_the_others_have_their_share() -> None:
    queue = line([(second, 100) for second in range(8)], limit=4, room=2)
    first, second, spare = (queue.add(0.0) for _ in range(3))
    queue.spare(spare, is_spare=True)

    def busy_at(now_s: float) -> tuple[int, int, int]:
        queue.advance(now_s)
        return queue.in_flight_of(first), queue.in_flight_of(second), queue.in_flight_of(spare)

    assert sorted(busy_at(3.5)[:2]) == [2, 2]
    assert busy_at(3.5)[2] == 0
    # Then the least busy of all does, who is to spare or not.
    assert busy_at(5.5)[2] == 2
    assert sum(busy_at(7.5)) == 8
    assert queue.spares == {spare}


def test_who_was_to_spare_is_as_the_others_again_or_leaves() -> None:
    queue = line([(second, 10) for second in range(4)], limit=2, room=1)
    replicas = [queue.add(0.0) for _ in range(2)]
    for replica in replicas:
        queue.spare(replica, is_spare=True)
    queue.advance(1.5)
    assert queue.in_flight == 2
    queue.spare(replicas[0], is_spare=False)
    queue.leave(replicas[1])
    assert queue.spares == frozenset()
    queue.advance(3.5)
    assert (queue.in_flight_of(replicas[0]), queue.in_flight_of(replicas[1]), queue.waiting) == (2, 1, 1)
    queue.advance(100.0)
    assert queue.is_idle(replicas[1])
    assert queue.serving_s(replicas[1], 100.0) == 10.0


def test_who_leaves_finishes_what_it_has_and_gets_nothing_more() -> None:
    queue = line([(0, 4), (1, 1)])
    queue.add(0.0)
    queue.advance(0.5)
    queue.leave(0)
    assert (queue.in_flight, queue.leaving) == (1, 1)
    queue.advance(10.0)
    assert (queue.is_idle(0), queue.waiting, queue.leaving) == (True, 1, 0)
    queue.come_back(0, 10.0)
    queue.advance(20.0)
    assert queue.started_s == [0.0, 10.0]


def test_requests_of_a_lost_replica_are_sent_again_before_all_that_wait() -> None:
    queue = line([(0, 10), (1, 10), (2, 10)])
    queue.add(0.0)
    queue.advance(3.0)
    queue.lose(0, 3.0)
    assert (queue.retried, queue.waiting) == (1, 3)
    queue.add(5.0)
    queue.advance(100.0)
    assert queue.started_s == [5.0, 15.0, 25.0]
    assert queue.serving_s(0, 100.0) == 3.0


def test_another_replica_with_room_takes_them_at_once() -> None:
    queue = line([(0, 10)], limit=2)
    queue.add(0.0)
    queue.add(0.0)
    queue.advance(1.0)
    (busy,) = [replica for replica in (0, 1) if not queue.is_idle(replica)]
    queue.lose(busy, 1.0)
    assert queue.started_s == [1.0]
    assert queue.waiting == 0


def test_who_waits_too_long_is_lost_and_never_begins() -> None:
    queue = line([(0, 1), (5, 1)], hold_s=10.0)
    queue.advance(10.0)
    queue.give_up_late(10.0)
    assert queue.lost == 0
    queue.add(12.0)
    queue.advance(20.0)
    assert queue.lost == 1
    assert math.isnan(queue.started_s[0])
    assert queue.started_s[1] == 12.0
    assert queue.is_settled


REQUESTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=40)


@given(REQUESTS, st.integers(1, 3), st.lists(st.integers(0, 80), min_size=1, max_size=5), st.booleans())
def test_requests_begin_when_a_slow_line_says_so(
    times: list[tuple[int, int]], limit: int, ready: list[int], has_spares: bool
) -> None:
    """Who waits does not depend on which replica works on what: the slow one has servers only."""
    times = sorted(times)
    queue = line([(float(a), float(d)) for a, d in times], limit)
    for now_s in sorted(ready):
        queue.advance(float(now_s))
        replica = queue.add(float(now_s))
        queue.spare(replica, is_spare=has_spares and replica % 2 == 0)
    queue.advance(1e6)
    free = [float(now_s) for now_s in sorted(ready) for _ in range(limit)]
    expected = []
    for arrival, duration in times:
        begins = max(heappop(free), float(arrival))
        expected.append(begins)
        heappush(free, begins + duration)
    assert queue.started_s == expected
    assert queue.is_settled


@given(
    REQUESTS,
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.sampled_from(["add", "leave", "back", "lose", "late", "spare", "need"]),
            st.integers(0, 6),
            st.integers(0, 9),
        ),
        max_size=30,
    ),
)
def test_whatever_happens_each_request_is_answered_once_or_lost(
    times: list[tuple[int, int]], limit: int, changes: list[tuple[str, int, int]]
) -> None:
    queue = line([(float(a), float(d)) for a, d in sorted(times)], limit, hold_s=40.0, room=max(limit - 1, 1))
    now_s, there, gone = 0.0, 0, set()
    for what, which, after in changes:
        now_s += after
        queue.advance(now_s)
        if what == "add":
            queue.add(now_s)
            there += 1
        elif what == "late":
            queue.give_up_late(now_s)
        elif which < there and which not in gone:
            if what == "lose":
                queue.lose(which, now_s)
                gone.add(which)
            elif what == "leave":
                queue.leave(which)
            elif what in ("spare", "need"):
                queue.spare(which, is_spare=what == "spare")
            else:
                queue.come_back(which, now_s)
        assert all(queue.serving_s(replica, now_s) <= now_s for replica in range(there))
    queue.advance(1e6)
    queue.give_up_late(1e6)
    answered = sum(not math.isnan(at_s) for at_s in queue.started_s)
    assert queue.is_settled
    assert answered + queue.lost == len(times)
    for (arrival, _), begun in zip(sorted(times), queue.started_s, strict=True):
        assert math.isnan(begun) or arrival <= begun <= arrival + 40.0
