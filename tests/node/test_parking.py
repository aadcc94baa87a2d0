"""Parked replicas, in both runtimes: frozen, perhaps in swap, and awake again as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.swap_file import swap_file

from glowplug.runtime.cgroup import ReplicaCgroup

pytestmark = pytest.mark.sandbox

HELD_MIB = 64


@pytest.fixture(autouse=True, params=["runsc", "runc"])
def _in_each_runtime(request: pytest.FixtureRequest, agent: LiveAgent) -> None:
    if request.param == "runc":
        require_runc()
    agent.runtime = request.param


@pytest.fixture
def swap() -> Iterator[Path]:
    with swap_file(512 << 20) as file:
        yield file


def park(agent: LiveAgent, view: dict[str, Any], *, push_out: bool = False) -> dict[str, Any]:
    answer = agent.client.post(f"/v1/replicas/{view['id']}/park", params={"push_out": push_out})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def unpark(agent: LiveAgent, view: dict[str, Any]) -> dict[str, Any]:
    answer = agent.client.post(f"/v1/replicas/{view['id']}/unpark")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_parked_replica_is_frozen_and_remembers_everything_when_it_wakes(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    agent.ask(view, "/hook?word=before")
    before = agent.ask(view, "/state")
    parked = park(agent, view)
    assert (parked["state"], parked["is_pushed_out"]) == ("parked", False)
    assert parked["parked_at"] is not None
    assert ReplicaCgroup(view["id"]).is_frozen
    awake = unpark(agent, view)
    assert (awake["state"], awake["path"], awake["parked_at"]) == ("ready", "parked", None)
    assert set(awake["stages_s"]) == {"host_init", "first_answer"}
    assert agent.ask(awake, "/state") == before


def test_parking_and_waking_twice_is_doing_it_once(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    assert park(agent, view)["parked_at"] == park(agent, view)["parked_at"]
    assert unpark(agent, view)["ready_at"] == unpark(agent, view)["ready_at"]


def test_a_parked_replica_takes_no_processor_and_only_the_memory_it_holds(agent: LiveAgent) -> None:
    view = agent.start(agent.server(resources={"memory_bytes": 1 << 30, "cpus": 2}))
    promised = agent.client.get("/v1/node").json()
    park(agent, view)
    node = agent.client.get("/v1/node").json()
    assert (promised["cpus_used"], node["cpus_used"]) == (2, 0)
    assert node["memory_used_bytes"] < promised["memory_used_bytes"] / 2
    unpark(agent, view)
    assert agent.client.get("/v1/node").json()["memory_used_bytes"] == promised["memory_used_bytes"]


def test_memory_that_is_pushed_out_lies_in_swap_and_comes_back_unchanged(
    agent: LiveAgent, swap: Path
) -> None:
    view = agent.start(agent.server(resources={"memory_bytes": 256 << 20}))
    agent.ask(view, f"/hold?mib={HELD_MIB}")
    before = agent.ask(view, "/state")
    park(agent, view, push_out=True)
    out = eventually(
        lambda: now if (now := agent.view(view["id"]))["is_pushed_out"] else None, "its memory is out", 120
    )
    assert out["swapped_bytes"] >= HELD_MIB << 20
    assert out["memory_bytes"] < HELD_MIB << 19
    unpark(agent, view)
    assert agent.ask(view, "/state") == before


def test_waking_one_whose_memory_is_on_its_way_out_is_fine(agent: LiveAgent, swap: Path) -> None:
    view = agent.start(agent.server(resources={"memory_bytes": 256 << 20}))
    agent.ask(view, f"/hold?mib={HELD_MIB}")
    for _ in range(3):
        park(agent, view, push_out=True)
        assert unpark(agent, view)["state"] == "ready"
    assert agent.ask(view) == "hello"


@pytest.mark.parametrize("grace_s", [0, 60])
def test_a_parked_replica_can_be_stopped(agent: LiveAgent, grace_s: float) -> None:
    view = agent.start(agent.server())
    park(agent, view)
    ended = agent.stop(view["id"], grace_s=grace_s)
    assert ended["state"] == "stopped"
    assert ended["exit_code"] == (0 if grace_s else 128 + signal.SIGKILL)


def test_one_that_is_killed_while_it_is_frozen_is_found_dead(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    park(agent, view)
    os.kill(view["pid"], signal.SIGKILL)
    ended = agent.until(view["id"], "failed")
    assert "signal 9" in ended["error"]["message"]


def test_nothing_can_be_run_in_a_parked_replica_and_none_is_parked_under_a_command(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    command = agent.state.replicas / view["id"] / "execs" / "one"
    command.write_text("")
    answer = agent.client.post(f"/v1/replicas/{view['id']}/park")
    assert answer.status_code == 409
    assert "Somebody works in" in answer.json()["message"]
    command.unlink()
    park(agent, view)


def test_one_that_may_need_more_than_there_is_stays_parked_until_there_is_room(agent: LiveAgent) -> None:
    all_bytes = agent.client.get("/v1/node").json()["memory_bytes"]
    large = {"memory_bytes": int(all_bytes * 0.6)}
    view = agent.start(agent.server(resources=large))
    park(agent, view)
    other = agent.start(agent.server(resources=large))
    answer = agent.client.post(f"/v1/replicas/{view['id']}/unpark")
    assert answer.status_code == 503
    assert "No room" in answer.json()["message"]
    assert agent.view(view["id"])["state"] == "parked"
    agent.stop(other["id"], grace_s=0)
    assert unpark(agent, view)["state"] == "ready"


def test_one_that_does_not_answer_when_it_is_woken_is_killed(agent: LiveAgent, tmp_path: Path) -> None:
    (tmp_path / "sound").write_text("yes")
    view = agent.start(
        agent.server(
            ready={"path": "/read?path=/shared/sound"},
            volumes=[{"host_path": str(tmp_path), "mount_path": "/shared"}],
        )
    )
    park(agent, view)
    (tmp_path / "sound").unlink()
    answer = agent.client.post(f"/v1/replicas/{view['id']}/unpark")
    assert answer.status_code >= 500
    assert "ready call" in answer.json()["message"]
    assert agent.until(view["id"], "failed")["state"] == "failed"


def test_what_is_not_ready_is_not_parked(agent: LiveAgent) -> None:
    replica_id = agent.begin(agent.server(env={"SLOW_S": "1000"}))
    for step in ("park", "unpark"):
        answer = agent.client.post(f"/v1/replicas/{replica_id}/{step}")
        assert answer.status_code == 409
        assert "is starting" in answer.json()["message"]


def test_an_unknown_replica_is_not_found(agent: LiveAgent) -> None:
    assert agent.client.post("/v1/replicas/nobody/park").status_code == 404
