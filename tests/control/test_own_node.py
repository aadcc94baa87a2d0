"""The machine of a control plane is a node of its successor: what runs there outlives who led there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from tests.control.conftest import app_spec, eventually, server_spec
from tests.control.control_process import Process, control_process
from tests.control.second_node import SecondNode, second_node
from tests.postgres import PostgresServer

from glowplug.control.own_node import OwnNode
from glowplug.types.errors import InvalidInput


@pytest.fixture
def shared(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """All control planes of the test use this database."""
    monkeypatch.setenv("GLOWPLUG_DATABASE_URL", postgres.url)
    return postgres


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120.0, trust_env=False) as client:
        yield client


def control_of(machine: SecondNode) -> AbstractAsyncContextManager[Process]:
    """The control plane of a machine that is a node, too."""
    where = f"127.0.0.1:{machine.cable.port}"
    return control_process(machine.state, "--port", "0", "--node", machine.name, where)


async def states(client: httpx.AsyncClient, process: Process) -> dict[str, str]:
    listed: list[dict[str, Any]] = (await client.get(f"{process.url}/api/v1/nodes")).json()
    return {node["name"]: node["state"] for node in listed}


@pytest.mark.nightly
async def test_what_runs_on_the_leaders_machine_is_there_for_its_successor(
    shared: PostgresServer, client: httpx.AsyncClient
) -> None:
    async with second_node("alpha") as alpha, second_node("beta") as beta:
        async with control_of(alpha) as leader:
            alpha.plug_in()
            async with control_of(beta) as standby:
                beta.plug_in()

                async def both_are_ready() -> bool:
                    return await states(client, leader) == {"alpha": "ready", "beta": "ready"}

                await eventually(both_are_ready, "who stands by is a node of the leader")
                await client.post(f"{leader.url}/api/v1/nodes/beta/drain")
                app = app_spec(server_spec(scaling={"min_replicas": 1}))
                await client.post(f"{leader.url}/api/v1/deployments", json={"app": app})
                warm = (await client.get(f"{leader.url}/shop/web/")).text
                assert [view.id for view in alpha.agent.ready] == [warm]
                leader.process.kill()
                await leader.process.wait()

                async def is_answered() -> bool:
                    return (await client.get(f"{standby.url}/shop/web/")).text == warm

                await eventually(is_answered, "the successor reaches it")

                async def are_known() -> bool:
                    return await states(client, standby) == {"alpha": "ready", "beta": "draining"}

                await eventually(are_known, "both are nodes, and beta is still drained")
                async with control_of(alpha) as again:
                    health = (await client.get(f"{again.url}/healthz")).json()
                    assert (health["role"], health["leader"]) == ("standby", standby.url)
                    assert (await client.get(f"{standby.url}/shop/web/")).text == warm
        assert (len(alpha.agent.orders), alpha.agent.stops, beta.agent.orders) == (1, [], [])


@pytest.mark.nightly
async def test_a_name_that_another_machine_has_is_refused(
    shared: PostgresServer, client: httpx.AsyncClient
) -> None:
    async with second_node("alpha") as alpha, second_node("alpha") as other, control_of(alpha) as leader:
        async with control_of(other) as refused:
            assert await asyncio.wait_for(refused.process.wait(), 60) == 1
        assert "Another machine is called 'alpha'" in "".join(refused.stderr)
        assert (await client.get(f"{leader.url}/healthz")).json()["role"] == "leader"


@pytest.mark.parametrize(("name", "address"), [("alpha", "7443"), ("alpha", "h:x"), ("No Name", "h:1")])
def test_a_node_needs_a_name_and_an_address(name: str, address: str) -> None:
    with pytest.raises(InvalidInput):
        OwnNode.parse(name, address)
    assert OwnNode.parse("alpha", "[::1]:7443") == OwnNode("alpha", "::1", 7443)
