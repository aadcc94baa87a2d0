"""The router: ``/{app}/{server}/{path}`` goes to a replica's ``/{path}``. A plain ASGI application.

It knows destinations, not deployments; it starts nothing. What cannot be answered gets one clear error as
JSON, and an answer that breaks half way ends in a broken connection, never in a complete-looking one.
"""

from __future__ import annotations

import logging

from glowplug.control.answers import Receive, Scope, Send, deny_websocket, send_error
from glowplug.control.destination import Destination, Destinations
from glowplug.control.http_proxy import ProxiedRequest
from glowplug.control.overhead import OverheadHistogram
from glowplug.control.request_body import ClientGone, KeptBytes
from glowplug.control.timings import Timings
from glowplug.control.websocket_proxy import ProxiedSocket
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, NotFound

log = logging.getLogger(__name__)

ABORT_EXTENSION = "glowplug.abort"
"""Name of the ASGI extension by which our server lets an application break the connection."""

_AGENT_ONLY = "/.glowplug"


class Router:
    """Routes requests to where they belong."""

    def __init__(
        self, destinations: Destinations, *, timings: Timings, clock: Clock, overhead: OverheadHistogram
    ) -> None:
        self._destinations = destinations
        self._timings = timings
        self._clock = clock
        self._kept = KeptBytes()
        self._overhead = overhead

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or carry one WebSocket."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            target, path, prefix = self._find(scope)
        except GlowplugError as error:
            await send_error(send, error)
            return
        request = ProxiedRequest(
            target,
            scope,
            receive,
            send,
            path=path,
            prefix=prefix,
            timings=self._timings,
            clock=self._clock,
            kept=self._kept,
            on_overhead=self._overhead.observe,
        )
        try:
            await request.run()
        except ClientGone:
            return
        except GlowplugError as error:
            if request.has_started:
                log.warning("an answer of %s broke off: %s", target.name, error)
                _abort(scope)
                return
            request.status = error.http_status
            await send_error(send, error)
        finally:
            target.counters.by_status_class[request.status // 100] += 1

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            target, path, prefix = self._find(scope)
        except GlowplugError as error:
            await receive()
            await deny_websocket(scope, send, error)
            return
        conversation = ProxiedSocket(
            target, scope, receive, send, path=path, prefix=prefix, timings=self._timings, clock=self._clock
        )
        status_class = 1
        try:
            await conversation.run()
        except ClientGone:
            return
        except GlowplugError as error:
            status_class = error.http_status // 100
            if conversation.is_accepted:
                await send({"type": "websocket.close", "code": 1011, "reason": error.message[:120]})
            else:
                await deny_websocket(scope, send, error)
        finally:
            target.counters.by_status_class[status_class] += 1

    def _find(self, scope: Scope) -> tuple[Destination, str, str]:
        """The target, the path with its query for the replica, and the prefix that was taken off."""
        parts = scope["raw_path"].decode("ascii").split("/", 3)
        if len(parts) < 3 or not parts[1] or not parts[2]:
            raise NotFound(
                "There is nothing at this path.",
                remedy="Ask for /APP/SERVER/..., or /api/v1/status for what is deployed.",
            )
        if _AGENT_ONLY in scope["path"]:
            # Decoded, so that no spelling of it passes: these control the replica itself.
            raise NotFound(
                "Paths below /.glowplug/ are not served.", remedy="Ask for one of the server's own."
            )
        target = self._destinations.target(parts[1], parts[2])
        path = f"/{parts[3]}" if len(parts) == 4 else "/"
        if scope["query_string"]:
            path = f"{path}?{scope['query_string'].decode('latin-1')}"
        return target, path, f"/{parts[1]}/{parts[2]}"


def _abort(scope: Scope) -> None:
    """Break the connection at once. A server without the extension closes it when we return unfinished."""
    abort = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if abort is not None:
        abort()
