"""The listening socket that outlives every restart of the control plane."""

from __future__ import annotations

import errno
import socket

from glowplug.engine.processes import listener_of
from glowplug.types.errors import Conflict, InvalidInput, SystemUnfit

BACKLOG = 4096
"""Connections that wait while the control plane restarts; the kernel caps it at net.core.somaxconn."""


def listen(host: str, port: int) -> socket.socket:
    """Open the socket. Raises Conflict when the port is taken (by whom), InvalidInput for a bad host."""
    if not 0 <= port <= 65535:
        raise _bad_address(host, port, "no such port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise _bad_address(host, port, str(error)) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(error, host, port) from error
    return listener


def _bad_address(host: str, port: int, reason: str) -> InvalidInput:
    return InvalidInput(
        f"Cannot listen on {host!r}, port {port}: {reason}.",
        remedy="Give an address of this machine (127.0.0.1, 0.0.0.0) and a port from 0 to 65535.",
    )


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        holder = listener_of(port)
        who = f"process {holder.describe()}" if holder else "another process"
        other = port + 1 if port < 65535 else 8080
        return Conflict(
            f"Port {port} on {host} is taken by {who}.",
            remedy=f"Stop it, or choose another port: glowplug up --port {other}.",
            host=host,
            port=port,
            pid=holder.pid if holder else None,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidInput(
            f"{host} is not an address of this machine.",
            remedy="Use 127.0.0.1 for this machine only, 0.0.0.0 for all its addresses.",
        )
    return SystemUnfit(
        f"Cannot listen on {host}:{port}: {error.strerror}.",
        remedy="Ports below 1024 need root; try another port.",
        host=host,
        port=port,
    )
