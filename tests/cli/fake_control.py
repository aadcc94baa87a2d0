"""A control API over real HTTP with canned answers, which remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse

from glowplug.types.errors import GlowplugError, NotFound


@dataclass
class FakeControl:
    """Set the canned answers, read ``asked`` (method and path with query) and ``bodies``."""

    replicas: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    indexes: list[dict[str, Any]] = field(default_factory=list)
    task_events: list[dict[str, Any]] = field(default_factory=list)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    cold_starts: list[dict[str, Any]] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    status: dict[str, Any] = field(
        default_factory=lambda: {"version": "1", "uptime_s": 1.0, "nodes": [], "apps": []}
    )
    deploy_events: list[dict[str, Any]] = field(default_factory=list)
    deploy_stalls: bool = False
    registers: dict[str, Any] | None = None
    build_events: list[dict[str, Any]] = field(default_factory=list)
    captures: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    placement: dict[str, Any] = field(default_factory=dict)
    join_token: dict[str, Any] = field(default_factory=dict)
    log: bytes = b""
    log_never_ends: bool = False
    error: GlowplugError | None = None
    raw_answer: Response | None = None
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    deploy_was_cut: threading.Event = field(default_factory=threading.Event)
    is_streaming: threading.Event = field(default_factory=threading.Event)
    exec_frames: list[Any] = field(default_factory=list)
    exec_query: str = ""
    url: str = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def remember(request: Request, call_next: Any) -> Response:
            query = f"?{request.url.query}" if request.url.query else ""
            self.asked.append(f"{request.method} {request.scope['raw_path'].decode()}{query}")
            self.tokens.append(request.headers.get("authorization"))
            if self.raw_answer is not None:
                return self.raw_answer
            if self.error is not None:
                return JSONResponse(self.error.to_dict(), self.error.http_status)
            answer: Response = await call_next(request)
            return answer

        self._add_deployments(app)
        self._add_replicas(app)
        self._add_stores(app)
        self._add_nodes(app)
        return app

    def _add_deployments(self, app: FastAPI) -> None:
        @app.get("/api/v1/status")
        async def status() -> Any:
            return self.status

        @app.get("/api/v1/deployments")
        async def deployments(app: str | None = None) -> Any:
            return [view for view in self.deployments if app in (None, view["app"])]

        @app.post("/api/v1/deployments")
        async def deploy(request: Request) -> Response:
            self.bodies.append(await request.json())
            return StreamingResponse(self._deploy(), media_type="application/x-ndjson")

        @app.post("/api/v1/apps/{app}/rollback")
        async def rollback(app: str, version: int | None = None) -> Any:
            chosen = [view for view in self.deployments if view["version"] == (version or 1)]
            return {**chosen[0], "active": True}

        @app.post("/api/v1/apps/{app}/stop")
        async def stop(app: str, server: str | None = None, remove: bool = False) -> Any:
            names = [view["id"] for view in self.replicas if view["app"] == app]
            return {"app": app, "replicas": names, "is_removed": remove}

        @app.get("/api/v1/coldstarts")
        async def coldstarts() -> Any:
            return self.cold_starts

        @app.get("/api/v1/usage")
        async def usage() -> Any:
            return self.usage

    async def _deploy(self) -> AsyncIterator[str]:
        try:
            for event in self.deploy_events:
                yield json.dumps(event) + "\n"
            if self.registers is not None:
                self.deployments.insert(0, self.registers)
            self.is_streaming.set()
            if self.deploy_stalls:
                await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.deploy_was_cut.set()
            raise

    def _add_replicas(self, app: FastAPI) -> None:
        @app.get("/api/v1/replicas")
        async def replicas() -> Any:
            return self.replicas

        @app.post("/api/v1/replicas/{replica_id}/stop")
        async def stop(replica_id: str) -> Any:
            return next(view for view in self.replicas if view["id"] == replica_id)

        @app.get("/api/v1/replicas/{replica_id}/logs")
        async def logs(replica_id: str) -> Response:
            async def chunks() -> AsyncIterator[bytes]:
                for byte in self.log:
                    yield bytes([byte])
                self.is_streaming.set()
                if self.log_never_ends:
                    await asyncio.sleep(3600)

            return StreamingResponse(chunks(), media_type="text/plain")

        @app.websocket("/api/v1/replicas/{replica_id}/exec")
        async def run(socket: WebSocket, replica_id: str) -> None:
            self.exec_query = socket.url.query
            await socket.accept()
            await self._exec(socket, replica_id)

    async def _exec(self, socket: WebSocket, replica_id: str) -> None:
        """``cat`` with a memory: echoes stdin on stdout, sizes on stderr, exits 7 at the end of input."""
        if replica_id == "missing":
            error = NotFound("No replica missing.", remedy="glowplug ps")
            await socket.send_text(json.dumps({"type": "error", "error": error.to_dict()}))
            return
        await socket.send_bytes(b"\x01ready\n")
        if replica_id == "deaf":  # it ends without having read its input
            await socket.send_text(json.dumps({"type": "exit", "code": 7}))
            return
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                self.exec_frames.append("disconnect")
                return
            if message.get("bytes") is not None:
                self.exec_frames.append(message["bytes"])
                await socket.send_bytes(b"\x01" + message["bytes"])
                ends = b"\x04" in message["bytes"]
            else:
                self.exec_frames.append(json.loads(message["text"]))
                await socket.send_bytes(b"\x02" + message["text"].encode() + b"\n")
                ends = self.exec_frames[-1] == {"type": "eof"}
            if ends:
                await socket.send_text(json.dumps({"type": "exit", "code": 7}))
                await socket.close()
                return

    def _add_nodes(self, app: FastAPI) -> None:
        @app.get("/api/v1/nodes")
        async def nodes() -> Any:
            return self.nodes

        @app.post("/api/v1/nodes/{name}/{verb}")
        async def change(name: str, verb: str) -> Any:
            return next(node for node in self.nodes if node["name"] == name)

        @app.delete("/api/v1/nodes/{name}", status_code=204)
        async def remove_node(name: str) -> None: ...

        @app.post("/api/v1/join-tokens", status_code=201)
        async def new_token() -> Any:
            return self.join_token

        @app.get("/api/v1/join-tokens")
        async def tokens() -> Any:
            return [{**self.join_token, "token": None}]

        @app.delete("/api/v1/join-tokens/{token_id}", status_code=204)
        async def revoke(token_id: str) -> None: ...

        @app.get("/api/v1/replicas/{replica_id}/placement")
        async def placement(replica_id: str) -> Any:
            return self.placement

    def _add_stores(self, app: FastAPI) -> None:
        @app.get("/api/v1/snapshots")
        async def snapshots() -> Any:
            if self.captures:
                self.snapshots = [self.captures.pop(0)]
            return self.snapshots

        @app.post("/api/v1/snapshots", status_code=202)
        async def create(request: Request) -> Any:
            self.bodies.append(await request.json())
            return self.captures.pop(0)

        @app.get("/api/v1/snapshots/{snapshot_id}")
        async def snapshot(snapshot_id: str) -> Any:
            return next(view for view in self.snapshots if view["id"] == snapshot_id)

        @app.post("/api/v1/snapshots/{snapshot_id}/verify")
        async def verify(snapshot_id: str) -> Any:
            return next(view for view in self.snapshots if view["id"] == snapshot_id)

        @app.delete("/api/v1/snapshots/{snapshot_id}", status_code=204)
        async def remove_snapshot(snapshot_id: str) -> None: ...

        @app.get("/api/v1/images")
        async def images() -> Any:
            return self.images

        @app.get("/api/v1/indexes")
        async def indexes() -> Any:
            return self.indexes

        @app.get("/api/v1/indexes/{image:path}")
        async def index(image: str) -> Any:
            return next(view for view in self.indexes if image in view["names"])

        @app.post("/api/v1/image-tasks")
        async def image_task(request: Request) -> Any:
            self.bodies.append(await request.json())
            lines = [json.dumps(event) + "\n" for event in self.task_events]
            return Response("".join(lines), media_type="application/x-ndjson")

        @app.post("/api/v1/images")
        async def build(request: Request) -> Response:
            self.bodies.append(await request.json())
            lines = [json.dumps(event) + "\n" for event in self.build_events]
            return Response("".join(lines), media_type="application/x-ndjson")

        @app.get("/api/v1/images/{image_id}")
        async def image(image_id: str) -> Any:
            return next(view for view in self.images if view["id"] == image_id)

        @app.delete("/api/v1/images/{image_id}", status_code=204)
        async def remove_image(image_id: str) -> None: ...


@contextmanager
def serving(control: FakeControl) -> Iterator[FakeControl]:
    """Serve it on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        control.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(control.app(), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield control
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
