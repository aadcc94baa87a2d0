"""Serving the control plane: one port, one process.

``/api``, ``/metrics`` and the documentation are the API (guarded by the token off this machine), everything
else is the router. While another control plane leads, ours stands by and says so (``standby.py``); once it
leads, it does for the rest of its life. Who still waits for a replica when we end is told to come back.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable

import uvicorn

from glowplug.control import headers
from glowplug.control.access import Gate, is_open, load_or_create_token
from glowplug.control.answers import Message, Receive, Scope, Send, deny_websocket, send_error
from glowplug.control.api import make_api
from glowplug.control.candidate import only_control
from glowplug.control.database_url import database_url
from glowplug.control.http_server import Application, RouterServer, raise_file_limit, serve_until_told, url_of
from glowplug.control.leadership import Leadership
from glowplug.control.lease import open_lease
from glowplug.control.own_node import OwnNode, become_node
from glowplug.control.peer_user import PeerUsers
from glowplug.control.plane import ControlPlane
from glowplug.control.standby import Standby
from glowplug.control.tenure import Tenure
from glowplug.control.timings import Timings
from glowplug.observe.limited_log import LimitedLog
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, InvalidInput
from glowplug.types.ids import RESERVED_NAMES
from glowplug.types.paths import StateDir

log = logging.getLogger(__name__)

_GUARDED = frozenset({"api", "metrics"})
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


async def serve(
    state: StateDir,
    listener: socket.socket,
    *,
    own: OwnNode | None = None,
    clock: Clock | None = None,
    timings: Timings | None = None,
    has_agent: bool = True,
    on_server: Callable[[uvicorn.Server], None] = lambda _server: None,
) -> bool:
    """Serve until told to end. Takes over ``listener``. False says that we should be restarted.

    That is so when a part broke, and when another control plane has taken over: our successor stands by.
    ``own``: this machine has a gateway, and is a node of whoever leads.
    """
    clock, timings = clock or SystemClock(), timings or Timings()
    raise_file_limit()
    gate = Gate(load_or_create_token(state.token), PeerUsers().is_trusted)
    url = database_url(state.database)
    async with only_control(state, listener) as me:
        if own is not None:
            here = url_of(*listener.getsockname()[:2])
            await become_node(own, state.identity, url, control_url=here, clock=clock)
        lease = await asyncio.to_thread(open_lease, url, me, timings)
        async with Leadership(lease, clock=clock, timings=timings) as leadership:
            dispatcher = Dispatcher(Standby(leadership, clock), gate, clock)
            server = RouterServer(dispatcher)
            tenure = Tenure(
                state, url, leadership, own=own, has_agent=has_agent, clock=clock, timings=timings
            )
            tenure.on_plane = functools.partial(_lead, server, dispatcher, clock)
            tenure.on_end = server.end
            async with tenure:
                on_server(server)
                await serve_until_told(server, listener)
            return not tenure.is_broken


def _lead(server: RouterServer, dispatcher: Dispatcher, clock: Clock, plane: ControlPlane) -> None:
    server.refuse_held = plane.refuse_held
    dispatcher.lead(make_api(plane, clock), plane.router)


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
