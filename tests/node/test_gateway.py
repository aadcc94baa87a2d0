"""A node's gateway: whom it lets through and whom not, and that what goes through arrives as it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.identity.certificates import certify_node, certify_router, new_authority

from glowplug.identity.authority import Authority
from glowplug.identity.contexts import (
    HTTP_PROTOCOL,
    ROUTES_PROTOCOL,
    TUNNEL_PROTOCOL,
    control_context,
    gateway_context,
    load_node_certificate,
    router_context,
)
from glowplug.node.admission import is_replica_id
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.server import Gateway, Limits
from glowplug.node.record import ReplicaFile, ReplicaFolder
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound
from glowplug.types.paths import IdentityDir, StateDir
from glowplug.types.replica import Endpoint, ReplicaState, ReplicaView
from glowplug.types.spec import HostPythonImage, ServerSpec
from glowplug.types.tunnel import MAX_OPENING_BYTES, check_answer, opening, parse_opening, refusal

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MANY_BYTES = 64 << 20
PATIENCE_S = 30.0


class Cluster:
    """A control plane's certificates, and one node with a gateway."""

    def __init__(self, root: Path) -> None:
        self.control = IdentityDir(root / "control")
        self.state = StateDir(root / "node")
        self.state.create()
        self.authority = new_authority(self.control.root)
        certify_node(self.authority, self.state.identity, "beta")
        self.counts = GatewayCounts(SystemClock())
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._servers: list[asyncio.Server] = []

    async def open(self, limits: Limits) -> None:
        self.context = gateway_context(self.state.identity)
        gateway = Gateway(self.state, self.listener, self.context, self.counts, limits)
        self._serving = asyncio.create_task(gateway.run())

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        for server in self._servers:
            server.close()
        self.listener.close()

    async def replica(self, handler: Handler, *, state: ReplicaState = ReplicaState.READY) -> str:
        """A replica on loopback that is served by ``handler``; its id."""
        server = await asyncio.start_server(_closing(handler), "127.0.0.1", 0)
        self._servers.append(server)
        replica_id = f"web-{secrets.token_hex(4)}"
        folder = ReplicaFolder(self.state, replica_id)
        folder.create()
        view = ReplicaView(
            id=replica_id, app="a", server="web", deployment_id="a-v1", state=state, created_at=0.0,
            endpoint=Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1]),
        )  # fmt: skip
        spec = ServerSpec(name="web", image=HostPythonImage(), command=["true"])
        folder.save(ReplicaFile(view=view, server=spec, image_id="im-1"))
        return replica_id

    async def agent(self, handler: Handler) -> None:
        """An agent that is served by ``handler``."""
        await self.unix_server(self.state.agent_socket, handler)

    async def unix_server(self, path: Path, handler: Handler) -> None:
        """Something on the node that listens at a Unix socket."""
        self._servers.append(await asyncio.start_unix_server(_closing(handler), str(path)))

    async def connect(
        self, protocol: str = TUNNEL_PROTOCOL, context: ssl.SSLContext | None = None, name: str = "beta"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As control does, unless told otherwise."""
        context = context or control_context(self.control, [protocol])
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name)

    async def tunnel(self, line: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open one. Raises what the gateway answered."""
        reader, writer = await self.connect()
        writer.write(line)
        check_answer(await reader.readline())
        return reader, writer

    def refused(self, reason: str) -> float:
        self.counts.write(self.state.gateway_metrics)
        for line in self.state.gateway_metrics.read_text().splitlines():
            if line.startswith(f'glowplug_gateway_refused_total{{reason="{reason}"}}'):
                return float(line.rpartition(" ")[2])
        return 0.0


def _closing(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    return handle


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="gp-"))
    cluster = Cluster(root)
    await cluster.open(getattr(request, "param", Limits(handshake_s=PATIENCE_S, opening_s=PATIENCE_S)))
    try:
        async with asyncio.timeout(120):
            yield cluster
    finally:
        await cluster.close()
        shutil.rmtree(root)


# -- the first line ------------------------------------------------------------------------------------------


@given(st.binary(max_size=2 * MAX_OPENING_BYTES))
@example(b"")
@example(b"glowplug/1 replica ../../etc\n")
@example(b"glowplug/1 replica a\n\n")
@example(b"glowplug/1 replica a\r\n")
@example(b"glowplug/2 replica a\n")
@example(b"GET / HTTP/1.1\r\n")
def test_a_first_line_names_a_replica_or_is_refused(line: bytes) -> None:
    try:
        replica_id = parse_opening(line)
    except InvalidInput:
        return
    assert is_replica_id(replica_id)
    assert opening(replica_id) == line


@given(st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", fullmatch=True))
def test_every_replicas_id_makes_a_first_line(replica_id: str) -> None:
    line = opening(replica_id)
    assert parse_opening(line) == replica_id
    assert len(line) <= MAX_OPENING_BYTES


@given(st.binary(max_size=300))
@example(b"ok")
@example(b"{}\n")
@example(b'{"code": 1, "message": null}\n')
def test_an_answer_opens_the_tunnel_or_is_an_error_of_ours(line: bytes) -> None:
    try:
        check_answer(line)
    except GlowplugError:
        return
    assert line == b"ok\n"


def test_a_refusal_arrives_as_the_error_it_was() -> None:
    with pytest.raises(NotFound, match="No replica") as told:
        check_answer(refusal(NotFound("No replica.", remedy="Look.", secret="x" * 9000)))
    assert (told.value.remedy, told.value.details) == ("Look.", {})


# -- who is let through --------------------------------------------------------------------------------------


async def test_control_reaches_a_replica_and_bytes_pass_both_ways(cluster: Cluster) -> None:
    reader, writer = await cluster.tunnel(opening(await cluster.replica(echo)))
    for piece in (b"hello", bytes(range(256)) * 1000):
        writer.write(piece)
        assert await reader.readexactly(len(piece)) == piece
    writer.close()


async def test_control_reaches_the_agent(cluster: Cluster) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head.split(b" ")[1])

    await cluster.agent(answer)
    reader, writer = await cluster.connect(HTTP_PROTOCOL)
    writer.write(b"GET /v1/node HTTP/1.1\r\n\r\n")
    assert (await reader.read()).endswith(b"/v1/node")
    writer.close()


async def test_a_replica_that_answers_in_pieces_waits_for_no_acknowledgement(cluster: Cluster) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        while await reader.readline():
            writer.write(b"head")
            await asyncio.sleep(0)
            writer.write(b"body")  # Nagle's algorithm keeps it until the head is acknowledged

    reader, writer = await cluster.tunnel(opening(await cluster.replica(answer)))
    took_s = []
    for _ in range(20):
        began_s = time.monotonic()
        writer.write(b"ask\n")
        assert await reader.readexactly(8) == b"headbody"
        took_s.append(time.monotonic() - began_s)
    assert min(took_s[10:]) < 0.020, f"40 ms are waited for nothing: {took_s}"
    writer.close()


async def test_a_node_is_told_by_its_name(cluster: Cluster) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await cluster.connect(name="gamma")


@pytest.mark.parametrize("protocol", [TUNNEL_PROTOCOL, ROUTES_PROTOCOL, HTTP_PROTOCOL])
async def test_another_nodes_certificate_opens_nothing(cluster: Cluster, protocol: str) -> None:
    other = IdentityDir(cluster.control.root.parent / "gamma")
    certify_node(cluster.authority, other, "gamma")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(other.node_certificate, other.node_key)
    context.load_verify_locations(other.authority_certificate)
    context.set_alpn_protocols([protocol])
    reader, writer = await cluster.connect(context=context)
    writer.write(opening(await cluster.replica(echo)))
    answer = (await reader.read()).splitlines()[-1]
    assert json.loads(answer)["code"] == "unauthorized"
    assert cluster.refused("role") == 1
    writer.close()


@pytest.mark.parametrize("protocol", [TUNNEL_PROTOCOL, ROUTES_PROTOCOL, HTTP_PROTOCOL])
async def test_another_nodes_router_reaches_replicas_and_no_more(cluster: Cluster, protocol: str) -> None:
    other = IdentityDir(cluster.control.root.parent / "gamma")
    certify_router(cluster.authority, other, "gamma")
    context = router_context(other)
    context.set_alpn_protocols([protocol])
    reader, writer = await cluster.connect(context=context)
    writer.write(opening(await cluster.replica(echo)))
    if protocol == TUNNEL_PROTOCOL:
        check_answer(await reader.readline())
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
    else:
        answer = (await reader.read()).splitlines()[-1]
        assert json.loads(answer)["code"] == "unauthorized"
        assert cluster.refused("role") == 1
    writer.close()


async def test_control_reaches_the_nodes_router_or_is_told_that_there_is_none(cluster: Cluster) -> None:
    reader, writer = await cluster.connect(ROUTES_PROTOCOL)
    with pytest.raises(NotFound, match="No router"):
        check_answer(await reader.readline())
    writer.close()
    assert cluster.refused("router") == 1

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here\n")

    await cluster.unix_server(cluster.state.router_socket, greet)
    reader, writer = await cluster.connect(ROUTES_PROTOCOL)
    assert await reader.readline() == b"here\n"
    writer.close()


@pytest.mark.parametrize("kind", ["none", "of another cluster", "over"])
async def test_who_has_no_certificate_of_the_cluster_gets_no_byte(cluster: Cluster, kind: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cluster.control.authority_certificate)
    if kind != "none":
        theirs = IdentityDir(cluster.control.root.parent / "theirs")
        if kind == "over":
            authority_of_old(cluster, theirs)
        else:
            new_authority(theirs.root)
        context.load_cert_chain(theirs.control_certificate, theirs.control_key)
    # In TLS 1.3 the client is done before its certificate was looked at: it hears of that when it reads.
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        reader, writer = await cluster.connect(context=context)
        writer.write(opening("any"))
        assert await reader.read() == b""
        writer.close()
    await _eventually(lambda: cluster.refused("handshake") == 1)


def authority_of_old(cluster: Cluster, files: IdentityDir) -> Authority:
    """The cluster's own, as it was when what it issues was good for another month."""
    files.root.mkdir(exist_ok=True)
    files.authority.write_bytes(cluster.control.authority.read_bytes())
    return new_authority(files.root, ManualClock(time.time() - 40 * 86_400))


async def test_a_node_whose_certificate_is_over_is_not_talked_to(cluster: Cluster) -> None:
    old = authority_of_old(cluster, IdentityDir(cluster.control.root.parent / "old"))
    certify_node(old, cluster.state.identity, "beta")
    load_node_certificate(cluster.context, cluster.state.identity)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        await cluster.connect()


async def test_older_tls_and_no_tls_are_refused(cluster: Cluster) -> None:
    context = control_context(cluster.control, [TUNNEL_PROTOCOL])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await cluster.connect(context=context)
    reader, writer = await asyncio.open_connection("127.0.0.1", cluster.port)
    writer.write(b"GET /v1/node HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    await _eventually(lambda: cluster.refused("handshake") == 2)


@pytest.mark.parametrize("line", [
    b"\n", b"hello\n", b"glowplug/1 replica ../../../etc/shadow\n", b"x" * MAX_OPENING_BYTES,
    b"glowplug/1 replica " + b"a" * 64 + b"\n", b"\x00\xff\xfe\n",
])  # fmt: skip
async def test_a_hostile_first_line_is_refused_with_a_reason(cluster: Cluster, line: bytes) -> None:
    with pytest.raises(InvalidInput, match="names no replica"):
        await cluster.tunnel(line)
    assert cluster.refused("opening") == 1


@pytest.mark.parametrize("state", [ReplicaState.STARTING, ReplicaState.PARKED, ReplicaState.DRAINING])
async def test_a_replica_that_is_not_there_or_not_ready_is_not_reached(
    cluster: Cluster, state: ReplicaState
) -> None:
    for replica_id in ("nobody", await cluster.replica(echo, state=state)):
        with pytest.raises(NotFound, match="No replica"):
            await cluster.tunnel(opening(replica_id))
    assert cluster.refused("replica") == 2


async def test_an_agent_that_is_away_is_told_from_a_machine_that_is(cluster: Cluster) -> None:
    reader, writer = await cluster.connect(HTTP_PROTOCOL)
    writer.write(b"GET /v1/node HTTP/1.1\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["details"] == {"is_machine_there": True}
    assert cluster.refused("agent") == 1
    writer.close()


# -- what is bounded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [Limits(strangers=2, handshake_s=0.5, opening_s=0.5)], indirect=True)
async def test_who_says_nothing_is_hung_up_on_and_holds_up_nobody_for_long(cluster: Cluster) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", cluster.port) for _ in range(4)]
    await _eventually(lambda: cluster.refused("handshake") >= 4)
    for _, writer in silent:
        writer.close()
    await _eventually_tunnel(cluster)


@pytest.mark.parametrize("cluster", [Limits(handshake_s=PATIENCE_S, opening_s=0.5)], indirect=True)
async def test_who_never_ends_the_first_line_is_hung_up_on(cluster: Cluster) -> None:
    reader, writer = await cluster.connect()
    writer.write(b"glowplug/1 rep")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert cluster.refused("timeout") == 1
    writer.close()


async def test_a_reader_that_does_not_read_holds_the_sender_back_and_loses_nothing(cluster: Cluster) -> None:
    sent = 0

    async def send_many(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < MANY_BYTES:
            writer.write(b"m" * 65_536)
            await writer.drain()
            sent += 65_536

    reader, writer = await cluster.tunnel(opening(await cluster.replica(send_many)))
    writer.transport.pause_reading()
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.5)
    assert sent < MANY_BYTES, "what nobody reads is not taken in"
    writer.transport.resume_reading()
    received = 0
    while data := await reader.read(1 << 20):
        received += len(data)
    assert received == MANY_BYTES
    writer.close()


async def test_a_replica_hears_of_it_when_control_hangs_up(cluster: Cluster) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    _, writer = await cluster.tunnel(opening(await cluster.replica(wait)))
    writer.transport.abort()
    await ended.wait()


async def _eventually_tunnel(cluster: Cluster) -> None:
    replica_id = await cluster.replica(echo)
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            _, writer = await cluster.tunnel(opening(replica_id))
        except (OSError, GlowplugError, asyncio.IncompleteReadError):
            assert asyncio.get_running_loop().time() < deadline, "no tunnel opens"
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


async def _eventually(is_met: Callable[[], Any]) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not is_met():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
