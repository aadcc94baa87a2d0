"""The router's own answers: errors as typed JSON, sent straight through ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from glowplug.types.errors import GlowplugError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def error_answer(error: GlowplugError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error. ``details['retry_after_s']`` becomes Retry-After."""
    body = json.dumps(error.to_dict(), default=str).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    retry_after_s = error.details.get("retry_after_s")
    if isinstance(retry_after_s, int | float):  # the error may be another machine's, which says what it likes
        headers.append((b"retry-after", str(retry_after_s).encode()))
    return error.http_status, headers, body


async def send_error(send: Send, error: GlowplugError) -> None:
    """Answer an HTTP request with the error."""
    status, headers, body = error_answer(error)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def deny_websocket(scope: Scope, send: Send, error: GlowplugError) -> None:
    """Refuse a WebSocket that was not accepted yet, with the error as the handshake's answer if possible."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1013, "reason": error.message[:120]})
        return
    status, headers, body = error_answer(error)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
