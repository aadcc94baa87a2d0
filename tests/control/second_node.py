"""Another machine for tests: a fake agent behind a real gateway, at the end of a cable that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.control.conftest import Control, eventually
from tests.control.fake_agent import FakeAgent

from glowplug.identity.contexts import gateway_context
from glowplug.identity.membership import accept, join_request
from glowplug.identity.tokens import JoinToken
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.server import Gateway
from glowplug.node.record import ReplicaFile, ReplicaFolder
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import CertificateAnswer, JoinRequest, MembershipRecord
from glowplug.types.paths import StateDir
from glowplug.types.replica import ReplicaView

VERSION = importlib.metadata.version("glowplug")
OWN = socket.gethostname()


class Cable:
    """Carries bytes both ways. Cut, it carries none, and nothing is reset: they wait at both ends.

    ``there`` and ``back`` are its two ways, each of which can be cut alone; ``delay_s`` holds bytes up.
    """

    def __init__(self, target_port: int) -> None:
        self.whole, self.there, self.back = (asyncio.Event() for _ in range(3))
        for event in (self.whole, self.there, self.back):
            event.set()
        self.delay_s = 0.0
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers |= {writer, far_writer}
        for source, sink, way in ((reader, far_writer, self.there), (far_reader, writer, self.back)):
            task = asyncio.create_task(self._carry(source, sink, way))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(64 << 10):
                await asyncio.sleep(self.delay_s)
                for event in (self.whole, way):
                    await event.wait()
                sink.write(data)
                await sink.drain()
            sink.close()


class RecordingAgent(FakeAgent):
    """Writes its replicas down, as a real one does: there the gateway looks for them."""

    def __init__(self, state: StateDir) -> None:
        super().__init__(state.agent_socket)
        self._state = state

    def _put(self, view: ReplicaView) -> ReplicaView:
        view = super()._put(view)
        order = next((order for order in self.orders if order.replica_id == view.id), None)
        if order is not None:
            folder = ReplicaFolder(self._state, view.id)
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.save(ReplicaFile(view=view, server=order.server, image_id=order.image_id))
        return view


class SecondNode:
    """Open it, then let it join."""

    def __init__(self, state: StateDir, name: str) -> None:
        self.state = state
        self.name = name
        self.agent = RecordingAgent(state)
        self.counts = GatewayCounts(SystemClock())
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.cable = Cable(self._listener.getsockname()[1])
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.agent.open()
        await self.cable.open()

    async def close(self) -> None:
        await self.unplug()
        await self.cable.close()
        await self.agent.close()
        self._listener.close()

    def record(self, control: Control, **changes: Any) -> MembershipRecord:
        fields: dict[str, Any] = {
            "name": self.name, "control_url": control.url, "listen_host": "127.0.0.1",
            "listen_port": self.cable.port, "advertise_host": "127.0.0.1", **changes,
        }  # fmt: skip
        return MembershipRecord(**fields)

    async def ask_to_join(
        self,
        control: Control,
        token: str,
        *,
        version: str = VERSION,
        change: dict[str, Any] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        """What the control plane answers; ``change`` is what somebody changed on the way."""
        record = self.record(control, **fields)
        request: JoinRequest = join_request(self.state.identity, JoinToken.parse(token), record, version)
        body = {**request.model_dump(mode="json"), **(change or {})}
        answer = await control.client.post("/api/v1/nodes/join", json=body)
        if answer.is_success:
            certificate = CertificateAnswer.model_validate_json(answer.content)
            accept(self.state.identity, JoinToken.parse(token), record, certificate)
        return answer

    async def join(self, control: Control, **fields: Any) -> None:
        """Join, and be followed."""
        answer = await self.ask_to_join(control, await new_token(control), **fields)
        assert answer.status_code == 200, answer.text
        self.plug_in()
        await self.is_in_state(control, "ready")

    def plug_in(self) -> None:
        """Start the gateway."""
        context = gateway_context(self.state.identity)
        self._serving = asyncio.create_task(Gateway(self.state, self._listener, context, self.counts).run())

    async def unplug(self) -> None:
        """Stop the gateway."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None

    async def is_in_state(self, control: Control, *states: str) -> None:
        async def is_so() -> bool:
            return (await nodes(control))[self.name]["state"] in states

        await eventually(is_so, f"{self.name} is {' or '.join(states)}")


async def new_token(control: Control, **query: Any) -> str:
    answer = await control.client.post("/api/v1/join-tokens", params=query)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


async def nodes(control: Control) -> dict[str, dict[str, Any]]:
    """The nodes by name; the control plane's own as it is called there."""
    listed = (await control.get("/api/v1/nodes")).json()
    return {node["name"] if node["address"] else OWN: node for node in listed}


@asynccontextmanager
async def second_node(name: str = "beta") -> AsyncIterator[SecondNode]:
    """A machine beside the control plane's."""
    root = Path(tempfile.mkdtemp(prefix="gp-"))
    state = StateDir(root)
    state.create()
    node = SecondNode(state, name)
    await node.open()
    try:
        yield node
    finally:
        await node.close()
        shutil.rmtree(root)
