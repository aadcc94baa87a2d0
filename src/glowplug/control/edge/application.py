"""What answers on a router's port: the router, its health and its metrics. The control API is control's."""

from __future__ import annotations

import math

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from glowplug.control.access import Gate
from glowplug.control.answers import Receive, Scope, Send, deny_websocket, send_error
from glowplug.control.edge.table import RouteTable
from glowplug.control.edge.upstream import Upstream
from glowplug.control.http_server import Application
from glowplug.types.errors import GlowplugError, NotFound
from glowplug.types.ids import RESERVED_NAMES
from glowplug.types.replica import Message


class RouterHealth(Message):
    """The process answers. ``table_age_s``: since control was heard of; None before the first time."""

    status: str = "ok"
    role: str = "router"
    table_age_s: float | None = None


class EdgeApplication:
    """An ASGI application for all paths. Metrics are for this machine, and who has its token."""

    def __init__(
        self,
        router: Application,
        table: RouteTable,
        upstream: Upstream,
        registry: CollectorRegistry,
        gate: Gate,
    ) -> None:
        self._router = router
        self._table = table
        self._upstream = upstream
        self._registry = registry
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or one WebSocket."""
        first = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        if first not in RESERVED_NAMES:
            await self._router(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await deny_websocket(scope, send, self._elsewhere())
            return
        try:
            content_type, body = self._answer(scope)
        except GlowplugError as error:
            await send_error(send, error)
            return
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, scope: Scope) -> tuple[str, bytes]:
        match (scope["method"], scope["path"]):
            case ("GET", "/healthz"):
                age_s = self._table.age_s
                health = RouterHealth(table_age_s=age_s if math.isfinite(age_s) else None)
                return "application/json", health.model_dump_json().encode()
            case ("GET", "/metrics"):
                self._gate.check(scope)
                return CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case _:
                raise self._elsewhere()

    def _elsewhere(self) -> NotFound:
        return NotFound(
            "This is the router of a node: it serves apps, and has no control API.",
            remedy=f"Ask the control plane: {self._upstream.url}.",
        )
