"""Agents and control planes that die and come back."""

from __future__ import annotations

import asyncio

from tests.control.conftest import Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.types.paths import StateDir


async def _reachable(control: Control) -> bool:
    return bool((await control.get("/api/v1/status")).json()["nodes"][0]["is_reachable"])


async def test_warm_replicas_keep_answering_while_the_agent_is_away(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    warm = (await control.get("/shop/web/")).text
    await agent.close(keep_replicas=True)
    assert not await _reachable(control)
    assert [(await control.get("/shop/web/")).text for _ in range(20)] == [warm] * 20
    await agent.open()
    await eventually(lambda: _reachable(control), "the agent is back")
    assert (await control.get("/shop/web/")).text == warm
    assert len(agent.orders) == 1


async def test_a_request_waits_for_an_agent_that_is_away(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await agent.close()
    request = asyncio.create_task(control.get("/shop/web/"))
    await control.held(1)
    await agent.open()
    assert (await request).status_code == 200


async def test_a_replica_that_died_while_the_agent_was_away_is_replaced(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    first = (await control.get("/shop/web/")).text
    await agent.close(keep_replicas=True)
    await agent.servers[first].kill()
    del agent.views[first]
    await agent.open()
    assert (await control.get("/shop/web/")).text != first


async def test_a_restarted_control_plane_keeps_warm_replicas(state: StateDir, agent: FakeAgent) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 3}
    async with running_control(state) as control:
        agent.gate.clear()
        await control.deploy(app_spec(server_spec(scaling=scaling)))
        request = asyncio.create_task(control.get("/shop/web/"))
        await control.held(1)  # else the one of min_replicas may be ready first: nobody waited, no record
        agent.gate.set()
        warm = (await request).text
    async with running_control(state) as control:
        assert (await control.get("/shop/web/")).text == warm
        listed = (await control.get("/api/v1/deployments")).json()
        assert [(d["id"], d["active"]) for d in listed] == [("shop-v1", True)]
        assert len(await control.records()) == 1
    assert (len(agent.orders), agent.stops) == (1, [])


async def test_nothing_is_started_before_the_agent_has_told_what_exists(
    state: StateDir, agent: FakeAgent
) -> None:
    async with running_control(state) as control:
        await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1})))
        warm = (await control.get("/shop/web/")).text
    await agent.close(keep_replicas=True)
    async with running_control(state) as control:
        request = asyncio.create_task(control.get("/shop/web/"))
        await control.held(1)
        await agent.open()
        assert (await request).text == warm
    assert len(agent.orders) == 1
