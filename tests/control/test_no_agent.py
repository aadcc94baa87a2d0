"""A control plane on a machine that is no node: those that join do all the work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.control.conftest import QUICK, Control, app_spec, running_control, server_spec
from tests.control.second_node import SecondNode, second_node

from glowplug.types.paths import StateDir

SERVER = server_spec(scaling={"max_replicas": 4})


@pytest.fixture
async def alone(state: StateDir) -> AsyncIterator[Control]:
    timings = replace(QUICK, node_silent_s=1.0, node_lost_s=2.0)
    async with running_control(state, timings, has_agent=False) as running:
        yield running


@pytest.fixture
async def beta() -> AsyncIterator[SecondNode]:
    async with second_node() as node:
        yield node


async def test_without_a_node_nothing_is_deployed_and_it_is_said_why(alone: Control) -> None:
    assert (await alone.get("/api/v1/nodes")).json() == []
    assert (await alone.get("/api/v1/replicas")).json() == []
    answer = await alone.deploy(app_spec(SERVER))
    assert (answer["error"]["code"], answer["error"]["message"]) == (
        "unavailable", "No node is ready to make the images.",
    )  # fmt: skip
    assert (await alone.get("/api/v1/deployments")).json() == []
    assert (await alone.client.post("/api/v1/images", json={"image": SERVER["image"]})).status_code == 503


async def test_the_first_node_that_joined_makes_the_images_and_answers(
    alone: Control, beta: SecondNode
) -> None:
    await beta.join(alone)
    (node,) = (await alone.get("/api/v1/nodes")).json()
    assert (node["name"], node["state"]) == ("beta", "ready")
    assert "deployment" in await alone.deploy(app_spec(SERVER))
    assert beta.agent.builds == 1
    assert (await alone.get("/shop/web/")).text == beta.agent.ready[0].id
    assert beta.agent.builds == 1, "it is known to have what it made"
    (view,) = (await alone.get("/api/v1/replicas")).json()
    assert view["node"] == "beta", "also where there is one node only"


async def test_a_node_that_falls_silent_is_noticed_though_it_is_the_only_one(
    alone: Control, beta: SecondNode
) -> None:
    await beta.join(alone)
    beta.cable.whole.clear()
    await beta.is_in_state(alone, "lost")
    beta.cable.whole.set()
    await beta.is_in_state(alone, "ready")
