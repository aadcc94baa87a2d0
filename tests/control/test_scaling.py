"""Up, down and to zero, with the real reconciler and agent calls."""

from __future__ import annotations

import asyncio

import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.types.replica import ReplicaState


async def test_an_idle_server_falls_to_zero_after_its_window(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(scaling={"scaledown_window_s": 1.0})))
    await control.get("/shop/web/")
    assert len(agent.ready) == 1
    await eventually(lambda: not agent.ready, "no replica")
    assert (await control.get("/shop/web/")).status_code == 200
    assert len(agent.orders) == 2


async def test_a_replica_is_never_stopped_under_a_request(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(scaling={"scaledown_window_s": 0.1})))
    request = asyncio.create_task(control.get("/shop/web/wait"))
    await eventually(lambda: agent.ready, "a replica")
    replica = agent.servers[agent.ready[0].id]
    await eventually(lambda: replica.waiting, "the request")
    await asyncio.sleep(0.4)  # four windows
    assert agent.stops == []
    replica.release.set()
    assert (await request).status_code == 200
    await eventually(lambda: agent.stops, "the stop afterwards")


async def test_held_requests_start_as_many_as_they_need_and_no_more_than_allowed(
    control: Control, agent: FakeAgent
) -> None:
    scaling = {"max_replicas": 3, "target_concurrency": 2}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    agent.gate.clear()
    requests = [asyncio.create_task(control.get("/shop/web/")) for _ in range(20)]
    await eventually(lambda: len(agent.orders) == 3, "three starts")
    agent.gate.set()
    await asyncio.gather(*requests)
    assert len(agent.orders) == 3


async def test_the_buffer_is_there_while_the_server_is_used(control: Control, agent: FakeAgent) -> None:
    scaling = {"max_replicas": 5, "buffer_replicas": 2, "scaledown_window_s": 2.0}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    await control.get("/shop/web/")
    await eventually(lambda: len(agent.ready) == 3, "one and two more")
    await eventually(lambda: not agent.ready, "none when idle")


async def test_a_fleet_that_is_always_a_little_busy_shrinks_to_what_is_wanted(
    control: Control, agent: FakeAgent
) -> None:
    scaling = {"max_replicas": 3, "target_concurrency": 4, "scaledown_window_s": 2.0}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    requests = [asyncio.create_task(control.get("/shop/web/wait")) for _ in range(12)]
    await eventually(lambda: len(agent.ready) == 3, "three replicas")

    def waiting() -> int:
        return sum(agent.servers[view.id].waiting for view in agent.ready)

    await eventually(lambda: waiting() == 12, "all requests")
    for view in list(agent.ready):
        agent.servers[view.id].release.set()
    for request in requests:
        assert (await request).status_code == 200

    # Two at any moment, one after the other: one replica has room for them.
    async def keep_asking() -> int:
        answered = 0
        while len(agent.ready) > 1 or answered < 3:
            answer = await control.get("/shop/web/")
            assert answer.status_code == 200
            answered += 1
        return answered

    assert min(await asyncio.gather(keep_asking(), keep_asking())) >= 3


async def test_stop_ends_all_replicas_and_the_next_request_wakes_one(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1})))
    await control.get("/shop/web/")
    before = agent.ready[0].id
    answer = await control.client.post("/api/v1/apps/shop/stop", params={"wait": True})
    assert answer.json() == {"app": "shop", "replicas": [before], "is_removed": False}
    assert agent.ready == []
    await asyncio.sleep(0.1)  # five passes: min_replicas does not count until somebody asks
    assert len(agent.orders) == 1
    assert (await control.get("/shop/web/")).status_code == 200
    assert agent.ready[0].id != before


async def test_stop_lets_requests_in_flight_finish(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    request = asyncio.create_task(control.get("/shop/web/wait"))
    await eventually(lambda: agent.ready, "a replica")
    replica = agent.servers[agent.ready[0].id]
    await eventually(lambda: replica.waiting, "the request")
    await control.client.post("/api/v1/apps/shop/stop")
    replica.release.set()
    assert (await request).text == replica.name
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert len(agent.orders) == 1


async def test_a_single_replica_can_be_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    replica_id = agent.ready[0].id
    answer = await control.client.post(f"/api/v1/replicas/{replica_id}/stop")
    assert (answer.status_code, answer.json()["id"]) == (202, replica_id)
    await eventually(lambda: agent.stops, "the stop")


async def test_replicas_of_unknown_apps_are_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    agent.change(agent.ready[0].id, app="ghost")
    await eventually(lambda: agent.stops, "the orphan's stop")


@pytest.mark.parametrize("name", ["shop", "ghost"])
async def test_a_capture_replica_is_never_stopped_by_us(
    control: Control, agent: FakeAgent, name: str
) -> None:
    await control.deploy(app_spec())
    await agent.add_capture_replica(name, "web")
    assert (await control.get("/shop/web/")).status_code == 200
    await asyncio.sleep(0.1)  # five passes
    assert agent.stops == []
