"""The way to one replica: a pool of keep-alive connections that start inside its network namespace, or go
there through the gateway of its node.

One channel belongs to one replica and dies with it. It turns the many ways in which a connection can fail
into the two that the router must tell apart: :class:`ConnectFailed` (the replica saw nothing of the
request, any request may go elsewhere) and :class:`ExchangeBroken` (it may have seen it: only a repeatable
request may).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
from aiohttp.connector import AddrInfoType
from multidict import CIMultiDict
from yarl import URL

from glowplug.control.tunnel import TunnelConnector
from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.kernel.tcp import acknowledge, notice_the_dead
from glowplug.node.address import LocalNode, NodeAddress
from glowplug.types.errors import DeadlineExceeded, InvalidInput, Unavailable
from glowplug.types.replica import Endpoint

# Model servers commonly close idle connections after 5 s (uvicorn) or 2 s (gunicorn). Staying below means
# that we hang up first, and a request never meets a connection that is just being closed.
_KEEP_ALIVE_S = 1.5
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 5.0
# A thousand released requests must not knock all at once: small servers have listen backlogs of 5 to 128, and
# what does not fit comes back a second later.
_CONNECTS_AT_ONCE = 64
_SKIPPED_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_MAX_HEADER_BYTES = 64 << 10


class ConnectFailed(Unavailable):
    """No connection to the replica could be made: it saw nothing of the request."""


class ExchangeBroken(Unavailable):
    """The connection broke after the request may have reached the replica."""


class _Connector(aiohttp.TCPConnector):
    """A TCP connector whose sockets start in a namespace, and that opens a bounded number at a time."""

    def __init__(self, sockets: NamespaceSockets, *, is_far: bool) -> None:
        self._namespace_sockets = sockets
        self._is_far = is_far
        self._connects = asyncio.Semaphore(_CONNECTS_AT_ONCE)
        super().__init__(
            limit=0, keepalive_timeout=_KEEP_ALIVE_S, use_dns_cache=False, socket_factory=self._open_socket
        )

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        async with self._connects:
            return await super().connect(req, traces, timeout)

    def _open_socket(self, address: AddrInfoType) -> Any:
        opened = self._namespace_sockets.open(address[0], address[1], address[2])
        if self._is_far:
            notice_the_dead(opened)
        return opened


class ReplicaChannel:
    """Sends requests to one replica. Owns its connections and its hold on the namespace: :meth:`close`.

    ``is_far``: it answers on another machine, though no gateway is between: it is a router. Raises OSError
    when the namespace does not exist (any more) on this machine.
    """

    def __init__(
        self,
        replica_id: str,
        endpoint: Endpoint,
        node: NodeAddress,
        *,
        silence_limit_s: float,
        scheme: str = "http",
        is_far: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.node = node
        self._replica_id = replica_id
        # On another machine its gateway is next to it, which does not wait for us.
        self._is_direct = isinstance(node, LocalNode)
        self._is_far = is_far
        self._sockets = NamespaceSockets(endpoint.netns if isinstance(node, LocalNode) else None)
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        self._base = f"{scheme}://{host}:{endpoint.port}"
        self._silence_limit_s = silence_limit_s
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Made for the first request: of thousands of replicas most are asked by nobody for a while."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=self._connector(),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_SKIPPED_AUTO_HEADERS,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self._silence_limit_s
                ),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
            )
        return self._opened

    def _connector(self) -> aiohttp.BaseConnector:
        if isinstance(self.node, LocalNode):
            return _Connector(self._sockets, is_far=self._is_far)
        return TunnelConnector(
            self.node, self._replica_id, keep_alive_s=_KEEP_ALIVE_S, connects_at_once=_CONNECTS_AT_ONCE
        )

    async def request(
        self, method: str, target: str, headers: CIMultiDict[str], body: bytes | AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer; the caller closes or releases the response."""
        try:
            response = await self._session.request(
                method,
                URL(self._base + target, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self.translate(error) from error
        if self._is_direct and response.connection is not None and not response.content.is_eof():
            acknowledge(response.connection.transport)
        return response

    async def websocket(
        self, target: str, headers: CIMultiDict[str], subprotocols: Iterable[str]
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket. Raises as :meth:`request`, and WSServerHandshakeError when it is denied."""
        try:
            return await self._session.ws_connect(
                URL(self._base + target, encoded=True),
                headers=headers,
                protocols=tuple(subprotocols),
                autoclose=False,
                autoping=True,
                max_msg_size=0,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_TIMEOUT_S),
            )
        except aiohttp.WSServerHandshakeError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self.translate(error) from error

    def translate(self, error: Exception) -> Exception:
        """Our word for what aiohttp raised."""
        details = {"replica_id": self._replica_id, "cause": f"{type(error).__name__}: {error}"}
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return ConnectFailed(f"Replica {self._replica_id} takes no connections.", **details)
        if isinstance(error, aiohttp.SocketTimeoutError):
            return DeadlineExceeded(
                f"Replica {self._replica_id} sent nothing for {self._silence_limit_s:g} s.",
                remedy=f"See its log (glowplug logs {self._replica_id}), or raise request_timeout_s.",
                stage="answer",
                replica_id=self._replica_id,
            )
        if isinstance(error, aiohttp.InvalidURL | UnicodeError) or (
            isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError)
        ):
            return InvalidInput("The request cannot be forwarded as it is.", **details)
        return ExchangeBroken(
            f"The connection to replica {self._replica_id} broke before its answer.", **details
        )

    async def close(self) -> None:
        """Close every connection and let go of the namespace."""
        if self._opened is not None:
            await self._opened.close()
        self._sockets.close()
