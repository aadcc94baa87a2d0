"""Lets the control plane through to this node's agent, router and replicas, and routers to its replicas.

Every connection is TLS 1.3 with certificates on both sides. What was agreed on in the handshake (ALPN) says
where it goes: ``glowplug-tunnel/1`` to the replica that the first line names, ``glowplug-routes/1`` to this
node's router, anything else to the agent's HTTP socket. From then on it only carries bytes, so WebSockets and
streams need nothing of their own, and it reads what it must know from the disk: it serves while the agent is
dead, too.

Bounded before anybody is known: how many strangers at once, how long a handshake and a first line may take,
how long that line is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from glowplug.identity.contexts import ROUTES_PROTOCOL, TUNNEL_PROTOCOL
from glowplug.identity.roles import require_control, require_router
from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.stream import PIECE_BYTES, Stream, accept_tls, splice
from glowplug.node.record import ReplicaFolder
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.replica import Endpoint, ReplicaState
from glowplug.types.tunnel import ACCEPTED, MAX_OPENING_BYTES, parse_opening, refusal

log = logging.getLogger(__name__)

_ACCEPT_AGAIN_S = 0.1
# A caller that is refused has to read why before the connection is reset over bytes that nobody took.
_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a connection may take before it is let through."""

    strangers: int = 256
    handshake_s: float = 5.0
    opening_s: float = 5.0


class _Refused(Exception):
    """A connection that goes nowhere; ``reason`` is what it is counted as."""

    def __init__(self, reason: str, error: GlowplugError) -> None:
        super().__init__(str(error))
        self.reason = reason
        self.error = error


class Gateway:
    """Serves ``listener`` (which its owner closes) while :meth:`run` runs."""

    def __init__(
        self,
        state: StateDir,
        listener: socket.socket,
        context: ssl.SSLContext,
        counts: GatewayCounts,
        limits: Limits | None = None,
    ) -> None:
        self._state = state
        self._listener = listener
        self._context = context
        self._counts = counts
        self._limits = limits or Limits()
        self._strangers = asyncio.Semaphore(self._limits.strangers)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled; then every connection ends."""
        self._listener.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._strangers.acquire()
                try:
                    accepted, address = await loop.sock_accept(self._listener)
                except OSError as error:  # no descriptors left, or a caller that left at once
                    self._strangers.release()
                    log.error("cannot accept a connection: %s", error)
                    await asyncio.sleep(_ACCEPT_AGAIN_S)
                except BaseException:
                    self._strangers.release()
                    raise
                else:
                    task = loop.create_task(self._serve(accepted, str(address[0])))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, accepted: socket.socket, peer: str) -> None:
        try:
            opened = await self._admit(accepted, peer)
        finally:
            self._strangers.release()
        if opened is None:
            return
        kind, near, far = opened
        self._counts.opened(kind)
        try:
            await splice(near, far)
        finally:
            self._counts.closed(kind)

    async def _admit(self, accepted: socket.socket, peer: str) -> tuple[str, Stream, Stream] | None:
        """Both ends of what may go on; None for who was refused."""
        try:
            near = await accept_tls(accepted, self._context, self._limits.handshake_s)
        except (OSError, TimeoutError) as error:
            accepted.close()
            self._counts.refused("handshake", peer, f"{type(error).__name__}: {error}")
            return None
        try:
            async with asyncio.timeout(self._limits.opening_s):
                return await self._open(near)
        except TimeoutError:
            self._counts.refused("timeout", peer, f"nothing came of it in {self._limits.opening_s:g} s")
            near.abort()
        except _Refused as refused:
            self._counts.refused(refused.reason, peer, str(refused))
            await _turn_away(near, refused.error)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._counts.refused("opening", peer, f"{type(error).__name__}: {error}")
            near.abort()
        except BaseException:
            near.abort()
            raise
        return None

    async def _open(self, near: Stream) -> tuple[str, Stream, Stream]:
        require = require_router if near.protocol == TUNNEL_PROTOCOL else require_control
        try:
            require(near.writer.get_extra_info("peercert"))
        except GlowplugError as error:
            raise _Refused("role", error) from error
        if near.protocol == ROUTES_PROTOCOL:
            return "router", near, await self._open_router()
        if near.protocol != TUNNEL_PROTOCOL:
            return "agent", near, await self._open_agent()
        try:
            replica_id = parse_opening(await _read_line(near))
        except InvalidInput as error:
            raise _Refused("opening", error) from error
        far = await self._open_replica(replica_id)
        try:
            near.writer.write(ACCEPTED)
            await near.writer.drain()
        except BaseException:
            far.abort()
            raise
        return "replica", near, far

    async def _open_agent(self) -> Stream:
        away = Unavailable(
            "The node's agent does not answer, though the node does.",
            remedy="Its supervisor restarts it; see logs/agent.log on the node.",
            is_machine_there=True,
        )
        return await _open_socket(self._state.agent_socket, "agent", away)

    async def _open_router(self) -> Stream:
        away = NotFound(
            "No router runs on the node.",
            remedy="Start it there: `glowplug cluster join --serve HOST:PORT`; its log is logs/router.log.",
        )
        return await _open_socket(self._state.router_socket, "router", away)

    async def _open_replica(self, replica_id: str) -> Stream:
        try:
            return await _connect(self._endpoint(replica_id))
        except NotFound as error:
            raise _Refused("replica", error) from error
        except OSError as error:
            silent = Unavailable(
                f"Replica {replica_id} takes no connections: {error.strerror or error}.",
                remedy=f"See its log: glowplug logs {replica_id}.",
            )
            raise _Refused("replica", silent) from error

    def _endpoint(self, replica_id: str) -> Endpoint:
        """Where the replica answers, as its agent wrote it down. Raises NotFound."""
        record = ReplicaFolder(self._state, replica_id).load()
        is_up = record is not None and record.view.state is ReplicaState.READY
        if record is None or not is_up or record.view.endpoint is None:
            raise NotFound(
                f"No replica {replica_id} answers on this node.",
                remedy="`glowplug ps` lists what runs.",
            )
        return record.view.endpoint


async def _open_socket(path: Path, reason: str, away: GlowplugError) -> Stream:
    """A process of this node's, at its Unix socket."""
    try:
        return Stream(*await asyncio.open_unix_connection(str(path), limit=PIECE_BYTES))
    except OSError as error:
        raise _Refused(reason, away) from error


async def _connect(endpoint: Endpoint) -> Stream:
    """A connection that begins in the replica's namespace. Raises OSError."""
    with NamespaceSockets(endpoint.netns) as sockets:
        inside = sockets.open(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    try:
        await asyncio.get_running_loop().sock_connect(inside, (endpoint.host, endpoint.port))
        return Stream(*await asyncio.open_connection(sock=inside, limit=PIECE_BYTES))
    except BaseException:
        inside.close()
        raise


async def _read_line(near: Stream) -> bytes:
    """The first line, in whatever pieces it comes, or what there is of one that is too long."""
    line = b""
    while not line.endswith(b"\n"):
        if len(line) == MAX_OPENING_BYTES:
            return line
        line += await near.reader.readexactly(1)
    return line


async def _turn_away(near: Stream, error: GlowplugError) -> None:
    """Say why, in the words of the protocol that the caller speaks, and close."""
    has_lines = near.protocol in (TUNNEL_PROTOCOL, ROUTES_PROTOCOL)
    answer = refusal(error) if has_lines else _http_answer(error)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            near.writer.write(answer)
            await near.writer.drain()
            taken = 0
            while taken < _LINGER_BYTES and (data := await near.reader.read(PIECE_BYTES)):
                taken += len(data)
    near.abort()


def _http_answer(error: GlowplugError) -> bytes:
    body = json.dumps(error.to_dict()).encode()
    head = (
        f"HTTP/1.1 {error.http_status} Refused\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
