"""Ends: asked for, forced, sudden. Whatever the end, everything is freed and the reason is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually

pytestmark = pytest.mark.sandbox

GRACE_S = 6
"""Long enough to be asked something meanwhile, on a busy machine."""


def test_a_server_that_obeys_sigterm_ends_with_its_own_exit_code(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    ended = agent.stop(view["id"], grace_s=20)
    assert (ended["state"], ended["exit_code"], ended["error"]) == ("stopped", 0, None)
    assert ended["pid"] is None
    assert ended["endpoint"] is None


def test_a_server_that_ignores_sigterm_is_killed_when_its_grace_is_over(agent: LiveAgent) -> None:
    view = agent.start(agent.server(env={"STUBBORN": "1"}))
    began = monotonic()
    stop = f"/v1/replicas/{view['id']}/stop?grace_s={GRACE_S}"
    assert agent.client.post(stop).json()["state"] == "draining"
    assert agent.ask(view) == "hello", "it may finish what it does"
    ended = agent.until(view["id"], "stopped")
    assert GRACE_S <= monotonic() - began < GRACE_S + 60
    assert ended["exit_code"] == 128 + signal.SIGKILL


def test_without_grace_a_stop_takes_a_fraction_of_a_second(agent: LiveAgent) -> None:
    def seconds_to_stop() -> float:
        view = agent.start(agent.server(env={"STUBBORN": "1"}))
        began = monotonic()
        agent.stop(view["id"], grace_s=0)
        return monotonic() - began

    assert any(seconds_to_stop() < 2 for _ in range(5)), "the machine may be busy, but not all the time"


def test_stopping_twice_is_one_stop_and_later_tells_how_it_ended(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    stop = f"/v1/replicas/{view['id']}/stop?grace_s=5"
    assert agent.client.post(stop).status_code == 202
    assert agent.client.post(stop).status_code == 202
    ended = agent.until(view["id"], "stopped")
    assert agent.client.post(stop).json() == ended


def test_a_replica_that_is_starting_is_stopped_at_once(agent: LiveAgent) -> None:
    replica_id = agent.begin(agent.server(env={"SLOW_S": "1000"}))
    eventually(lambda: agent.view(replica_id)["pid"], "its sandbox exists")
    began = monotonic()
    ended = agent.stop(replica_id, grace_s=600)
    assert monotonic() - began < 60
    assert (ended["state"], ended["error"]) == ("stopped", None)


@pytest.mark.parametrize("stage", ["allocate", "mount", "host_init"])
def test_a_start_may_be_stopped_in_any_stage(agent: LiveAgent, stage: str) -> None:
    replica_id = agent.begin(agent.server())
    eventually(lambda: agent.view(replica_id)["stage"] in (stage, "host_init", None))
    assert agent.stop(replica_id, grace_s=0)["state"] == "stopped"


def test_a_restore_may_be_stopped(agent: LiveAgent) -> None:
    server = agent.server(name="stop-restore", snapshot={}, env={"CASE": "stop-restore"})
    agent.captured(agent.start(server))
    ids = [agent.begin(server) for _ in range(3)]
    for replica_id in ids:
        assert agent.stop(replica_id, grace_s=0)["state"] == "stopped"
    snapshot = next(one for one in agent.snapshots() if one["server"] == "stop-restore")
    assert (snapshot["status"], snapshot["failures"]) == ("good", 0), "a stop is not the snapshot's failure"


def test_a_sandbox_that_is_killed_is_a_failure_with_its_exit_code(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    os.kill(view["pid"], signal.SIGKILL)
    ended = agent.until(view["id"], "failed")
    assert ended["exit_code"] == 137
    assert "exit code 137 (signal 9)" in ended["error"]["message"]
    eventually(lambda: agent.leftovers() == [])
    assert agent.client.get("/v1/node").json()["memory_used_bytes"] == 0


def test_a_server_that_exits_while_serving_is_told_with_its_last_words(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    agent.ask_and_lose(view, "/exit?code=9")
    ended = agent.until(view["id"], "failed")
    assert ended["exit_code"] == 9
    assert ended["error"]["details"]["log"].endswith("asked to exit with 9")


@pytest.mark.usefixtures("no_swap")
def test_out_of_memory_while_serving_is_named(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    agent.ask_and_lose(view, "/hold?mib=900")
    assert "ran out of memory" in agent.until(view["id"], "failed")["error"]["message"]


def test_a_capture_cannot_be_stopped_by_its_id(agent: LiveAgent) -> None:
    server = agent.server(name="capturing", snapshot={}, env={"CASE": "capturing", "SLOW_S": "3"})
    agent.start(server)

    def capturing() -> str | None:
        views = agent.client.get("/v1/replicas").json()
        return next((v["id"] for v in views if v["purpose"] == "capture" and v["state"] == "starting"), None)

    answer = agent.client.post(f"/v1/replicas/{eventually(capturing)}/stop")
    assert answer.status_code == 409
    assert "is being captured" in answer.json()["message"]


def test_sigint_to_the_agent_stops_all_replicas(own_agent: LiveAgent) -> None:
    serving = own_agent.start(own_agent.server(snapshot={}))
    starting = own_agent.begin(own_agent.server(env={"SLOW_S": "1000"}))
    eventually(lambda: own_agent.view(starting)["pid"], "its sandbox exists")
    own_agent.restart(signal.SIGINT)
    assert own_agent.leftovers() == []
    assert own_agent.client.get("/v1/replicas").json() == []
    for replica_id in (serving["id"], starting):
        assert Path(own_agent.state.replica_logs / f"{replica_id}.log").exists(), "logs stay"
