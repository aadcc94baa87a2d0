"""When a restore from far away is given up for a cold start, and when it is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.node.restore_watch import JUDGED_AFTER_S, SILENT_S, SLACK_S, Judge, RestoreWatch, TooFarAway
from glowplug.observe.metrics import ReasonClass, reason_class
from glowplug.types.clock import SystemClock
from glowplug.types.content import Fetching

MB = 1_000_000
LOOK_S = 0.25


def verdict(
    *,
    missing_bytes: int,
    cold_s: float | None,
    bytes_per_s: float,
    silent_from_s: float = 1e9,
    in_flight: int = 12,
    until_s: float = 600.0,
) -> tuple[float, str | None]:
    """When the judge gives up, or everything has come, and what it says."""
    judge, now_s = Judge(missing_bytes, cold_s, 100.0, Fetching(7, in_flight)), 0.0
    while now_s < until_s:
        now_s += LOOK_S
        came_bytes = min(int(bytes_per_s * min(now_s, silent_from_s)), missing_bytes)
        problem = judge.problem(100.0 + now_s, Fetching(7 + came_bytes, in_flight))
        if problem is not None or came_bytes >= missing_bytes:
            return now_s, problem
    return now_s, None


def test_a_region_that_falls_silent_is_left_after_a_few_seconds() -> None:
    after_s, problem = verdict(missing_bytes=300 * MB, cold_s=None, bytes_per_s=50 * MB, silent_from_s=2.0)
    assert SILENT_S <= after_s - 2.0 <= SILENT_S + 2 * LOOK_S
    assert problem == "the region sent 0 bytes in 3.0 s (100.0 MB of 300.0 MB had come)"


def test_a_byte_a_second_is_silence() -> None:
    after_s, problem = verdict(missing_bytes=300 * MB, cold_s=None, bytes_per_s=1)
    assert after_s == pytest.approx(SILENT_S, abs=LOOK_S)
    assert problem is not None


@pytest.mark.parametrize(("cold_s", "is_given_up"), [(3.4, True), (120.0, False), (None, False)])
def test_two_megabytes_a_second_are_worth_it_if_a_cold_start_takes_long_or_nobody_knows(
    cold_s: float | None, is_given_up: bool
) -> None:
    after_s, problem = verdict(missing_bytes=200 * MB, cold_s=cold_s, bytes_per_s=2 * MB)
    assert (problem is not None) is is_given_up
    if is_given_up:
        assert after_s == pytest.approx(JUDGED_AFTER_S, abs=LOOK_S)
        assert problem == (
            "the region sends 2.00 MB/s, so the other 196.0 MB would take 98 s, and a cold start takes 3.4 s"
        )


def test_a_region_that_becomes_slow_is_judged_by_what_it_does_now() -> None:
    judge, came_bytes = Judge(1000 * MB, 60.0, 0.0, Fetching(0, 12)), 0
    for look in range(1, 200):
        came_bytes += (100 * MB if look < 20 else MB) // 4
        if problem := judge.problem(look * LOOK_S, Fetching(came_bytes, 12)):
            break
    assert problem is not None
    assert 20 < look < 20 + 2 * SILENT_S / LOOK_S


def test_nothing_is_judged_while_nothing_is_fetched() -> None:
    """All has come, or only the processor is waited for."""
    assert verdict(missing_bytes=9 * MB, cold_s=1.0, bytes_per_s=0, in_flight=0)[1] is None
    judge = Judge(9 * MB, 1.0, 0.0, Fetching(0, 12))
    assert judge.problem(1.0, Fetching(9 * MB, 12)) is None
    assert judge.problem(60.0, Fetching(9 * MB, 12)) is None


def test_a_daemon_that_was_started_again_begins_to_count_anew() -> None:
    judge = Judge(900 * MB, None, 0.0, Fetching(500 * MB, 12))
    assert judge.problem(2.9, Fetching(510 * MB, 12)) is None
    assert judge.problem(3.5, Fetching(0, 12)) is None
    assert judge.problem(6.0, Fetching(0, 12)) is None, "not three seconds of its own"


@given(
    st.integers(MB, 10_000 * MB),
    st.floats(0.1, 1000.0),
    st.floats(0.0, 1e9),
    st.one_of(st.just(1e9), st.floats(0.0, 100.0)),
)
def test_fetching_costs_at_most_about_a_cold_start_more_than_it_would_have_taken(
    missing_bytes: int, cold_s: float, bytes_per_s: float, silent_from_s: float
) -> None:
    after_s, problem = verdict(
        missing_bytes=missing_bytes, cold_s=cold_s, bytes_per_s=bytes_per_s, silent_from_s=silent_from_s
    )
    allowed_s = min(silent_from_s, cold_s) + cold_s / 10 + SLACK_S + SILENT_S + 4 * LOOK_S
    assert after_s <= max(allowed_s, missing_bytes / max(bytes_per_s, 1e-9) + LOOK_S)
    if problem is None:
        assert missing_bytes / bytes_per_s <= cold_s + allowed_s


@pytest.mark.parametrize("bytes_per_s", [0, 2 * MB])
def test_its_reasons_are_counted_as_the_regions(bytes_per_s: float) -> None:
    problem = verdict(missing_bytes=500 * MB, cold_s=3.0, bytes_per_s=bytes_per_s)[1]
    assert reason_class(f"restore of sn-0123456789abcdef failed: {problem}") is ReasonClass.REGION


class FarSnapshot:
    """A snapshot whose bytes come from elsewhere, as far as a watch sees it."""

    id = "sn-0123456789abcdef"

    def __init__(self) -> None:
        self.now = Fetching(failed=5, invalid=2)
        self.left_bytes = MB

    def missing_bytes(self) -> int:
        return self.left_bytes

    def fetching(self) -> Fetching:
        return self.now


@pytest.mark.parametrize(
    ("failed", "invalid", "left_bytes", "is_far"),
    [(5, 2, MB, False), (8, 2, MB, True), (8, 3, MB, False), (0, 0, MB, False), (8, 2, 0, False)],
)
async def test_bytes_that_nobody_gave_explain_a_failure_and_wrong_ones_do_not(
    failed: int, invalid: int, left_bytes: int, is_far: bool
) -> None:
    async def give_up() -> None:
        pass

    snapshot: Any = FarSnapshot()
    watch = RestoreWatch(snapshot, 60.0, 120.0, SystemClock(), give_up)
    await watch.begin()
    snapshot.now, snapshot.left_bytes = Fetching(failed=failed, invalid=invalid), left_bytes
    await watch.explain()  # although the watch has not looked once
    assert isinstance(watch.problem, TooFarAway) is is_far
    if is_far:
        assert watch.problem is not None
        reason = f"restore of {snapshot.id} failed: {watch.problem.message}"
        assert reason_class(reason) is ReasonClass.REGION
        assert "for 3 pieces" in reason


async def test_a_failure_before_anything_was_fetched_is_not_the_regions() -> None:
    async def give_up() -> None:
        pass

    snapshot: Any = FarSnapshot()
    watch = RestoreWatch(snapshot, 60.0, 120.0, SystemClock(), give_up)
    await watch.explain()
    assert watch.problem is None
