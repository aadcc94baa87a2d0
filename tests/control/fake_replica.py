"""A model server for tests: a real HTTP server on loopback with one path per behaviour that matters."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn


class QuietServer(uvicorn.Server):
    """uvicorn inside our event loop: no signal handlers, and an end without its pauses."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def open(self, sockets: list[socket.socket] | None = None) -> None:
        self._serving = asyncio.create_task(self.serve(sockets))
        while not self.started:  # noqa: ASYNC110 - uvicorn tells no other way
            await asyncio.sleep(0.002)

    async def end(self) -> None:
        """Close the port and reset every connection."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        tasks = [self._serving, *self.server_state.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FakeReplica:
    """Serves from :meth:`open` until :meth:`kill`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.bodies: list[str] = []
        self.waiting = 0
        self.disconnects = 0
        self.release = asyncio.Event()
        self.steps: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed_with: tuple[int, str] | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port: int = self._listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            lifespan="off",
            ws="websockets-sansio",
            access_log=False,
            ws_max_size=64 << 20,
        )
        self._server = QuietServer(config)

    async def open(self) -> None:
        await self._server.open([self._listener])

    async def kill(self) -> None:
        """As SIGKILL: nothing is answered any more, connections are reset."""
        await self._server.end()

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        path = scope["path"]
        name = path.strip("/").split("/")[0] or "root"
        handler = getattr(self, f"_do_{name}", None)
        if handler is None:
            await self._say(send, 404, b"no such path", [])
            return
        await handler(scope, receive, send)

    async def _say(self, send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _do_root(self, scope: Any, receive: Any, send: Any) -> None:
        await self._say(send, 200, self.name.encode(), [])

    async def _do_request(self, scope: Any, receive: Any, send: Any) -> None:
        """Tells the request as it arrived."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body.decode("latin-1"))
        seen = {
            "replica": self.name,
            "method": scope["method"],
            "raw_path": scope["raw_path"].decode(),
            "query": scope["query_string"].decode(),
            "headers": [[k.decode(), v.decode("latin-1")] for k, v in scope["headers"]],
            "body": body.decode("latin-1"),
        }
        headers = [(b"x-custom", b"One"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await self._say(send, 200, json.dumps(seen).encode(), headers)

    async def _do_status(self, scope: Any, receive: Any, send: Any) -> None:
        status = int(scope["path"].rsplit("/", 1)[1])
        headers = [(b"x-status", b"yes")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if status in (204, 304) else b"body"})

    async def _do_gzip(self, scope: Any, receive: Any, send: Any) -> None:
        await self._say(send, 200, b"\x1f\x8bnot really gzip", [(b"content-encoding", b"gzip")])

    async def _do_stream(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends what the test puts in ``steps``, piece by piece; None ends it."""
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while (piece := await self.steps.get()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _do_breaks(self, scope: Any, receive: Any, send: Any) -> None:
        """Half an answer, then a broken connection."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    async def _do_halves(self, scope: Any, receive: Any, send: Any) -> None:
        """The head of an answer of known length and half its body; the rest once the test says so."""
        headers = [(b"content-length", b"8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        self.waiting += 1
        await self.release.wait()
        self.waiting -= 1
        await send({"type": "http.response.body", "body": b"half"})

    async def _do_slams(self, scope: Any, receive: Any, send: Any) -> None:
        """Reads everything and breaks the connection before a byte of the answer."""
        while (await receive()).get("more_body"):
            pass
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    async def _do_wait(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers once the test says so."""
        while (await receive()).get("more_body"):
            pass
        self.waiting += 1
        gone = asyncio.create_task(receive())
        release = asyncio.create_task(self.release.wait())
        await asyncio.wait({gone, release}, return_when=asyncio.FIRST_COMPLETED)
        self.waiting -= 1
        if gone.done():
            self.disconnects += 1
        gone.cancel()
        release.cancel()
        await self._say(send, 200, self.name.encode(), [])

    async def _do_upload(self, scope: Any, receive: Any, send: Any) -> None:
        """Reads everything, tells how much it was and its digest."""
        digest = hashlib.sha256()
        total = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            total += len(message.get("body", b""))
            digest.update(message.get("body", b""))
            if not message.get("more_body"):
                break
        answer = {"bytes": total, "sha256": digest.hexdigest()}
        await self._say(send, 200, json.dumps(answer).encode(), [])

    async def _do_refuse(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers before reading the body."""
        await self._say(send, 413, b"too large", [])

    async def _websocket(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/denied":
            await send({"type": "websocket.close", "code": 1000})
            return
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": offered[-1] if offered else None})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.closed_with = (message["code"], message.get("reason") or "")
                return
            if message.get("text") == "close please":
                await send({"type": "websocket.close", "code": 4001, "reason": "as you wish"})
                return
            if message.get("text") is not None:
                await send({"type": "websocket.send", "text": f"echo {message['text']}"})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"]})
