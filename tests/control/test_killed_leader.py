"""kill -9 of the leader in the middle of a placement: what it began is its successor's, and begun once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from tests.control.conftest import QUICK, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.killable_control import KillableControl, killable_control
from tests.control.second_node import OWN, SecondNode, nodes, second_node

from glowplug.types.paths import StateDir

EXCLUSIVE = server_spec("one", scaling={"max_replicas": 1})
MANY = 24
LOST_S = 3.0
TIMINGS = replace(QUICK, node_silent_s=LOST_S / 2, node_lost_s=LOST_S)


@pytest.fixture
async def control(state: StateDir, agent: FakeAgent) -> AsyncIterator[KillableControl]:
    """With an agent beside it."""
    async with killable_control(state, TIMINGS) as running:
        yield running


@pytest.fixture
async def beta(control: KillableControl) -> AsyncIterator[SecondNode]:
    """The machine that new replicas go to."""
    async with second_node() as node:
        await node.join(control)
        await control.client.post(f"/api/v1/nodes/{OWN}/drain")
        yield node


async def killed_while_placing(
    control: KillableControl, beta: SecondNode, *, is_answered: bool = True
) -> str:
    """The leader is dead, and has asked for this replica, which is not ready before ``gate`` is set."""
    deployed = await control.deploy(app_spec(EXCLUSIVE))
    assert deployed["deployment"]["active"]
    beta.agent.gate.clear()
    if not is_answered:
        beta.agent.answer_gate.clear()
    request = asyncio.create_task(control.get("/shop/one/"))
    await eventually(lambda: beta.agent.orders, "the order")
    await control.kill()
    with pytest.raises(httpx.TransportError):
        await request
    return beta.agent.orders[0].replica_id


async def is_held(control: KillableControl) -> bool:
    return bool((await control.server(server="one"))["held"])


@pytest.mark.parametrize("is_answered", [False, pytest.param(True, marks=pytest.mark.nightly)])
async def test_what_was_ordered_is_adopted_and_nothing_is_begun_beside_it(
    control: KillableControl, beta: SecondNode, agent: FakeAgent, is_answered: bool
) -> None:
    replica_id = await killed_while_placing(control, beta, is_answered=is_answered)
    await control.start()
    request = asyncio.create_task(control.get("/shop/one/"))
    await eventually(lambda: is_held(control), "the caller waits")
    beta.agent.answer_gate.set()
    beta.agent.gate.set()
    assert (await request).text == replica_id
    assert (len(beta.agent.orders), len(agent.orders), beta.agent.stops) == (1, 0, [])
    [active] = [one for one in (await control.get("/api/v1/deployments")).json() if one["active"]]
    assert active["app"] == "shop", "no deployment is lost"


@pytest.mark.nightly
async def test_nothing_is_begun_before_the_machine_that_was_asked_has_answered(
    control: KillableControl, beta: SecondNode, agent: FakeAgent
) -> None:
    """Its link is down while the next leader starts: what it has is not known, and is waited for."""
    replica_id = await killed_while_placing(control, beta)
    beta.cable.whole.clear()
    await control.start()
    request = asyncio.create_task(control.get("/shop/one/"))
    await asyncio.sleep(LOST_S / 3)
    assert not agent.orders
    beta.cable.whole.set()
    beta.agent.gate.set()
    assert (await request).text == replica_id
    assert (len(beta.agent.orders), agent.orders) == (1, [])


@pytest.mark.nightly
async def test_what_was_ordered_on_a_machine_that_is_lost_then_does_not_stay_beside_its_successor(
    control: KillableControl, beta: SecondNode, agent: FakeAgent
) -> None:
    lost = await killed_while_placing(control, beta)
    beta.cable.whole.clear()
    await control.start()
    await control.client.post(f"/api/v1/nodes/{OWN}/undrain")
    successor = (await control.get("/shop/one/")).text
    assert successor == agent.ready[0].id != lost
    beta.agent.gate.set()
    beta.cable.whole.set()
    await beta.is_in_state(control, "ready")
    await eventually(lambda: len(agent.ready + beta.agent.ready) == 1, "one of them is left")

    async def counted() -> bool:
        return sum(node["replicas"] for node in (await nodes(control)).values()) == 1

    await eventually(counted, "and known")


async def test_a_burst_that_was_half_placed_is_finished_and_not_begun_anew(
    control: KillableControl, beta: SecondNode, agent: FakeAgent
) -> None:
    beta.agent.answer_gate.clear()
    scaling = {"min_replicas": MANY, "max_replicas": MANY}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    await eventually(lambda: len(beta.agent.orders) >= MANY // 3, "a part is asked for")
    await control.kill()
    beta.agent.answer_gate.set()
    await control.start()
    await eventually(lambda: len(beta.agent.ready) == MANY, "all are there")
    assert len({order.replica_id for order in beta.agent.orders}) == len(beta.agent.orders) == MANY
    assert (beta.agent.stops, agent.orders) == ([], [])
