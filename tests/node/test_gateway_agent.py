"""A real agent, called as control calls it: over its socket, and through a real gateway; the same both times.

And a real replica, asked through a tunnel while its agent lives, and after it was killed.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from multidict import CIMultiDict
from tests.identity.certificates import certify_node, new_authority
from tests.node.live_agent import LiveAgent

from glowplug.control.channel import ReplicaChannel
from glowplug.identity.contexts import HTTP_PROTOCOL, TUNNEL_PROTOCOL, control_context, gateway_context
from glowplug.node.address import LocalNode, NodeAddress, RemoteNode
from glowplug.node.client import NodeClient
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.server import Gateway
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.paths import IdentityDir
from glowplug.types.replica import ReplicaState, ReplicaView, StartReplica

pytestmark = pytest.mark.sandbox


@asynccontextmanager
async def through_a_gateway(agent: LiveAgent, folder: Path) -> AsyncIterator[RemoteNode]:
    """The agent's node, as a control plane elsewhere sees it."""
    control = IdentityDir(folder)
    certify_node(new_authority(folder), agent.state.identity, "beta")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        counts = GatewayCounts(SystemClock())
        gateway = Gateway(agent.state, listener, gateway_context(agent.state.identity), counts)
        serving = asyncio.create_task(gateway.run())
        http, tunnel = (control_context(control, [name]) for name in (HTTP_PROTOCOL, TUNNEL_PROTOCOL))
        yield RemoteNode("beta", "127.0.0.1", listener.getsockname()[1], http, tunnel)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def ask(view: ReplicaView, node: NodeAddress) -> tuple[int, bytes]:
    """A request to the replica, as the router sends it."""
    assert view.endpoint is not None
    channel = ReplicaChannel(view.id, view.endpoint, node, silence_limit_s=60)
    try:
        response = await channel.request("GET", "/", CIMultiDict(), None)
        return response.status, await response.read()
    finally:
        await channel.close()


async def live(client: NodeClient, order: StartReplica) -> list[str]:
    """Start a replica, follow it, stop it; the states that were told."""
    states: list[str] = []
    async with asyncio.timeout(120), aclosing(client.watch()) as events:
        async for event in events:
            if event.type == "synced":
                await client.start_replica(order)
            replica = event.replica
            if replica is None or replica.id != order.replica_id:
                continue
            if not states or states[-1] != replica.state.value:
                states.append(replica.state.value)
                if replica.state is ReplicaState.READY:
                    await client.stop_replica(replica.id, grace_s=5.0)
            if replica.state.is_final:
                return states
    return states


async def test_a_real_agent_is_the_same_over_its_socket_and_through_its_gateway(
    agent: LiveAgent, tmp_path: Path
) -> None:
    async with through_a_gateway(agent, tmp_path) as remote:
        for address in (LocalNode(agent.state.agent_socket), remote):
            client = NodeClient(address)
            order = StartReplica.model_validate(agent.request(agent.server()))
            assert await live(client, order) == ["starting", "ready", "draining", "stopped"]
            holdings = await client.holdings()
            assert (agent.image_id in holdings.images, len(holdings.machine)) == (True, 16)
            too_much = agent.server(resources={"memory_bytes": 1 << 50})
            with pytest.raises(GlowplugError) as refused:
                await client.start_replica(StartReplica.model_validate(agent.request(too_much)))
            assert (refused.value.code, refused.value.details["resource"]) == ("unavailable", "memory")
            await client.close()


async def test_a_replica_answers_through_the_gateway_though_its_agent_was_killed(
    own_agent: LiveAgent, tmp_path: Path
) -> None:
    agent = own_agent
    view = ReplicaView.model_validate(await asyncio.to_thread(agent.start, agent.server()))
    async with through_a_gateway(agent, tmp_path) as remote:
        expected = await ask(view, LocalNode(agent.state.agent_socket))
        assert expected[0] == 200
        assert await ask(view, remote) == expected
        await asyncio.to_thread(agent.kill)
        assert await ask(view, remote) == expected
        client = NodeClient(remote)
        with pytest.raises(Unavailable) as away:
            await client.node()
        assert away.value.details["is_machine_there"] is True
        await client.close()
        await asyncio.to_thread(agent.start_again)
        unknown = view.model_copy(update={"id": f"gone-{secrets.token_hex(3)}"})
        with pytest.raises(Unavailable):
            await ask(unknown, remote)
