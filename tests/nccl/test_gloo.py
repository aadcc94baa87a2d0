"""Four real ranks of PyTorch, with Gloo: the program's objects work before, and after, what is done to them.

NCCL needs GPUs: nothing of it is run by any test here.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.engines import ENGINE, require_engine
from tests.ports import free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

PROGRAM = Path(__file__).with_name("gloo_ranks.py")
SOURCES = Path(__file__).resolve().parents[2] / "src"
RANKS = 4
STEPS = ["hold", "release", "rebuild", "verify", "open"]


def ranks(scenario: str, argument: str = "") -> list[Any]:
    """What each rank returned."""
    require_engine()
    first, second = free_ports(2)
    done = subprocess.run(
        [str(ENGINE / "bin" / "python"), str(PROGRAM), scenario, argument],
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCES),
            "OMP_NUM_THREADS": "1",
            "MASTER_PORT": str(first),
            "SECOND_PORT": str(second),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    results = [said[str(rank)] for rank in range(RANKS)]
    raised = [one["raised"] for one in results if isinstance(one, dict) and "raised" in one]
    assert not raised, f"{raised[0]}\n{done.stderr[-3000:]}"
    return results


def expected(rank: int) -> dict[str, Any]:
    """What every collective of ``gloo_ranks.compute`` has as its result on this rank."""
    pair = rank // 2 * 2
    order = [1, 3, 0, 2]
    return {
        "sum": 10.0,
        "gathered": [[float(other), 0.5] for other in range(RANKS)],
        "pair": pair + 1.0,
        "told": 3.0,
        "later": [2.0, 2.0, 2.0],
        "scattered": 6.0 + 4.0 * rank,
        "objects": [{"rank": other} for other in order],
        "received": rank - 1.0 if rank % 2 else -1.0,
        "by_name": [2.0, *map(float, order)],
        "place": [rank - pair, 2, order.index(rank)],
    }


def test_groups_are_the_same_objects_with_the_same_results_after_every_preparation() -> None:
    results = ranks("cycles")
    for rank, result in enumerate(results):
        *seen, last = result["seen"]
        assert last.pop("late", 2.0) == 2.0, "a group made afterwards"
        assert [*seen, last] == [expected(rank)] * 3
        assert result["is_same"]
        assert result["names"] == [rank, RANKS, "gloo", "all again"]
        assert result["status"] == ["running", 2, 3 + (rank in (0, 3))]
        assert result["limits"] == [60.0, 1800.0, 1800.0], "the program's own time limits"
    assert results[0]["counts"] == {"prepared": 2, "resumed": 2, "rolled_back": 0, "given_up": 0}
    assert results[1]["counts"] is None


def test_no_connection_between_ranks_is_open_while_they_are_released() -> None:
    for result in ranks("cycles"):
        before, away = result["open"]
        assert before > 0
        assert away == [0, 0]


def test_a_program_at_work_is_stopped_between_two_collectives_and_goes_on() -> None:
    for result in ranks("at_work"):
        assert result == {"is_right": True, "is_still": True, "was_caught": True}


def test_ranks_that_wait_inside_a_collective_are_refused_and_unharmed() -> None:
    results = ranks("in_the_middle")
    assert results[0]["said"] == "conflict"
    for rank, result in enumerate(results):
        assert result["state"] == "running"
        assert result["seen"] == expected(rank)


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=[] if step == "release" else [pytest.mark.nightly]) for step in STEPS],
)
def test_a_rank_that_dies_in_a_step_is_an_error_everywhere(step: str) -> None:
    results = ranks("dies", step)
    assert results[2] == "ended"
    assert results[0]["said"] == "replica_failed"
    assert [results[rank]["later"] for rank in (0, 1, 3)] == ["replica_failed"] * 3


@pytest.mark.nightly
def test_what_raises_before_a_release_leads_all_back() -> None:
    results = ranks("breaks", "before_release")
    assert results[0]["said"] == "replica_failed"
    assert [result["seen"] for result in results] == [expected(rank) for rank in range(RANKS)]


@pytest.mark.nightly
def test_what_raises_after_a_rebuild_is_an_error_everywhere() -> None:
    results = ranks("breaks", "after_rebuild")
    assert results[0]["said"] == "replica_failed"
    assert [result["later"] for result in results] == ["replica_failed"] * RANKS


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("what", "named"), [("split", "groups split from"), ("debug", "TORCH_DISTRIBUTED_DEBUG=DETAIL")]
)
def test_what_cannot_be_captured_is_refused_by_name_and_goes_on(what: str, named: str) -> None:
    results = ranks("refused", what)
    assert results[0]["said"].startswith("system_unfit: ")
    assert named in results[0]["said"]
    assert [result["seen"] for result in results] == [expected(rank) for rank in range(RANKS)]


@pytest.mark.nightly  # tests/nccl/test_coordinator.py waits for the same
def test_ranks_that_nobody_resumes_take_themselves_back() -> None:
    for rank, result in enumerate(ranks("forgotten")):
        assert result == {"seen": expected(rank), "generation": 1}


def test_enabled_too_late_it_says_so() -> None:
    assert ranks("too_late") == [{"said": "conflict", "status": "conflict", "prepare": "conflict"}] * RANKS


@pytest.mark.nightly
def test_groups_may_be_destroyed_and_a_second_world_made() -> None:
    for result in ranks("leaves"):
        assert result == {"left": 2, "sum": 4.0, "again": 10.0}


def test_communicators_that_can_be_suspended_are_kept_and_resumed() -> None:
    """With Gloo's in the place of NCCL's: order and bookkeeping, nothing about NCCL itself."""
    for rank, result in enumerate(ranks("suspends")):
        assert result["away"] == ["flush", "suspend"] * 3
        assert result["calls"] == ["resume"] * 3
        assert result["is_kept"]
        assert result["seen"] == expected(rank)
