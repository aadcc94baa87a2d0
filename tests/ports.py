"""Ports for servers that must be told theirs."""

from __future__ import annotations

import contextlib
import random
import socket

_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """A port nobody listens on right now.

    Below those that the kernel hands out by itself: between our look and our server's start no connection of
    another test, nor a server that takes any port, can come to have it.
    """
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(_FIRST, _LAST)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return sorted(found)
