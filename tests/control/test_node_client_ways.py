"""The client of the agent keeps its promises whichever way it takes: a Unix socket, or a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from tests.control.conftest import eventually, server_spec
from tests.control.second_node import SecondNode, second_node
from tests.identity.certificates import certify_node, new_authority

from glowplug.identity.contexts import HTTP_PROTOCOL, TUNNEL_PROTOCOL, control_context
from glowplug.node.address import LocalNode, NodeAddress, RemoteNode
from glowplug.node.answers import NoAnswer
from glowplug.node.client import NodeClient
from glowplug.types.errors import NotFound, ResourceExhausted
from glowplug.types.paths import IdentityDir
from glowplug.types.replica import NodeHoldings, ReplicaState, StartReplica
from glowplug.types.spec import DirectoryImage, ServerSpec


@dataclass
class Way:
    """A client, and what it leads to."""

    client: NodeClient
    node: SecondNode


@pytest.fixture(params=["socket", "gateway"])
async def way(request: pytest.FixtureRequest) -> AsyncIterator[Way]:
    async with second_node() as node:
        address: NodeAddress = LocalNode(node.state.agent_socket)
        if request.param == "gateway":
            address = _behind_a_gateway(node)
        client = NodeClient(address)
        yield Way(client, node)
        await client.close()


def _behind_a_gateway(node: SecondNode) -> RemoteNode:
    control = IdentityDir(node.state.root / "control")
    certify_node(new_authority(control.root), node.state.identity, node.name)
    node.plug_in()
    http, tunnel = (control_context(control, [name]) for name in (HTTP_PROTOCOL, TUNNEL_PROTOCOL))
    return RemoteNode(node.name, "127.0.0.1", node.cable.port, http, tunnel)


def _order(replica_id: str = "web-1") -> StartReplica:
    server = ServerSpec.model_validate(server_spec())
    fields: dict[str, Any] = {"app": "shop", "deployment_id": "shop-v1", "image_id": "im-1"}
    return StartReplica(replica_id=replica_id, server=server, secrets={"KEY": "s3cret"}, **fields)


async def test_a_replica_is_started_watched_and_stopped(way: Way) -> None:
    seen: list[str] = []

    async def watch() -> None:
        async with aclosing(way.client.watch()) as events:
            async for event in events:
                seen.append(event.replica.state.value if event.replica else event.type)

    watching = asyncio.create_task(watch())
    await eventually(lambda: "synced" in seen, "the list")
    assert (await way.client.start_replica(_order())).state is ReplicaState.STARTING
    await eventually(lambda: "ready" in seen, "it is ready")
    assert [view.id for view in await way.client.replicas()] == ["web-1"]
    assert way.node.agent.orders[0].secrets == {"KEY": "s3cret"}
    await way.client.stop_replica("web-1", grace_s=1.0)
    await eventually(lambda: "stopped" in seen and "heartbeat" in seen, "its end, and a heartbeat")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_errors_of_the_agent_are_raised_as_they_are(way: Way) -> None:
    way.node.agent.refusals = [ResourceExhausted("The disk is full.", remedy="Make room.")]
    with pytest.raises(ResourceExhausted, match="The disk is full"):
        await way.client.start_replica(_order())
    with pytest.raises(NotFound):
        await way.client.replica("nobody")


async def test_streams_images_holdings_logs_and_exec(way: Way) -> None:
    way.node.agent.holdings = NodeHoldings(machine="m1", images={"im-1": 7})
    assert await way.client.holdings() == way.node.agent.holdings
    assert (await way.client.node()).runtime == "fake"
    async with aclosing(way.client.build_image(DirectoryImage(path="/"))) as events:
        assert [event.fraction async for event in events] == [0.5, 1.0]
    await way.client.start_replica(_order())
    async with aclosing(way.client.logs("web-1", tail=3)) as pieces:
        assert b"".join([piece async for piece in pieces]) == b"log of web-1 tail=3 follow=False\n"
    async with way.client.exec("web-1", [("command", "ls")]) as connection:
        assert await connection.recv() == b"\x01ls"


async def test_an_agent_that_is_not_there_gives_no_answer_or_its_gateway_does(way: Way) -> None:
    await way.node.agent.close()
    with pytest.raises(Exception, match="does not answer") as raised:
        await way.client.node()
    if isinstance(way.client.address, LocalNode):
        assert isinstance(raised.value, NoAnswer)
    else:
        assert raised.value.details == {"is_machine_there": True}
