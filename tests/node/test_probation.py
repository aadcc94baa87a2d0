"""When a node stops restoring, and how it finds back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.node.probation import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, NodeProbation
from glowplug.types.clock import ManualClock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "restores.json"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def quarantined(file: Path, clock: ManualClock) -> NodeProbation:
    probation = NodeProbation(file, clock)
    for name in "abc":
        probation.note_failure(f"sn-{name}", "it died")
    return probation


def test_one_snapshot_that_fails_again_and_again_is_not_the_nodes_fault(
    file: Path, clock: ManualClock
) -> None:
    probation = NodeProbation(file, clock)
    for name in ["a", "a", "a", "b", "b", "a"]:
        probation.note_failure(f"sn-{name}", "it died")
    assert probation.why_cold() is None
    probation.note_success()
    probation.note_failure("sn-c", "it died")
    assert probation.quarantine is None, "a success in between starts the count anew"


def test_three_different_ones_in_a_row_are(quarantined: NodeProbation) -> None:
    reason = "restores of sn-a, sn-b, sn-c failed in a row (the last: it died); the next is tried in 60 s"
    assert reason in str(quarantined.why_cold())


def test_after_the_back_off_one_trial_is_allowed_and_its_success_lifts_it(
    quarantined: NodeProbation, clock: ManualClock
) -> None:
    clock.advance(FIRST_BACKOFF_S - 1)
    assert quarantined.why_cold()
    clock.advance(1)
    assert quarantined.why_cold() is None, "the trial"
    assert quarantined.why_cold(), "one at a time"
    quarantined.note_success()
    assert quarantined.quarantine is None
    assert quarantined.why_cold() is None


def test_a_trial_that_fails_doubles_the_back_off_up_to_a_limit(
    quarantined: NodeProbation, clock: ManualClock
) -> None:
    for number in range(1, 10):
        clock.advance(LONGEST_BACKOFF_S)
        assert quarantined.why_cold() is None
        quarantined.note_failure("sn-a", "again")
        wait_s = min(FIRST_BACKOFF_S * 2**number, LONGEST_BACKOFF_S)
        assert f"tried in {wait_s:.0f} s" in str(quarantined.why_cold())


def test_a_trial_that_nobody_reports_on_is_repeated(quarantined: NodeProbation, clock: ManualClock) -> None:
    clock.advance(FIRST_BACKOFF_S)
    assert quarantined.why_cold() is None
    clock.advance(FIRST_BACKOFF_S)
    assert quarantined.why_cold() is None


def test_it_outlives_the_agent(quarantined: NodeProbation, file: Path, clock: ManualClock) -> None:
    assert NodeProbation(file, clock).quarantine == quarantined.quarantine
    quarantined.note_success()
    assert NodeProbation(file, clock).quarantine is None


def test_a_clock_set_back_a_year_does_not_keep_it_for_a_year(quarantined: NodeProbation, file: Path) -> None:
    assert NodeProbation(file, ManualClock(1000.0)).why_cold() is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 9}', b'{"backoff_s": -1}'])
def test_a_file_that_cannot_be_read_quarantines_nobody(
    file: Path, clock: ManualClock, content: bytes
) -> None:
    file.write_bytes(content)
    assert NodeProbation(file, clock).why_cold() is None


@given(st.lists(st.sampled_from(["ok", "a", "b", "c", "wait"]), max_size=60))
def test_a_quarantined_node_always_gets_its_trial_within_the_longest_back_off(steps: list[str]) -> None:
    clock = ManualClock()
    probation = NodeProbation(Path("/nonexistent/restores.json"), clock)
    for step in steps:
        if step == "ok":
            probation.note_success()
            assert probation.quarantine is None
        elif step == "wait":
            clock.advance(FIRST_BACKOFF_S)
        else:
            probation.note_failure(f"sn-{step}", "it died")
    clock.advance(LONGEST_BACKOFF_S)
    assert probation.why_cold() is None
