"""Serving an ASGI application as a router must be served: one port, one process, uvicorn with httptools.

On SIGTERM the port closes first, then what is in flight gets ten seconds. A port that was inherited keeps
open by its other holder, so that nobody is refused while we restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from glowplug.control.answers import Receive, Scope, Send
from glowplug.control.router import ABORT_EXTENSION
from glowplug.types.errors import SystemUnfit

log = logging.getLogger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_GRACE_S = 10
_REFUSE_HELD_BEFORE_END_S = 1.0
# Longer than common clients and proxies keep idle connections, so that they hang up first.
_KEEP_ALIVE_S = 75
_BACKLOG = 4096
_WEBSOCKET_MESSAGE_LIMIT_BYTES = 64 << 20
# Requests make few reference cycles: looking for them rarely keeps collections out of the latency's tail.
_GC_ALLOCATIONS = 50_000


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, plus the means to break a connection whose answer cannot be completed."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.transport.abort}  # type: ignore[dict-item]


class RouterServer(uvicorn.Server):
    """uvicorn's server; it leaves signals to us afterwards, so that everything is released before we end."""

    def __init__(self, application: Application) -> None:
        super().__init__(_config(application))
        self.refuse_held: Callable[[], None] = lambda: None

    def end(self) -> None:
        """As SIGTERM: finish what is in flight, then end."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Only set flags: see ``netns_socket.py`` on why handlers must not raise."""
        loop = asyncio.get_running_loop()
        caught = (signal.SIGTERM, signal.SIGINT)
        try:
            for number in caught:
                loop.add_signal_handler(number, self.handle_exit, number, None)
        except (ValueError, RuntimeError):
            # Not the main thread (tests): whoever runs us sets should_exit.
            yield
            return
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, let requests finish, refuse those that wait for a replica before time is up."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_GRACE_S - _REFUSE_HELD_BEFORE_END_S, self.refuse_held)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


async def serve_until_told(server: RouterServer, listener: socket.socket) -> None:
    """Serve until a signal, or :meth:`RouterServer.end`."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS, 20, 20)
    host, port = listener.getsockname()[:2]
    log.info("serving on %s port %s", host, port)
    await server.serve(sockets=[listener])


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket of our own. Raises SystemUnfit."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except (OSError, OverflowError) as error:
        raise SystemUnfit(
            f"Cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}.",
            remedy="Stop what uses the port, or choose another with --port.",
        ) from error


def inherit_listener(descriptor: int) -> socket.socket:
    """The listening socket a parent left us as an open descriptor. Raises SystemUnfit."""
    try:
        listener = socket.socket(fileno=descriptor)
        is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SystemUnfit(
            f"Descriptor {descriptor} is no socket: {error.strerror}.", remedy="Start us with glowplug up."
        ) from error
    if not is_listening:
        raise SystemUnfit(
            f"The socket at descriptor {descriptor} does not listen.", remedy="Start us with glowplug up."
        )
    listener.setblocking(False)
    return listener


def url_of(host: str, port: int) -> str:
    """Where one on this machine reaches a listener at this address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def raise_file_limit() -> None:
    """Every request in flight takes two descriptors: use all we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _config(application: Application) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="none",
        http=_Protocol,
        ws="websockets-sansio",
        ws_max_size=_WEBSOCKET_MESSAGE_LIMIT_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        # Peers are judged by their real address, and headers pass as the replica sent them.
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
