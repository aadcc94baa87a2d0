"""Talking HTTP to one replica from inside its network namespace: probes, warm-ups, canaries, hooks."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import aiohttp

from glowplug.kernel.netns_socket import NamespaceSockets
from glowplug.types.errors import DeadlineExceeded, ReplicaFailed
from glowplug.types.replica import Endpoint, Stage
from glowplug.types.spec import HttpCall

PROBE_HEADER = {"x-glowplug-probe": "1"}
MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def text(self, characters: int = 2000) -> str:
        """The start of the body, for people."""
        return self.body[: 4 * characters].decode(errors="replace")[:characters]

    @property
    def is_success(self) -> bool:
        """2xx."""
        return 200 <= self.status < 300


class ReplicaTalk:
    """One replica's HTTP client. No connection outlives its call, so nothing is open at a checkpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._base = f"http://{endpoint.host}:{endpoint.port}"
        self._sockets = NamespaceSockets(endpoint.netns)
        connector = aiohttp.TCPConnector(force_close=True, socket_factory=self._socket, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)

    async def ask(self, call: HttpCall, timeout_s: float, headers: dict[str, str] | None = None) -> Answer:
        """Make the call and read the answer. Raises OSError, TimeoutError or aiohttp.ClientError."""
        async with self._session.request(
            call.method,
            self._base + call.path,
            json=call.json_body,
            headers={**PROBE_HEADER, **(headers or {})},
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
        ) as response:
            body = await response.content.read(MAX_ANSWER_BYTES)
            while chunk := await response.content.read(MAX_ANSWER_BYTES - len(body)):
                body += chunk
            if len(body) >= MAX_ANSWER_BYTES:
                raise aiohttp.ClientPayloadError(f"answer to {call.path} is over {MAX_ANSWER_BYTES} bytes")
            return Answer(response.status, dict(response.headers), body)

    async def call(self, what: str, call: HttpCall, timeout_s: float) -> Answer:
        """As :meth:`ask`, but raises DeadlineExceeded or ReplicaFailed, which name the call."""
        named = f"The {what} call {call.method} {call.path}"
        try:
            return await self.ask(call, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{named} was not answered within {timeout_s:g} s.", stage=Stage.FIRST_ANSWER.value
            ) from None
        except (OSError, aiohttp.ClientError) as error:
            raise ReplicaFailed(
                f"{named} was not answered: {error or type(error).__name__}.", remedy="See the server's log."
            ) from error

    async def close(self) -> None:
        """Release the sockets and the namespace."""
        await self._session.close()
        self._sockets.close()

    def _socket(self, address: Any) -> socket.socket:
        family, kind, protocol, *_ = address
        return self._sockets.open(family, kind, protocol)
