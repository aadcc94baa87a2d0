"""kill -9 of the agent: what serves goes on serving, what was half-made is cleaned up by its successor."""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually

pytestmark = pytest.mark.sandbox


def test_a_ready_replica_outlives_the_agent_and_is_adopted(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    own_agent.kill()
    assert own_agent.ask(view) == "hello", "nobody noticed"
    own_agent.start_again()
    adopted = own_agent.view(view["id"])
    assert (adopted["state"], adopted["pid"]) == ("ready", view["pid"])
    assert adopted["endpoint"] == view["endpoint"]
    assert own_agent.client.get("/v1/node").json()["memory_used_bytes"] > 0
    assert own_agent.ask(view) == "hello"
    ended = own_agent.stop(view["id"])
    assert (ended["state"], ended["exit_code"]) == ("stopped", 0)
    assert own_agent.leftovers() == []


def test_sigterm_leaves_replicas_to_the_next_agent(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    own_agent.restart(signal.SIGTERM)
    assert own_agent.view(view["id"])["state"] == "ready"
    assert own_agent.ask(view) == "hello"


def test_the_end_of_an_adopted_replica_is_noticed_with_its_exit_code(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    own_agent.kill()
    own_agent.start_again()
    own_agent.ask_and_lose(view, "/exit?code=4")
    assert own_agent.until(view["id"], "failed")["exit_code"] == 4


def test_a_replica_that_ended_while_no_agent_ran_is_told_so_and_freed(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    own_agent.kill()
    os.kill(view["pid"], signal.SIGKILL)
    own_agent.start_again()
    ended = own_agent.view(view["id"])
    assert (ended["state"], ended["exit_code"]) == ("failed", 137)
    assert "while no node agent was running" in ended["error"]["message"]
    assert own_agent.leftovers() == []


def test_a_replica_that_was_starting_is_cleaned_up(own_agent: LiveAgent) -> None:
    replica_id = own_agent.begin(own_agent.server(env={"SLOW_S": "1000"}))
    eventually(lambda: own_agent.view(replica_id)["pid"], "its sandbox exists")
    own_agent.kill()
    own_agent.start_again()
    ended = own_agent.view(replica_id)
    assert ended["state"] == "failed"
    assert "still starting" in ended["error"]["message"]
    assert ended["error"]["code"] == "start_interrupted", "no fault of the server: it is tried again at once"
    assert own_agent.leftovers() == []


def test_a_replica_that_was_draining_is_drained_by_the_next_agent(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server(env={"STUBBORN": "1"}))
    own_agent.client.post(f"/v1/replicas/{view['id']}/stop?grace_s=600")
    own_agent.kill()
    own_agent.start_again()
    assert own_agent.view(view["id"])["state"] == "draining"
    os.kill(view["pid"], signal.SIGKILL)
    assert own_agent.until(view["id"], "stopped")


def test_a_capture_is_cleaned_up_and_serving_goes_on(own_agent: LiveAgent) -> None:
    server = own_agent.server(snapshot={}, env={"SLOW_S": "0.5"})
    view = own_agent.start(server)
    eventually(lambda: list(own_agent.state.snapshot_staging.glob("sn-*.*")), "a capture is under way")
    own_agent.kill()
    own_agent.start_again()
    assert own_agent.ask(view) == "hello"
    assert own_agent.snapshots() == []
    assert {one["id"] for one in own_agent.client.get("/v1/replicas").json()} == {view["id"]}
    own_agent.stop(view["id"])
    assert own_agent.leftovers() == []
    cold = own_agent.start(server)
    assert own_agent.captured(cold)["status"] == "good", "the next cold start captures"


def test_a_folder_about_which_nothing_sound_was_written_is_removed(own_agent: LiveAgent) -> None:
    folder = own_agent.state.replicas / f"{own_agent.app}-odd"
    own_agent.kill()
    folder.mkdir()
    (folder / "replica.json").write_text('{"version": 1, "view": ')
    own_agent.start_again()
    assert own_agent.leftovers() == []


def test_two_agents_on_one_state_directory_are_refused(own_agent: LiveAgent) -> None:
    import subprocess
    import sys

    argv = [sys.executable, "-m", "glowplug.node", "--state", str(own_agent.state.root)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Another node agent runs" in done.stderr


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [15, pytest.param(60, marks=pytest.mark.nightly)])
def test_killed_at_any_moment_it_leaves_nothing_that_its_successor_does_not_clean_up(
    own_agent: LiveAgent, kills: int
) -> None:
    """Cold start, capture, restore and stop, over and over; the agent dies at a random moment each time."""
    moments = random.Random(kills)
    server = own_agent.server(snapshot={})
    for number in range(kills):
        cycle = threading.Thread(target=_cycle, args=(own_agent, server, number))
        cycle.start()
        threading.Event().wait(moments.uniform(0, 1.2))
        own_agent.kill()
        cycle.join(120)
        assert not cycle.is_alive()
        # Else it might find out, on a busy machine, that restores of so small a server do not pay.
        own_agent.state.start_times.unlink(missing_ok=True)
        own_agent.start_again()
        for view in own_agent.client.get("/v1/replicas").json():
            assert view["purpose"] == "serve"
            assert view["state"] in ("ready", "draining", "stopped", "failed"), "adopted, or over"
            if view["state"] == "ready":
                assert own_agent.ask(view) == "hello"
        own_agent.calm_down()
        eventually(
            lambda: own_agent.leftovers() == [],
            lambda number=number: f"kill {number}: {own_agent.leftovers()}",
        )
    views = own_agent.snapshots()
    assert all(view["status"] == "good" for view in views), views


def _cycle(agent: LiveAgent, server: dict[str, object], number: int) -> None:
    """Two replicas, one stopped half-way; ends when the agent does."""
    import httpx

    ids = [f"{agent.app}-web-{number}a", f"{agent.app}-web-{number}b"]
    try:
        for replica_id in ids:
            agent.begin(server, replica_id=replica_id)
        while agent.view(ids[0])["state"] == "starting":
            threading.Event().wait(0.01)
        agent.client.post(f"/v1/replicas/{ids[0]}/stop?grace_s=1")
        while True:
            agent.view(ids[1])
            threading.Event().wait(0.05)
    except (httpx.HTTPError, KeyError):
        return
