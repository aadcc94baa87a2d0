"""Connections to a replica on another machine: TLS to its node's gateway, one line, then the replica's own.

To aiohttp such a connection is like any other: its pool keeps it alive and gives it to one request after the
other.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from glowplug.kernel.tcp import notice_the_dead
from glowplug.node.address import RemoteNode
from glowplug.types.errors import GlowplugError
from glowplug.types.tunnel import MAX_ANSWER_BYTES, check_answer, opening


class TunnelConnector(aiohttp.BaseConnector):
    """Opens tunnels to one replica, a bounded number at a time."""

    def __init__(
        self, node: RemoteNode, replica_id: str, *, keep_alive_s: float, connects_at_once: int
    ) -> None:
        super().__init__(limit=0, keepalive_timeout=keep_alive_s)
        self._node = node
        self._replica_id = replica_id
        self._connects = asyncio.Semaphore(connects_at_once)

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """As every connector, but not all at once."""
        async with self._connects:
            return await super().connect(req, traces, timeout)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        try:
            async with asyncio.timeout(timeout.sock_connect):
                return await self._open()
        except (OSError, TimeoutError, GlowplugError) as error:
            # Whatever went wrong, the replica saw nothing of the request: as a refused connection.
            cause = error if isinstance(error, OSError) else OSError(None, f"{type(error).__name__}: {error}")
            raise aiohttp.ClientConnectorError(req.connection_key, cause) from error

    async def _open(self) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        transport, greeting = await loop.create_connection(
            _Greeting,
            self._node.host,
            self._node.port,
            ssl=self._node.tunnel,
            server_hostname=self._node.name,
        )
        try:
            notice_the_dead(transport.get_extra_info("socket"))
            transport.write(opening(self._replica_id))
            await greeting.accepted
            if greeting.is_over:
                raise ConnectionResetError("the gateway hung up")
        except BaseException:
            transport.abort()
            raise
        handler: ResponseHandler = self._factory()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        if greeting.rest:
            handler.data_received(bytes(greeting.rest))
        return handler


class _Greeting(asyncio.Protocol):
    """Waits for the answer to the first line. ``rest``: what came behind that, which is the replica's."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.is_over = False
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """A piece of the answer, or of what comes behind it."""
        self.rest += data
        if self.accepted.done():
            return
        line, feed, rest = bytes(self.rest).partition(b"\n")
        if not feed and len(line) <= MAX_ANSWER_BYTES:
            return
        try:
            check_answer(line + feed)
        except GlowplugError as error:
            self.accepted.set_exception(error)
        else:
            self.rest = bytearray(rest)
            self.accepted.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway hung up: before it answered, or between its answer and our next step."""
        self.is_over = True
        if not self.accepted.done():
            self.accepted.set_exception(exc or ConnectionResetError("the gateway hung up"))
