"""WebSockets through the router."""

from __future__ import annotations

import asyncio

import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from glowplug.types.replica import ReplicaState


@pytest.fixture
async def url(control: Control) -> str:
    """The address of a deployed server, asleep."""
    await control.deploy(app_spec(server_spec(max_held_requests=1)))
    return f"ws{control.url.removeprefix('http')}/shop/web"


async def test_text_and_bytes_pass_both_ways(url: str) -> None:
    async with connect(f"{url}/ws?x=1", proxy=None, open_timeout=60) as socket:
        await socket.send("hello")
        assert await socket.recv() == "echo hello"
        await socket.send(b"\x00\x01" * 300_000)
        assert await socket.recv() == b"\x00\x01" * 300_000


async def test_the_replica_chooses_the_subprotocol(url: str) -> None:
    async with connect(
        f"{url}/ws",
        subprotocols=["one", "two"],  # type: ignore[list-item]
        proxy=None,
        open_timeout=60,
    ) as socket:
        assert socket.subprotocol == "two"


async def test_close_codes_pass_from_the_replica(url: str) -> None:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        await socket.send("close please")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4001, "as you wish")


async def test_close_codes_pass_to_the_replica(url: str, agent: FakeAgent) -> None:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        await socket.close(4002, "enough")
    replica = agent.servers[agent.ready[0].id]
    await eventually(lambda: replica.closed_with == (4002, "enough"), "the close code at the replica")


async def test_a_vanished_caller_is_gone_for_the_replica_too(url: str, agent: FakeAgent) -> None:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        socket.transport.abort()
    replica = agent.servers[agent.ready[0].id]
    await eventually(lambda: replica.closed_with, "the end at the replica")


async def test_a_killed_replica_closes_with_1011(url: str, agent: FakeAgent) -> None:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        await agent.kill_replica(agent.ready[0].id)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1011


async def test_a_silent_dead_replica_closes_with_1011(url: str, agent: FakeAgent) -> None:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        agent.change(agent.ready[0].id, state=ReplicaState.FAILED)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1011


async def test_a_handshake_is_held_while_a_replica_wakes(
    url: str, control: Control, agent: FakeAgent
) -> None:
    agent.gate.clear()
    opening = asyncio.create_task(_echo(url))
    await control.held(1)
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{url}/ws", proxy=None, open_timeout=60)
    assert refused.value.response.status_code == 429
    agent.gate.set()
    assert await opening == "echo held"


async def _echo(url: str) -> object:
    async with connect(f"{url}/ws", proxy=None, open_timeout=60) as socket:
        await socket.send("held")
        return await socket.recv()


async def test_a_held_caller_who_leaves_is_dropped(url: str, control: Control, agent: FakeAgent) -> None:
    agent.gate.clear()
    opening = asyncio.create_task(_echo(url))
    await control.held(1)
    opening.cancel()
    await control.held(0)


async def test_a_refused_handshake_is_a_clear_error(url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{url}/denied", proxy=None, open_timeout=60)
    assert refused.value.response.status_code == 502
    assert b"403" in (refused.value.response.body or b"")


async def test_an_unknown_server_is_404(url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{url}x/ws", proxy=None, open_timeout=60)
    assert refused.value.response.status_code == 404
