"""One WebSocket on its way through the router: messages, subprotocol and close codes pass both ways."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Set
from typing import Any

import aiohttp

from glowplug.control import headers
from glowplug.control.answers import Receive, Scope, Send
from glowplug.control.channel import ConnectFailed, ExchangeBroken, ReplicaChannel
from glowplug.control.destination import Destination
from glowplug.control.replica_entry import Replica
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.errors import ReplicaFailed

log = logging.getLogger(__name__)

# Codes that may not appear in a close frame (RFC 6455, 7.4.1), and what to say instead.
_CLOSE_CODES = {1005: 1000, 1006: 1011, 1015: 1011}
_GOING_AWAY = 1001
_INTERNAL_ERROR = 1011
_NO_CODE = 1005


class ProxiedSocket:
    """One WebSocket. ``is_accepted`` says that refusing by HTTP is no longer possible."""

    def __init__(
        self,
        target: Destination,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        path: str,
        prefix: str,
        timings: Timings,
        clock: Clock,
    ) -> None:
        self._target = target
        self._scope = scope
        self._receive = receive
        self._send = send
        self._path = path
        self._prefix = prefix
        self._timings = timings
        self._clock = clock
        self._arrived_at_s = clock.monotonic()
        self._tasks: Set[asyncio.Task[Any]] = set()
        self._is_held = False
        self.is_accepted = False

    async def run(self) -> None:
        """Carry the conversation until either side ends it. Raises ClientGone or a GlowplugError."""
        await self._receive()  # websocket.connect
        while True:
            replica = self._target.pick() or await self._hold()
            replica.in_flight.add(self)
            self._target.entered()
            try:
                await self._attempt(replica)
                return
            except ConnectFailed:
                # Nothing was said yet: any handshake may go elsewhere.
                self._target.suspect(replica, self._timings.suspect_refused_s)
            finally:
                replica.in_flight.discard(self)
                self._target.left()
            self._target.counters.retried += 1

    def interrupt(self, reason: Exception) -> None:
        """The replica is gone: try another, or end an accepted conversation with code 1011."""
        log.info("websocket to %s ends: %s", self._target.name, reason)
        for task in self._tasks:
            task.cancel()

    async def _hold(self) -> Replica:
        is_admitted, self._is_held = self._is_held, True
        return await self._target.wait(
            self._wait_for_disconnect, arrived_at_s=self._arrived_at_s, is_admitted=is_admitted
        )

    async def _wait_for_disconnect(self) -> bool:
        # Before the handshake is answered a client can send nothing but its going away.
        return bool((await self._receive())["type"] == "websocket.disconnect")

    async def _attempt(self, replica: Replica) -> None:
        channel = replica.channel
        if channel is None:
            raise ConnectFailed(f"Replica {replica.id} has just ended.", replica_id=replica.id)
        upstream = await self._open(replica, channel)
        try:
            if replica.cold_start is not None:
                self._target.first_answer(replica)
            await self._send({"type": "websocket.accept", "subprotocol": upstream.protocol})
            self.is_accepted = True
            await self._pump_both_ways(upstream)
        finally:
            await upstream.close(code=_GOING_AWAY)

    async def _open(self, replica: Replica, channel: ReplicaChannel) -> aiohttp.ClientWebSocketResponse:
        scope = self._scope
        peer = scope["client"][0] if scope["client"] else "unknown"
        scheme = "https" if scope["scheme"] == "wss" else "http"
        prefix, path = replica.addressed(self._prefix, self._path)
        outgoing = headers.request_headers(
            scope["headers"], peer=peer, scheme=scheme, prefix=prefix, is_websocket=True
        )
        opening = asyncio.get_running_loop().create_task(
            channel.websocket(path, outgoing, scope["subprotocols"])
        )
        self._tasks = {opening}
        try:
            await asyncio.wait({opening})
        finally:
            opening.cancel()
        if opening.cancelled():
            raise ConnectFailed(f"Replica {replica.id} ended before it accepted.", replica_id=replica.id)
        try:
            return opening.result()
        except aiohttp.WSServerHandshakeError as error:
            raise ReplicaFailed(
                f"The server refused the WebSocket with status {error.status}.",
                remedy="Check the path and what the server expects.",
                status=error.status,
            ) from error
        except ExchangeBroken as error:
            raise ReplicaFailed(error.message, remedy="See the replica's log.", **error.details) from error

    async def _pump_both_ways(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        loop = asyncio.get_running_loop()
        pumps = {
            loop.create_task(self._caller_to_replica(upstream)),
            loop.create_task(self._replica_to_caller(upstream)),
        }
        self._tasks = pumps
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        for pump in done:
            if pump.cancelled():
                await self._close_caller(_INTERNAL_ERROR, "the replica ended")
            elif (error := pump.exception()) is not None:
                log.info("websocket to %s broke: %s", self._target.name, error)
                await self._close_caller(_INTERNAL_ERROR, "the connection broke")

    async def _caller_to_replica(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or _NO_CODE
                reason = (message.get("reason") or "").encode()
                await upstream.close(code=_CLOSE_CODES.get(code, code), message=reason)
                return
            if message.get("text") is not None:
                await upstream.send_str(message["text"])
            else:
                await upstream.send_bytes(message["bytes"])

    async def _replica_to_caller(self, upstream: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            message = await upstream.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                await self._send({"type": "websocket.send", "text": message.data})
            elif message.type is aiohttp.WSMsgType.BINARY:
                await self._send({"type": "websocket.send", "bytes": message.data})
            elif message.type is aiohttp.WSMsgType.CLOSE:
                await self._close_caller(message.data or _NO_CODE, message.extra or "")
                return
            else:
                await self._close_caller(_INTERNAL_ERROR, "the connection broke")
                return

    async def _close_caller(self, code: int, reason: str) -> None:
        # The server raises OSError when the caller has gone meanwhile: then there is nobody to tell.
        with contextlib.suppress(OSError):
            await self._send(
                {"type": "websocket.close", "code": _CLOSE_CODES.get(code, code), "reason": reason}
            )
