"""The client of the agent, against an agent that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tests.control.fake_agent import FakeAgent

from glowplug.node import client as module
from glowplug.node.address import LocalNode
from glowplug.node.answers import NoAnswer, NotConnected
from glowplug.node.client import NodeClient
from glowplug.types.errors import NotFound, NotLeader, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.spec import HostPythonImage

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@asynccontextmanager
async def talking_to(path: Path, handler: Handler) -> AsyncIterator[NodeClient]:
    """A client of a Unix socket on which ``handler`` answers."""
    server = await asyncio.start_unix_server(handler, path)
    client = NodeClient(LocalNode(path))
    yield client
    await client.close()
    server.close()


async def test_nobody_there_is_unavailable_with_a_remedy(state: StateDir) -> None:
    client = NodeClient(LocalNode(state.agent_socket))
    with pytest.raises(Unavailable) as error:
        await client.node()
    assert error.value.remedy
    with pytest.raises(Unavailable):
        async with aclosing(client.watch()) as events:
            await anext(events)
    with pytest.raises(Unavailable):
        async with client.exec("x", [("command", "ls")]):
            pass
    await client.close()


async def test_a_client_that_was_closed_meanwhile_gets_no_answer(agent: FakeAgent) -> None:
    client = NodeClient(LocalNode(agent.socket_path))
    await client.close()
    with pytest.raises(Unavailable):
        await client.holdings()


async def test_whether_anything_was_asked_is_told(state: StateDir) -> None:
    client = NodeClient(LocalNode(state.agent_socket))
    with pytest.raises(NotConnected):
        await client.node()
    await client.close()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with talking_to(state.agent_socket, hang_up) as client:
        with pytest.raises(NoAnswer) as error:
            await client.node()
        assert not isinstance(error.value, NotConnected)


async def test_the_agents_errors_are_rebuilt(state: StateDir, agent: FakeAgent) -> None:
    client = NodeClient(LocalNode(state.agent_socket))
    with pytest.raises(NotFound) as error:
        await client.replica("none")
    assert error.value.message == "No replica 'none'."
    with pytest.raises(NotFound):
        await client.replica("../node")
    with pytest.raises(NotFound):
        async for _ in client.logs("none"):
            pass
    await client.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
        HEAD + b"content-length: 8\r\n\r\nnot json",
        HEAD + b"content-length: 100\r\n\r\n{",
    ],
)
async def test_a_broken_answer_is_unavailable(state: StateDir, answer: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with talking_to(state.agent_socket, handler) as client:
        with pytest.raises(Unavailable):
            await client.node()


async def test_a_silent_watch_is_given_up(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SILENCE_LIMIT_S", 1.0)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b'transfer-encoding: chunked\r\n\r\n12\r\n{"type":"synced"}\n\r\n')
        await reader.read()
        writer.close()

    async with talking_to(state.agent_socket, handler) as client:
        seen = []
        with pytest.raises(Unavailable):
            async with asyncio.timeout(30), aclosing(client.watch()) as events:
                seen = [event.type async for event in _noting(events, seen)]
        assert seen == ["synced"]


async def _noting(events: AsyncIterator[object], seen: list[str]) -> AsyncIterator[object]:
    async for event in events:
        seen.append(event.type)  # type: ignore[attr-defined]
        yield event


async def test_a_watch_line_that_is_no_message_is_unavailable(state: StateDir) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b'transfer-encoding: chunked\r\n\r\n11\r\n{"type":"other"}\n\r\n')
        await reader.read()
        writer.close()

    async with talking_to(state.agent_socket, handler) as client:
        with pytest.raises(Unavailable):
            async with asyncio.timeout(30), aclosing(client.watch()) as events:
                await anext(events)


async def test_an_agent_that_drips_bytes_does_not_keep_us_for_ever(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT_S", 0.1)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"content-length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async with talking_to(state.agent_socket, handler) as client:
        with pytest.raises(Unavailable):
            async with asyncio.timeout(30):
                await client._call("GET", "/v1/node", timeout_s=0.3)


class Term:
    """An authority that a test may take away."""

    def __init__(self, term: int) -> None:
        self.term: int | None = term
        self.is_over = False
        self.refusals: list[NotLeader] = []

    def check(self) -> None:
        if self.is_over:
            raise NotLeader("Simulated: somebody else leads.")

    def was_refused(self, error: NotLeader) -> None:
        self.refusals.append(error)


async def test_who_may_not_act_sends_no_order_and_reads_on(agent: FakeAgent) -> None:
    authority = Term(7)
    client = NodeClient(LocalNode(agent.socket_path), authority)
    authority.is_over = True
    with pytest.raises(NotLeader):
        await client.stop_replica("any", grace_s=1.0)
    with pytest.raises(NotLeader):
        async with aclosing(client.build_image(HostPythonImage())) as events:
            await anext(events)
    assert (await client.node()).name == "testnode"
    assert (agent.stops, agent.builds, authority.refusals) == ([], 0, [])
    await client.close()


async def test_the_agent_of_a_newer_leader_refuses_and_the_authority_is_told(agent: FakeAgent) -> None:
    old, new = Term(7), Term(8)
    clients = [NodeClient(LocalNode(agent.socket_path), authority) for authority in (old, new)]
    await clients[0].node()
    await clients[1].node()
    with pytest.raises(NotLeader):
        await clients[0].delete_image("known")
    with pytest.raises(NotLeader):
        async with aclosing(clients[0].watch()) as events:
            await anext(events)
    assert len(old.refusals) == 2
    await clients[1].delete_image("known")
    assert new.refusals == []
    for client in clients:
        await client.close()
