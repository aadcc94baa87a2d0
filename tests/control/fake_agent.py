"""A node agent for tests: the real agent API over a real Unix socket, with replicas that are local servers.

What a test decides: whether starts wait (``gate``), are answered late (``answer_gate``), fail (``failures``)
or are refused (``refusals``), whether waking (``unpark_errors``) and parking (``park_errors``) go wrong, and
what is told about memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry
from tests.control.fake_replica import FakeReplica, QuietServer

from glowplug.node.leader_fence import LeaderFence
from glowplug.types.errors import GlowplugError, NotFound, ReplicaFailed
from glowplug.types.replica import (
    BuildEvent,
    BuildRequest,
    Endpoint,
    ErrorInfo,
    Heat,
    HeatView,
    ImageView,
    MemoryView,
    NodeHoldings,
    NodeView,
    Purpose,
    ReplicaEvent,
    ReplicaState,
    ReplicaView,
    SnapshotStatus,
    SnapshotView,
    Stage,
    StartPath,
    StartReplica,
)
from glowplug.types.spec import DirectoryImage

HEARTBEAT_S = 0.2


class FakeAgent:
    """Start with :meth:`open`; :meth:`close` stops the API, and replicas too unless told otherwise."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer_gate = asyncio.Event()
        self.answer_gate.set()
        self.build_gate = asyncio.Event()
        self.build_gate.set()
        self.failures: list[ErrorInfo | None] = []
        self.refusals: list[GlowplugError] = []
        self.park_errors: list[GlowplugError] = []
        self.unpark_errors: list[GlowplugError] = []
        self.parks: list[tuple[str, bool]] = []
        self.unparks: list[str] = []
        self.build_error: ErrorInfo | None = None
        self.next_start = HeatView(heat=Heat.IMAGE)
        self.servers: dict[str, FakeReplica] = {}
        self.views: dict[str, ReplicaView] = {}
        self.orders: list[StartReplica] = []
        self.stops: list[tuple[str, float]] = []
        self.builds = 0
        self.images: set[str] = set()
        self.looks = 0
        self.holdings = NodeHoldings()
        self.node_fields: dict[str, Any] = {}
        self._ahead_s = 0.0
        self._revision = time.time_ns()
        self._watchers: set[asyncio.Queue[ReplicaEvent]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: QuietServer | None = None

    async def open(self) -> None:
        self.socket_path.unlink(missing_ok=True)
        config = uvicorn.Config(
            self._app(),
            uds=str(self.socket_path),
            log_config=None,
            lifespan="off",
            ws="websockets-sansio",
            access_log=False,
            timeout_keep_alive=75,
        )
        self._server = QuietServer(config)
        await self._server.open()

    async def close(self, *, keep_replicas: bool = False) -> None:
        """Go away. ``keep_replicas``: as a crash, they run on, and a later :meth:`open` adopts them."""
        if self._server is not None:
            await self._server.end()
            self._server = None
        if not keep_replicas:
            for task in self._tasks:
                task.cancel()
            for replica in self.servers.values():
                await replica.kill()

    def of_state(self, *states: ReplicaState) -> list[ReplicaView]:
        return [view for view in self.views.values() if view.state in states]

    @property
    def ready(self) -> list[ReplicaView]:
        return self.of_state(ReplicaState.READY)

    def change(self, replica_id: str, **fields: Any) -> ReplicaView:
        """Move a replica, and tell everybody who watches."""
        return self._put(self.views[replica_id].model_copy(update=fields))

    async def kill_replica(self, replica_id: str, *, tell: bool = True) -> None:
        """As SIGKILL of its sandbox; with ``tell`` the agent notices."""
        await self.servers[replica_id].kill()
        if tell:
            error = ErrorInfo(code="replica_failed", message=f"{replica_id} was killed.")
            self.change(replica_id, state=ReplicaState.FAILED, error=error, ended_at=self._wall())

    def claim(self, view: ReplicaView) -> None:
        """As an agent that says it runs what runs elsewhere."""
        self._put(view)

    def set_clock(self, ahead_s: float) -> None:
        """What it stamps is so far off; as a restarted agent it numbers what it tells from there."""
        self._ahead_s = ahead_s
        self._revision = int(self._wall() * 1e9)
        for view in self.views.values():
            self._put(view)

    def _wall(self) -> float:
        return time.time() + self._ahead_s

    def tell_memory(self, *, is_short: bool, swap_free_bytes: int = 0) -> None:
        """As an agent whose machine's memory is short, or no longer is."""
        memory = MemoryView(
            total_bytes=1 << 34, available_bytes=1 << 28, swap_free_bytes=swap_free_bytes, is_short=is_short
        )
        self._tell(ReplicaEvent(type="memory", memory=memory))

    async def add_capture_replica(self, app: str, server: str) -> ReplicaView:
        """A ready replica that must never see a caller."""
        replica_id = f"capture-{app}-{server}"
        replica = self.servers[replica_id] = FakeReplica(replica_id)
        await replica.open()
        view = ReplicaView(
            id=replica_id, app=app, server=server, deployment_id=f"{app}-v1", purpose=Purpose.CAPTURE,
            state=ReplicaState.READY, created_at=self._wall(),
            endpoint=Endpoint(host="127.0.0.1", port=replica.port),
        )  # fmt: skip
        return self._put(view)

    def _put(self, view: ReplicaView) -> ReplicaView:
        self._revision += 1
        view = view.model_copy(update={"revision": self._revision})
        self.views[view.id] = view
        self._tell(ReplicaEvent(type="change", replica=view))
        return view

    def _tell(self, event: ReplicaEvent) -> None:
        for watcher in self._watchers:
            watcher.put_nowait(event)

    async def _run(self, order: StartReplica) -> None:
        replica_id = order.replica_id
        began_at = time.monotonic()
        self.change(replica_id, stage=Stage.HOST_INIT)
        await self.gate.wait()
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            self.change(replica_id, state=ReplicaState.FAILED, error=failure, ended_at=self._wall())
            return
        replica = self.servers[replica_id] = FakeReplica(replica_id)
        await replica.open()
        if self.views[replica_id].state is not ReplicaState.STARTING:
            return
        self.change(
            replica_id,
            state=ReplicaState.READY,
            stage=None,
            path=StartPath.CPU_SNAPSHOT,
            ready_at=self._wall(),
            endpoint=Endpoint(host="127.0.0.1", port=replica.port),
            stages_s={Stage.HOST_INIT: time.monotonic() - began_at},
            restored_bytes=4096,
            image_bytes_by_tier={"ssd": 1000, "zone": 500},
            image_chunks_by_tier={"ssd": 2, "zone": 1},
            snapshot_bytes_by_tier={"ssd": 4096},
            snapshot_chunks_by_tier={"ssd": 1},
            snapshot_id="snap-1",
        )

    async def _end(self, replica_id: str) -> None:
        replica = self.servers.get(replica_id)
        if replica is not None:
            await replica.kill()
        self.change(replica_id, state=ReplicaState.STOPPED, ended_at=self._wall())

    def _spawn(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _app(self) -> FastAPI:
        fence = LeaderFence(self.socket_path.with_name("leader-term.json"), CollectorRegistry())
        app = FastAPI(dependencies=[Depends(fence.check_call)])

        @app.exception_handler(GlowplugError)
        async def failed(_request: Request, error: GlowplugError) -> JSONResponse:
            return JSONResponse(error.to_dict(), status_code=error.http_status)

        @app.get("/v1/node")
        async def node() -> NodeView:
            return NodeView(
                name="testnode", agent_pid=1, version="0", cpus=2, cpus_used=0, memory_bytes=1,
                memory_used_bytes=0, runtime="fake", replicas=len(self.views),
            ).model_copy(update=self.node_fields)  # fmt: skip

        @app.get("/v1/holdings")
        async def holdings() -> NodeHoldings:
            self.looks += 1
            return self.holdings

        @app.get("/v1/watch")
        async def watch() -> StreamingResponse:
            return StreamingResponse(self._events(), media_type="application/x-ndjson")

        @app.get("/v1/replicas")
        async def replicas() -> list[ReplicaView]:
            return list(self.views.values())

        @app.get("/v1/replicas/{replica_id}")
        async def replica(replica_id: str) -> ReplicaView:
            return self._view(replica_id)

        @app.post("/v1/replicas", status_code=201)
        async def start(order: StartReplica) -> ReplicaView:
            if self.refusals:
                raise self.refusals.pop(0)
            self.orders.append(order)
            view = ReplicaView(
                id=order.replica_id, app=order.app, server=order.server.name,
                deployment_id=order.deployment_id, state=ReplicaState.STARTING, stage=Stage.ALLOCATE,
                created_at=self._wall(),
            )  # fmt: skip
            view = self._put(view)
            self._spawn(self._run(order))
            await self.answer_gate.wait()
            return view

        @app.post("/v1/next-start")
        async def next_start(order: StartReplica) -> HeatView:
            return self.next_start.model_copy(update={"snapshot_id": f"of-{order.server.name}"})

        @app.post("/v1/replicas/{replica_id}/stop", status_code=202)
        async def stop(replica_id: str, grace_s: float = 10.0) -> ReplicaView:
            self._view(replica_id)
            self.stops.append((replica_id, grace_s))
            view = self.change(replica_id, state=ReplicaState.DRAINING)
            self._spawn(self._end(replica_id))
            return view

        @app.post("/v1/replicas/{replica_id}/park")
        async def park(replica_id: str, push_out: bool = False) -> ReplicaView:
            self._view(replica_id)
            if self.park_errors:
                raise self.park_errors.pop(0)
            self.parks.append((replica_id, push_out))
            parked_at = self.views[replica_id].parked_at or self._wall()
            return self.change(
                replica_id, state=ReplicaState.PARKED, parked_at=parked_at, is_pushed_out=push_out
            )

        @app.post("/v1/replicas/{replica_id}/unpark")
        async def unpark(replica_id: str) -> ReplicaView:
            self._view(replica_id)
            self.unparks.append(replica_id)
            if self.unpark_errors:
                error = self.unpark_errors.pop(0)
                if isinstance(error, ReplicaFailed):  # a replica that does not wake is killed
                    await self.kill_replica(replica_id)
                raise error
            return self.change(
                replica_id, state=ReplicaState.READY, path=StartPath.PARKED, parked_at=None,
                is_pushed_out=False, stages_s={Stage.HOST_INIT: 0.001, Stage.FIRST_ANSWER: 0.002},
                restored_bytes=0, snapshot_bytes_by_tier={}, snapshot_chunks_by_tier={},
                image_bytes_by_tier={}, image_chunks_by_tier={}, ready_at=self._wall(),
            )  # fmt: skip

        @app.get("/v1/replicas/{replica_id}/logs")
        async def logs(replica_id: str, tail: int = 100, follow: bool = False) -> StreamingResponse:
            self._view(replica_id)

            async def lines() -> AsyncIterator[bytes]:
                yield f"log of {replica_id} tail={tail} follow={follow}\n".encode()

            return StreamingResponse(lines(), media_type="text/plain")

        @app.websocket("/v1/replicas/{replica_id}/exec")
        async def run(socket: WebSocket, replica_id: str) -> None:
            await socket.accept()
            await socket.send_bytes(b"\x01" + " ".join(socket.query_params.getlist("command")).encode())
            typed = await socket.receive()
            await socket.send_bytes(b"\x02" + typed["bytes"])
            await socket.send_text('{"type":"exit","code":7}')
            await socket.close()

        @app.post("/v1/images")
        async def build(request: BuildRequest) -> StreamingResponse:
            return StreamingResponse(self._build(request), media_type="application/x-ndjson")

        @app.get("/v1/images")
        async def images() -> list[ImageView]:
            return []

        @app.get("/v1/images/{image_id}")
        async def image(image_id: str) -> ImageView:
            if image_id not in self.images:
                raise NotFound(f"No image {image_id!r}.", remedy="See the list.")
            spec = DirectoryImage(path="/")
            return ImageView(id=image_id, kind=spec.kind, spec=spec)

        @app.delete("/v1/images/{image_id}", status_code=204)
        async def delete_image(image_id: str) -> None:
            if image_id != "known":
                raise NotFound(f"No image {image_id!r}.", remedy="See the list.")

        @app.post("/v1/snapshots", status_code=202)
        async def capture(order: StartReplica) -> SnapshotView:
            self.orders.append(order)
            return SnapshotView(
                id="snap-2", app=order.app, server=order.server.name, status=SnapshotStatus.CAPTURING, key="k"
            )

        return app

    def _view(self, replica_id: str) -> ReplicaView:
        if replica_id not in self.views:
            raise NotFound(f"No replica {replica_id!r}.", remedy="See glowplug ps.")
        return self.views[replica_id]

    async def _build(self, request: BuildRequest) -> AsyncIterator[str]:
        self.builds += 1
        yield BuildEvent(text="looking", fraction=0.5).model_dump_json() + "\n"
        await self.build_gate.wait()
        if self.build_error is not None:
            yield BuildEvent(error=self.build_error).model_dump_json() + "\n"
            return
        image = ImageView(id=f"img-{request.image.digest()[:8]}", kind=request.image.kind, spec=request.image)
        self.images.add(image.id)
        yield BuildEvent(image=image, fraction=1.0).model_dump_json() + "\n"

    async def _events(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[ReplicaEvent] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for view in list(self.views.values()):
                yield ReplicaEvent(type="sync", replica=view).model_dump_json() + "\n"
            yield ReplicaEvent(type="synced").model_dump_json() + "\n"
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        event = await queue.get()
                except TimeoutError:
                    event = ReplicaEvent(type="heartbeat")
                yield event.model_dump_json() + "\n"
        finally:
            self._watchers.discard(queue)
