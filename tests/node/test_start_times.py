"""When a snapshot is given up because it does not pay: the verdict, its evidence, what survives a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.node.start_times import ENOUGH, KEPT, MAX_KEYS, StartTimes

seconds = st.floats(min_value=0, max_value=1e5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "start-times.json"


def learned(file: Path, *, cold: list[float], restored: list[float]) -> StartTimes:
    times = StartTimes(file)
    for one in cold:
        times.note_cold("sn-a", one)
    for one in restored:
        times.note_restore("sn-a", one)
    return times


def test_restores_that_are_faster_are_left_alone(file: Path) -> None:
    times = learned(file, cold=[50.0], restored=[1.5] * 5)
    assert times.why_cold("sn-a") is None
    assert times.why_cold("sn-b") is None


def test_restores_that_look_slow_make_cold_starts_until_there_are_enough_to_compare(file: Path) -> None:
    times = learned(file, cold=[1.0], restored=[2.0] * ENOUGH)
    assert times.why_cold("sn-a") == (
        "a cold start is measured (2 of 3): median 2.00 s of 3 restores, 1.00 s of 1 cold starts"
    )
    assert times.opted_out("sn-a") is None
    times.note_cold("sn-a", 1.0)
    times.note_cold("sn-a", 1.0)
    verdict = (
        "opted out: restores are not faster than cold starts (median 2.00 s of 3 restores, 1.00 s of 3 cold"
    )
    assert str(times.opted_out("sn-a")).startswith(verdict)
    assert times.why_cold("sn-a") == times.opted_out("sn-a")
    assert times.opted_out_keys() == 1


def test_cold_starts_that_turn_out_slower_end_the_doubt(file: Path) -> None:
    times = learned(file, cold=[1.0], restored=[2.0] * ENOUGH)
    times.note_cold("sn-a", 9.0)
    times.note_cold("sn-a", 9.0)
    assert times.why_cold("sn-a") is None


def test_without_a_cold_start_to_compare_with_nothing_is_doubted(file: Path) -> None:
    """As with a snapshot that was captured on another node."""
    assert learned(file, cold=[], restored=[99.0] * 9).why_cold("sn-a") is None


def test_a_verdict_outlives_the_agent_and_better_times_until_it_is_forgotten(file: Path) -> None:
    learned(file, cold=[1.0] * ENOUGH, restored=[2.0] * ENOUGH)
    again = StartTimes(file)
    assert again.opted_out("sn-a")
    again.note_restore("sn-a", 0.0)
    assert again.opted_out("sn-a"), "it does not flap"
    again.forget("sn-a")
    assert StartTimes(file).why_cold("sn-a") is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2}', b'{"keys": {"a": {"cold_s": [NaN]}}}'])
def test_a_file_that_cannot_be_read_costs_what_was_learned_and_nothing_else(
    file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    times = StartTimes(file)
    times.note_cold("sn-a", 1.0)
    assert times.why_cold("sn-a") is None


def test_a_file_that_cannot_be_written_changes_no_verdict(tmp_path: Path) -> None:
    times = learned(tmp_path / "absent" / "x.json", cold=[1.0] * ENOUGH, restored=[2.0] * ENOUGH)
    assert times.opted_out("sn-a")


def test_the_keys_used_longest_ago_are_dropped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = StartTimes(file)
    monkeypatch.setattr(times, "_save", lambda: None)
    learnt = [f"sn-{number}" for number in range(MAX_KEYS + 5)]
    for key in learnt:
        times.note_cold(key, 1.0)
    assert list(times._keys) == learnt[5:]


@given(st.lists(st.tuples(st.booleans(), seconds), max_size=40))
def test_no_verdict_without_enough_of_both_kinds(starts: list[tuple[bool, float]]) -> None:
    times = StartTimes(Path("/nonexistent/start-times.json"))
    counts = {True: 0, False: 0}
    for is_cold, took_s in starts:
        (times.note_cold if is_cold else times.note_restore)("sn-a", took_s)
        counts[is_cold] += 1
        if times.opted_out("sn-a"):
            assert min(counts.values()) >= ENOUGH
    known = times._keys.get("sn-a")
    assert known is None or max(len(known.cold_s), len(known.restored_s)) <= KEPT
