"""What is parked when the agent dies is parked for its successor."""

from __future__ import annotations

import signal

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc

from glowplug.runtime.cgroup import ReplicaCgroup

pytestmark = pytest.mark.sandbox


@pytest.mark.parametrize("runtime", ["runsc", "runc"])
def test_a_parked_replica_is_adopted_as_parked_and_wakes_with_its_memory(
    own_agent: LiveAgent, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    own_agent.runtime = runtime
    view = own_agent.start(own_agent.server())
    before = own_agent.ask(view, "/state")
    own_agent.client.post(f"/v1/replicas/{view['id']}/park").raise_for_status()
    own_agent.kill()
    own_agent.start_again()
    assert own_agent.view(view["id"])["state"] == "parked"
    assert own_agent.client.get("/v1/node").json()["cpus_used"] == 0
    own_agent.client.post(f"/v1/replicas/{view['id']}/unpark").raise_for_status()
    assert own_agent.ask(view, "/state") == before


def test_the_cgroup_says_what_is_parked_not_what_was_written_down(own_agent: LiveAgent) -> None:
    frozen, thawed = (own_agent.start(own_agent.server()) for _ in range(2))
    own_agent.client.post(f"/v1/replicas/{thawed['id']}/park").raise_for_status()
    own_agent.kill()
    ReplicaCgroup(frozen["id"]).freeze()
    ReplicaCgroup(thawed["id"]).thaw()
    own_agent.start_again()
    assert own_agent.view(frozen["id"])["state"] == "parked"
    assert own_agent.view(thawed["id"])["state"] == "ready"


def test_one_that_was_being_stopped_ends_although_it_was_found_frozen(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server(env={"STUBBORN": "1"}))
    own_agent.client.post(f"/v1/replicas/{view['id']}/stop?grace_s=60").raise_for_status()
    own_agent.kill()
    ReplicaCgroup(view["id"]).freeze()
    own_agent.start_again()
    assert own_agent.until(view["id"], "stopped")["exit_code"] == 128 + signal.SIGKILL


def test_an_agent_that_stops_everything_stops_what_is_parked_too(own_agent: LiveAgent) -> None:
    view = own_agent.start(own_agent.server())
    own_agent.client.post(f"/v1/replicas/{view['id']}/park").raise_for_status()
    own_agent.restart(signal.SIGINT)
    assert own_agent.leftovers() == []
