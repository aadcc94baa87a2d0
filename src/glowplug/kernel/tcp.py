"""What we ask of the kernel for single TCP connections: to acknowledge at once, and to notice the dead.

A server that writes an answer in pieces and leaves Nagle's algorithm on (Python's http.server, among many)
keeps the second piece until the first is acknowledged. The kernel does that with the next packet, or after
40 ms: on a connection where question and answer take turns it expects the next question soon. Who has read a
piece and knows that there is more to come has nothing to say before that: it should not wait.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

_UNACKNOWLEDGED_LIMIT_MS = 30_000
_KEEP_ALIVE_IDLE_S = 10
_KEEP_ALIVE_EVERY_S = 5
_KEEP_ALIVE_PROBES = 3


def acknowledge(transport: asyncio.BaseTransport | None) -> None:
    """Acknowledge what came over this TCP connection; not remembered beyond what is sent next."""
    connection = None if transport is None else transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # it has ended meanwhile: whoever reads will see
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def notice_the_dead(connection: socket.socket) -> None:
    """A machine whose link was cut resets nothing: the kernel asks, and gives up after half a minute."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_LIMIT_MS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_ALIVE_PROBES)
