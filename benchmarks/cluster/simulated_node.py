"""A node that only talks: the agent API and the gateway's tunnels over real TLS; its replicas are answers.

So one process can be a hundred nodes of a real control plane, which cannot tell them from machines: it sends
its calls, follows their watch streams and opens its tunnels as ever. As cheap as Python allows, so that what
is measured is the control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from glowplug.identity.contexts import TUNNEL_PROTOCOL, gateway_context
from glowplug.identity.membership import accept, join_request
from glowplug.identity.tokens import JoinToken
from glowplug.types.cluster import CertificateAnswer, MembershipRecord
from glowplug.types.paths import StateDir
from glowplug.types.replica import (
    BuildEvent,
    BuildRequest,
    Endpoint,
    Heat,
    HeatView,
    HeldSnapshot,
    ImageView,
    Message,
    NodeHoldings,
    NodeView,
    ReplicaEvent,
    ReplicaState,
    ReplicaView,
    StartReplica,
)
from glowplug.types.spec import DirectoryImage
from glowplug.types.tunnel import ACCEPTED, parse_opening

HEARTBEAT_S = 1.0
START_S = 0.05
IMAGE_ID = "img-simulated"
_MACHINE = "simulated"
_HEARTBEAT = ReplicaEvent(type="heartbeat").model_dump_json()
_HOST = "127.0.0.1"
_ENDPOINT = Endpoint(host=_HOST, port=1)


def holdings(servers: Sequence[str], count: int) -> NodeHoldings:
    """What a node that has captured so many snapshots of these servers tells."""
    snapshots = [
        HeldSnapshot(
            id=f"sn-{number:08x}",
            servers=[servers[number % len(servers)]],
            image_id=IMAGE_ID,
            machine=_MACHINE,
            bytes=1 << 30,
            here_bytes=1 << (number % 30),
        )
        for number in range(count if servers else 0)
    ]
    images = {f"img-{number:08x}": 1 << 30 for number in range(max(count - 1, 0))}
    return NodeHoldings(machine=_MACHINE, snapshots=snapshots, images={IMAGE_ID: 1 << 30, **images})


@dataclass(frozen=True)
class _Call:
    """One HTTP request."""

    method: str
    path: str
    body: bytes


class SimulatedNode:
    """Serve it with :meth:`open_agent` (the control plane's own) or let it :meth:`join`; :meth:`close` it.

    ``asked_at_s``: when it was asked to start a replica, by ``app/server``, on the clock of
    ``time.monotonic``.
    """

    def __init__(self, name: str, held: NodeHoldings) -> None:
        self.name = name
        self.views: dict[str, ReplicaView] = {}
        self.asked_at_s: dict[str, float] = {}
        self._revision = time.time_ns()
        self._held = held.model_dump_json().encode()
        self._watchers: set[asyncio.Queue[str]] = set()
        self._servers: list[asyncio.Server] = []

    async def open_agent(self, path: Path) -> None:
        """Be the agent behind this socket."""
        self._servers.append(await asyncio.start_unix_server(self._serve_agent, path))

    async def join(self, client: httpx.AsyncClient, token: str, state: StateDir, control_url: str) -> None:
        """Become a node of this control plane, with a certificate of its authority."""
        port = _free_port()
        record = MembershipRecord(
            name=self.name,
            control_url=control_url,
            listen_host=_HOST,
            listen_port=port,
            advertise_host=_HOST,
            labels={"zone": self.name[-1]},
        )
        parsed = JoinToken.parse(token)
        asked = join_request(state.identity, parsed, record, importlib.metadata.version("glowplug"))
        answer = await client.post("/api/v1/nodes/join", json=asked.model_dump(mode="json"))
        answer.raise_for_status()
        accept(state.identity, parsed, record, CertificateAnswer.model_validate_json(answer.content))
        context = gateway_context(state.identity)
        self._servers.append(await asyncio.start_server(self._serve_gateway, _HOST, port, ssl=context))

    def close(self) -> None:
        """Take no further connections."""
        for server in self._servers:
            server.close()

    # -- replicas ----------------------------------------------------------------------------------------

    def _start(self, order: StartReplica) -> ReplicaView:
        self.asked_at_s.setdefault(f"{order.app}/{order.server.name}", time.monotonic())
        view = ReplicaView(
            id=order.replica_id,
            app=order.app,
            server=order.server.name,
            deployment_id=order.deployment_id,
            state=ReplicaState.STARTING,
            created_at=time.time(),
        )
        asyncio.get_running_loop().call_later(START_S, self._ready, view.id)
        return self._put(view)

    def _ready(self, replica_id: str) -> None:
        view = self.views.get(replica_id)
        if view is not None:
            changes = {"state": ReplicaState.READY, "ready_at": time.time(), "endpoint": _ENDPOINT}
            self._put(view.model_copy(update=changes))

    def _stop(self, replica_id: str) -> ReplicaView:
        stopped = self._put(self.views[replica_id].model_copy(update={"state": ReplicaState.STOPPED}))
        del self.views[replica_id]
        return stopped

    def _put(self, view: ReplicaView) -> ReplicaView:
        self._revision += 1
        view = self.views[view.id] = view.model_copy(update={"revision": self._revision})
        line = ReplicaEvent(type="change", replica=view).model_dump_json()
        for watcher in self._watchers:
            watcher.put_nowait(line)
        return view

    # -- HTTP --------------------------------------------------------------------------------------------

    async def _serve_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        if connection.selected_alpn_protocol() != TUNNEL_PROTOCOL:
            await self._serve_agent(reader, writer)
            return
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            parse_opening(await reader.readline())
            writer.write(ACCEPTED)
            async for _call in _calls(reader):
                writer.write(_answer(200, b"hello", "text/plain"))
                await writer.drain()
        writer.close()

    async def _serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async for call in _calls(reader):
                if call.path == "/v1/watch":
                    await self._watch(writer)
                else:
                    writer.write(self._answer_to(call))
                    await writer.drain()
        writer.close()

    def _answer_to(self, call: _Call) -> bytes:
        match call.method, call.path.partition("?")[0].split("/")[2:]:
            case "GET", ["holdings"]:
                return _answer(200, self._held)
            case "GET", ["node"]:
                return _message(200, self._view())
            case "GET", ["images", image_id]:
                return _message(200, _image(image_id))
            case "POST", ["images"]:
                BuildRequest.model_validate_json(call.body)
                return _answer(200, BuildEvent(image=_image(IMAGE_ID)).model_dump_json().encode() + b"\n")
            case "POST", ["replicas"]:
                return _message(201, self._start(StartReplica.model_validate_json(call.body)))
            case "POST", ["replicas", replica_id, "stop"] if replica_id in self.views:
                return _message(202, self._stop(replica_id))
            case "POST", ["next-start"]:
                StartReplica.model_validate_json(call.body)
                return _message(200, HeatView(heat=Heat.SNAPSHOT))
            case "GET", ["replicas"]:
                return _answer(
                    200, f"[{','.join(v.model_dump_json() for v in self.views.values())}]".encode()
                )
            case _:
                return _answer(404, b'{"code":"not_found","message":"nothing is there"}')

    def _view(self) -> NodeView:
        return NodeView(
            name=self.name,
            agent_pid=1,
            version=importlib.metadata.version("glowplug"),
            cpus=64,
            cpus_used=0,
            memory_bytes=1 << 40,
            memory_used_bytes=len(self.views) << 30,
            runtime="simulated",
            replicas=len(self.views),
        )

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(queue)
        listed = [ReplicaEvent(type="sync", replica=view).model_dump_json() for view in self.views.values()]
        lines = [*listed, ReplicaEvent(type="synced").model_dump_json()]
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                piece = "".join(line + "\n" for line in lines).encode()
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                lines = [await _next(queue)]
                while not queue.empty():
                    lines.append(queue.get_nowait())
        finally:
            self._watchers.discard(queue)


async def _next(queue: asyncio.Queue[str]) -> str:
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            return await queue.get()
    except TimeoutError:
        return _HEARTBEAT


async def _calls(reader: asyncio.StreamReader) -> AsyncIterator[_Call]:
    """Requests on one connection until its end."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        first, *fields = head.decode("latin-1").split("\r\n")
        lengths = [field for field in fields if field.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0].partition(":")[2])) if lengths else b""
        method, path, _ = first.split(" ")
        yield _Call(method, path, body)


def _answer(status: int, body: bytes, kind: str = "application/json") -> bytes:
    return b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        kind.encode(),
        len(body),
        body,
    )


def _message(status: int, message: Message) -> bytes:
    return _answer(status, message.model_dump_json().encode())


def _image(image_id: str) -> ImageView:
    spec = DirectoryImage(path="/")
    return ImageView(id=image_id, kind=spec.kind, spec=spec)


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        return int(server.getsockname()[1])
