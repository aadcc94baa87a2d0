"""The two-phase commit over three processes: in order, and with every fault in every step.

The ranks are stand-ins (no PyTorch, no GPU): what is shown is order and safety. Real ones: ``test_gloo.py``.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nccl.ranks import DEADLINES, HURRIED, STORE_PORT, TOKEN, three_ranks

from glowplug.nccl.coordinator import Coordinator, Peer, disagreement
from glowplug.nccl.line import Line
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError, ReplicaFailed, SystemUnfit

RELEASED_BY = ["hold", "release"]
REBUILT_BY = ["rebuild", "verify", "open"]
FAULTY = 2
_COORDINATE = """
import os, sys
from glowplug.nccl.coordinator import Coordinator, Peer
from glowplug.nccl.words import Deadlines, Step
step, token, *ports = sys.argv[1:]
coordinator = Coordinator(
    [Peer(rank, int(port), "here") for rank, port in enumerate(ports)],
    token, Deadlines(), lambda deadline_s: 1,
)
ask_all = coordinator._ask_all
def dying(reached, asked, *rest, **more):
    answers = ask_all(reached, asked, *rest, **more)
    if asked.value == step:
        os._exit(9)
    return answers
coordinator._ask_all = dying
coordinator.prepare()
coordinator.resume()
"""


def cycle(coordinator: Coordinator) -> None:
    coordinator.prepare()
    coordinator.resume()


def asked(rank: Any) -> list[str]:
    return list(rank.ask("look")["asked"])


def test_all_hold_before_any_releases_and_all_verify_before_any_goes_on() -> None:
    with three_ranks() as (ranks, coordinator):
        coordinator.prepare()
        assert [asked(rank) for rank in ranks] == [RELEASED_BY] * 3
        assert {rank.gate() for rank in ranks} == {"waiting"}
        coordinator.resume()
        rebuilt = ["hold", "release", f"generation 1 at {STORE_PORT}", *REBUILT_BY]
        assert [asked(rank) for rank in ranks] == [rebuilt] * 3
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3
        coordinator.prepare()
        coordinator.resume()
        assert asked(ranks[0])[-4] == f"generation 2 at {STORE_PORT}"
        assert (coordinator.counts.prepared, coordinator.counts.resumed) == (2, 2)


@pytest.mark.parametrize("step", RELEASED_BY)
def test_a_rank_that_refuses_while_preparing_leads_all_back(step: str) -> None:
    with three_ranks({FAULTY: {step: "raise"}}) as (ranks, coordinator):
        with pytest.raises(ReplicaFailed, match=f"Rank 2 failed to {step}") as caught:
            coordinator.prepare()
        assert caught.value.details["left"] == "running"
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3
        assert coordinator.counts.rolled_back == 1
        cycle(coordinator)  # the fault was struck once


@pytest.mark.parametrize("step", REBUILT_BY)
def test_a_rank_that_fails_to_come_back_is_an_error_for_all(step: str) -> None:
    with three_ranks({FAULTY: {step: "raise"}}) as (ranks, coordinator):
        coordinator.prepare()
        with pytest.raises(ReplicaFailed, match=f"Rank 2 failed to {step}") as caught:
            coordinator.resume()
        assert caught.value.details["left"] == "failed"
        assert [rank.gate_within("replica_failed") for rank in ranks] == ["replica_failed"] * 3


@pytest.mark.parametrize("step", RELEASED_BY + REBUILT_BY)
def test_a_rank_that_dies_in_any_step_releases_all_others_with_an_error(step: str) -> None:
    with three_ranks({FAULTY: {step: "die"}}) as (ranks, coordinator):
        with pytest.raises(ReplicaFailed, match="Rank 2 ended") as caught:
            cycle(coordinator)
        assert caught.value.details["left"] == "failed"
        assert [rank.gate_within("replica_failed") for rank in ranks[:FAULTY]] == ["replica_failed"] * 2
        assert ranks[FAULTY].gate() == "dead"


@pytest.mark.parametrize(
    "step",
    # Each gives up after seconds of waiting, in the same way; by day the first of either half.
    [
        step if step in (RELEASED_BY[0], REBUILT_BY[0]) else pytest.param(step, marks=pytest.mark.nightly)
        for step in RELEASED_BY + REBUILT_BY
    ],
)
def test_a_rank_that_hangs_in_any_step_is_given_up_and_gives_itself_up(step: str) -> None:
    with three_ranks({FAULTY: {step: "hang"}}, HURRIED) as (ranks, coordinator):
        with pytest.raises(DeadlineExceeded, match=f"Rank 2 did not {step} in time") as caught:
            cycle(coordinator)
        assert caught.value.details["left"] == "failed"
        gates = [rank.gate_within("deadline_exceeded", "replica_failed") for rank in ranks]
        assert gates == ["deadline_exceeded"] * 3


@pytest.mark.parametrize("step", [*RELEASED_BY, "rebuild", "verify"])
def test_ranks_whose_coordinator_dies_do_not_wait_for_it(step: str) -> None:
    with three_ranks() as (ranks, _):
        ports = [str(rank.port) for rank in ranks]
        done = subprocess.run(
            [sys.executable, "-c", _COORDINATE, step, TOKEN, *ports], timeout=120, check=False
        )
        assert done.returncode == 9
        assert [rank.gate_within("replica_failed") for rank in ranks] == ["replica_failed"] * 3


def test_a_coordinator_that_says_nothing_for_too_long_is_given_up() -> None:
    with three_ranks(deadlines=replace(DEADLINES, gap_s=4)) as (ranks, coordinator):
        reached: list[Any] = []
        coordinator._connect(reached)
        coordinator._hold(reached)
        assert [rank.gate_within("replica_failed") for rank in ranks] == ["replica_failed"] * 3


def test_released_ranks_that_nobody_resumes_are_given_up_in_the_end() -> None:
    deadlines = replace(DEADLINES, unresumed_s=2, gap_s=4)
    with three_ranks(deadlines=deadlines) as (ranks, coordinator):
        coordinator.prepare()
        assert [rank.gate_within("deadline_exceeded") for rank in ranks] == ["deadline_exceeded"] * 3


def test_a_stopped_process_is_not_counted_as_one_that_nobody_resumes() -> None:
    deadlines = replace(DEADLINES, unresumed_s=4, gap_s=4)
    with three_ranks(deadlines=deadlines) as (ranks, coordinator):
        coordinator.prepare()
        for rank in ranks:
            rank.process.send_signal(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            ranks[0].process.wait(10.0)  # longer than both together
        for rank in ranks:
            rank.process.send_signal(signal.SIGCONT)
        coordinator.resume()
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3


def test_a_program_at_work_is_tried_again_until_all_ranks_are_between_the_same_collectives() -> None:
    with three_ranks({1: {"busy": "2"}}) as (ranks, coordinator):
        coordinator.prepare()
        assert asked(ranks[0]).count("hold") == 3
        coordinator.resume()


@pytest.mark.parametrize("faults", [{"busy": "1000"}, {"hold": "wrong"}])
def test_ranks_that_never_stop_at_the_same_place_go_on(faults: dict[str, str]) -> None:
    with three_ranks({1: faults}, replace(HURRIED, hold_s=2)) as (ranks, coordinator):
        with pytest.raises(Conflict) as caught:
            coordinator.prepare()
        assert caught.value.details["left"] == "running"
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3


def test_ranks_elsewhere_are_refused_before_anybody_is_asked() -> None:
    with three_ranks() as (ranks, coordinator):
        coordinator.peers = [*coordinator.peers[:2], replace(coordinator.peers[2], place="there")]
        with pytest.raises(SystemUnfit, match="Ranks 2 run on another host") as caught:
            coordinator.prepare()
        assert caught.value.details["unsupported"] == ["other hosts"]
        assert [asked(rank) for rank in ranks] == [[], [], []]


def test_twice_is_refused_and_changes_nothing() -> None:
    with three_ranks() as (ranks, coordinator):
        with pytest.raises(Conflict, match="Nothing is released"):
            coordinator.resume()
        coordinator.prepare()
        with pytest.raises(Conflict, match="released already") as caught:
            coordinator.prepare()
        assert caught.value.details["left"] == "released"
        coordinator.resume()
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3


def test_a_dead_rank_is_found_when_the_next_preparation_begins() -> None:
    with three_ranks() as (ranks, coordinator):
        ranks[FAULTY].close()
        with pytest.raises(ReplicaFailed, match="Rank 2 ended before") as caught:
            coordinator.prepare()
        assert caught.value.details["left"] == "failed"
        assert [rank.gate_within("replica_failed") for rank in ranks[:2]] == ["replica_failed"] * 2


@pytest.mark.parametrize(
    "sent",
    [
        b'{"version": 1, "token": "another", "step": "hold", "deadline_s": 1}\n',
        b'{"version": 2, "token": "a token of the job", "step": "hold", "deadline_s": 1}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\x00\n",
        b"",
    ],
)
def test_whoever_is_no_rank_gets_no_answer_and_does_no_harm(sent: bytes) -> None:
    with three_ranks() as (ranks, coordinator):
        coordinator.prepare()
        for rank in ranks:
            with socket.create_connection(("127.0.0.1", rank.port), 30) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                assert Line(connection).receive(30.0) is None
        coordinator.resume()
        assert [rank.gate_within("open") for rank in ranks] == ["open"] * 3


CENSUS = st.fixed_dictionaries({"begun": st.integers(0, 3), "ranks": st.just([0, 1])})


CENSUSES = st.dictionaries(st.sampled_from(["a", "b"]), CENSUS)


@given(CENSUSES, CENSUSES)
def test_ranks_agree_exactly_when_their_censuses_are_equal(
    mine: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]
) -> None:
    assert (disagreement({0: mine, 1: theirs}) is None) == (mine == theirs)


def test_members_that_differ_are_no_matter_of_trying_again() -> None:
    problem = disagreement({0: {"a": {"begun": 1, "ranks": [0, 1]}}, 1: {"a": {"begun": 1, "ranks": [1, 0]}}})
    assert isinstance(problem, GlowplugError)
    assert not problem.details.get("is_busy")


def test_a_group_that_only_some_ranks_are_in_is_compared_among_them() -> None:
    pair = {"begun": 4, "ranks": [2, 3]}
    assert disagreement({0: {}, 1: {}, 2: {"pair": pair}, 3: {"pair": pair}}) is None


def test_the_coordinator_needs_nobody_to_know_that_it_has_nothing_to_resume() -> None:
    with pytest.raises(Conflict):
        Coordinator([Peer(0, 1, "here")], TOKEN, DEADLINES, lambda deadline_s: 0).resume()
