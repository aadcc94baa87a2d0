"""Serving the control plane: one port, one process, uvicorn with httptools and uvloop.

``/api``, ``/metrics`` and the documentation are the API (guarded by the token off this machine), everything
else is the router. While another control plane leads, ours stands by and says so (``standby.py``); once it
leads, it does for the rest of its life. On SIGTERM the port closes first, then what is in flight gets ten
seconds, then who still waits for a replica is told to come back. When the port is inherited (``--fd``) its
other holder keeps it open, so that nobody is refused while we restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from glowplug.control import headers
from glowplug.control.access import Gate, is_open, load_or_create_token
from glowplug.control.answers import Message, Receive, Scope, Send, deny_websocket, send_error
from glowplug.control.api import make_api
from glowplug.control.candidate import only_control
from glowplug.control.database_url import database_url
from glowplug.control.leadership import Leadership
from glowplug.control.lease import open_lease
from glowplug.control.peer_user import PeerUsers
from glowplug.control.plane import ControlPlane
from glowplug.control.router import ABORT_EXTENSION
from glowplug.control.standby import Standby
from glowplug.control.tenure import Tenure
from glowplug.control.timings import Timings
from glowplug.observe.limited_log import LimitedLog
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, InvalidInput, SystemUnfit
from glowplug.types.ids import RESERVED_NAMES
from glowplug.types.paths import StateDir

log = logging.getLogger(__name__)

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_GRACE_S = 10
_REFUSE_HELD_BEFORE_END_S = 1.0
# Longer than common clients and proxies keep idle connections, so that they hang up first.
_KEEP_ALIVE_S = 75
_BACKLOG = 4096
_GUARDED = frozenset({"api", "metrics"})
_WEBSOCKET_MESSAGE_LIMIT_BYTES = 64 << 20
# Requests make few reference cycles: looking for them rarely keeps collections out of the latency's tail.
_GC_ALLOCATIONS = 50_000
_API_BODY_LIMIT_BYTES = 16 << 20
# What anybody may send: a signing request, some names.
_OPEN_BODY_LIMIT_BYTES = 64 << 10
_MAX_PATH_CHARACTERS = 200


class Dispatcher:
    """Sends a request to the API or the router by its path's first part, which no app may be named."""

    def __init__(self, standby: Application, gate: Gate, clock: Clock) -> None:
        self._api = self._router = standby
        self._gate = gate
        self._refusals = LimitedLog(log, clock)

    def lead(self, api: Application, router: Application) -> None:
        """From now on it is these that answer."""
        self._api, self._router = api, router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or one WebSocket."""
        first = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        if first not in RESERVED_NAMES:
            await self._router(scope, receive, send)
            return
        if first in _GUARDED and not is_open(scope):
            try:
                self._gate.check(scope)
            except GlowplugError as error:
                self._note(scope, error)
                await _refuse(scope, receive, send, error)
                return
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        try:
            limit_bytes = _OPEN_BODY_LIMIT_BYTES if is_open(scope) else _API_BODY_LIMIT_BYTES
            await self._api(scope, _bounded(scope, receive, limit_bytes), send)
        except InvalidInput as error:
            self._note(scope, error)
            await send_error(send, error)

    def _note(self, scope: Scope, error: GlowplugError) -> None:
        """Who was turned away, and why; a stranger who knocks all day fills no disk."""
        caller, asked = (scope.get("client") or ("nobody",))[0], scope["path"][:_MAX_PATH_CHARACTERS]
        self._refusals.warning("refused %s, who asked for %r: %s", caller, asked, error.message)


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, plus the means to break a connection whose answer cannot be completed."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.transport.abort}  # type: ignore[dict-item]


class _Server(uvicorn.Server):
    """uvicorn's server; it leaves signals to us afterwards, so that everything is released before we end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
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


async def serve(
    state: StateDir,
    listener: socket.socket,
    *,
    clock: Clock | None = None,
    timings: Timings | None = None,
    on_server: Callable[[uvicorn.Server], None] = lambda _server: None,
) -> bool:
    """Serve until told to end. Takes over ``listener``. False says that we should be restarted.

    That is so when a part broke, and when another control plane has taken over: our successor stands by.
    """
    clock, timings = clock or SystemClock(), timings or Timings()
    _raise_file_limit()
    gate = Gate(load_or_create_token(state.token), PeerUsers().is_trusted)
    url = database_url(state.database)
    async with only_control(state, listener) as me:
        lease = await asyncio.to_thread(open_lease, url, me, timings)
        async with Leadership(lease, clock=clock, timings=timings) as leadership:
            dispatcher = Dispatcher(Standby(leadership, clock), gate, clock)
            server = _Server(_config(dispatcher))
            tenure = Tenure(state, url, leadership, clock=clock, timings=timings)
            tenure.on_plane = functools.partial(_lead, server, dispatcher, clock)
            tenure.on_end = server.end
            async with tenure:
                on_server(server)
                await _serve_until_told(server, listener)
            return not tenure.is_broken


def _lead(server: _Server, dispatcher: Dispatcher, clock: Clock, plane: ControlPlane) -> None:
    server.refuse_held = plane.refuse_held
    dispatcher.lead(make_api(plane, clock), plane.router)


async def _serve_until_told(server: uvicorn.Server, listener: socket.socket) -> None:
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


def _bounded(scope: Scope, receive: Receive, limit_bytes: int) -> Receive:
    """``receive`` for the API, which reads bodies whole. Raises InvalidInput for one that is too large."""
    too_large = InvalidInput(
        f"The request's body is larger than {limit_bytes / (1 << 20):g} MiB.",
        remedy="Send specifications only: images and data do not pass through the control API.",
    )
    declared = headers.first(scope["headers"], b"content-length")
    if declared is not None and int(declared) > limit_bytes:
        raise too_large
    total_bytes = 0

    async def bounded() -> Message:
        nonlocal total_bytes
        message = await receive()
        total_bytes += len(message.get("body", b""))
        if total_bytes > limit_bytes:
            raise too_large
        return message

    return bounded


async def _refuse(scope: Scope, receive: Receive, send: Send, error: GlowplugError) -> None:
    if scope["type"] == "websocket":
        await receive()
        await deny_websocket(scope, send, error)
    else:
        await send_error(send, error)


def _raise_file_limit() -> None:
    """Every request in flight takes two descriptors: use all we may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
