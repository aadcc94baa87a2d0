"""The agent's HTTP API (``docs/architecture.md``), a thin skin over :class:`~glowplug.node.agent.Agent`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from glowplug.image.job import Progress
from glowplug.image.node_images import NodeImages
from glowplug.node import logs
from glowplug.node.admission import is_replica_id
from glowplug.node.agent import DEFAULT_GRACE_S, Agent
from glowplug.node.api_images import NDJSON, add_images, stream_events
from glowplug.node.holdings import Holdings
from glowplug.node.leader_fence import LeaderFence
from glowplug.node.record import ReplicaFolder
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.node.snapshot_resealing import SnapshotResealing
from glowplug.node.terminal import serve_exec
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, SnapshotInvalid
from glowplug.types.image import TaskEvent
from glowplug.types.replica import (
    HeatView,
    NodeHoldings,
    NodeView,
    ReplicaView,
    SnapshotStatus,
    SnapshotView,
    StartReplica,
)

_MAX_SHOWN_CHARACTERS = 200


def make_app(agent: Agent, images: NodeImages, moves: SnapshotMoves) -> FastAPI:
    """The ASGI application. ``agent`` is opened and closed by whoever runs it."""
    fence = LeaderFence(agent.state.leader_term, agent.metrics.registry)
    app = FastAPI(
        title="Glowplug node agent", docs_url=None, redoc_url=None, dependencies=[Depends(fence.check_call)]
    )
    _add_errors(app)
    _add_replicas(app, agent, images)
    add_images(app, images)
    _add_snapshots(app, agent, moves)
    _add_snapshot_moves(app, moves, agent.state.superseded)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(GlowplugError)
    async def typed(_request: Request, error: GlowplugError) -> JSONResponse:
        return JSONResponse(error.to_dict(), status_code=error.http_status)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:_MAX_SHOWN_CHARACTERS]
        what = first["msg"][:_MAX_SHOWN_CHARACTERS]
        problem = InvalidInput(f"{where}: {what}", remedy="Correct the request and send it again.")
        return JSONResponse(problem.to_dict(), status_code=problem.http_status)

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> JSONResponse:
        kind = NotFound if error.status_code == NotFound.http_status else InvalidInput
        body = kind(f"{error.detail}.", remedy="docs/architecture.md lists the calls.").to_dict()
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _add_replicas(app: FastAPI, agent: Agent, images: NodeImages) -> None:
    held = Holdings(agent.snapshots, images, agent.machine, agent.clock)

    @app.get("/v1/node")
    async def node() -> NodeView:
        return agent.view()

    @app.get("/v1/holdings")
    async def holdings() -> NodeHoldings:
        return await asyncio.to_thread(held.read)

    @app.get("/metrics")
    async def metrics() -> Response:
        body, content_type = agent.metrics.render()
        of_images = await asyncio.to_thread(images.metrics)
        of_gateway = await asyncio.to_thread(_text_of, agent.state.gateway_metrics)
        of_engine = await asyncio.to_thread(_text_of, agent.state.engine_metrics)
        return Response(body + of_images.encode() + of_gateway + of_engine, media_type=content_type)

    @app.get("/v1/watch")
    async def watch() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async for event in agent.table.watch():
                yield event.model_dump_json() + "\n"

        return StreamingResponse(lines(), media_type=NDJSON)

    @app.get("/v1/replicas")
    async def replicas() -> list[ReplicaView]:
        return await asyncio.to_thread(agent.memory.added, agent.table.list())

    @app.get("/v1/replicas/{replica_id}")
    async def replica(replica_id: str) -> ReplicaView:
        (view,) = await asyncio.to_thread(agent.memory.added, [agent.table.get(replica_id)])
        return view

    @app.post("/v1/replicas", status_code=201)
    async def start(request: StartReplica) -> ReplicaView:
        return agent.start(request)

    @app.post("/v1/next-start")
    async def next_start(request: StartReplica) -> HeatView:
        return await asyncio.to_thread(agent.next_start, request)

    @app.post("/v1/replicas/{replica_id}/stop", status_code=202)
    async def stop(
        replica_id: str, grace_s: Annotated[float, Query(ge=0, le=3600)] = DEFAULT_GRACE_S
    ) -> ReplicaView:
        return agent.stop(replica_id, grace_s)

    @app.post("/v1/replicas/{replica_id}/park")
    async def park(replica_id: str, push_out: bool = False) -> ReplicaView:
        return await agent.parking.park(replica_id, push_out=push_out)

    @app.post("/v1/replicas/{replica_id}/unpark")
    async def unpark(replica_id: str) -> ReplicaView:
        return await agent.parking.unpark(replica_id)

    @app.get("/v1/replicas/{replica_id}/logs")
    async def read_logs(
        replica_id: str, tail: Annotated[int, Query(ge=0, le=1_000_000)] = 100, follow: bool = False
    ) -> StreamingResponse:
        log = ReplicaFolder(agent.state, _safe_id(replica_id)).log
        if not log.exists():
            agent.table.get(replica_id)
        is_over = _is_over(agent, replica_id)
        stream = logs.follow(log, tail, is_over if follow else lambda: True)
        return StreamingResponse(stream, media_type="text/plain; charset=utf-8")

    @app.websocket("/v1/replicas/{replica_id}/exec")
    async def run(
        socket: WebSocket,
        replica_id: str,
        command: Annotated[list[str], Query()],
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> None:
        await serve_exec(socket, lambda: agent.exec_command(replica_id, command, tty=tty), tty, rows, cols)


def _add_snapshots(app: FastAPI, agent: Agent, moves: SnapshotMoves) -> None:
    @app.get("/v1/snapshots")
    async def listing(region: bool = False) -> list[SnapshotView]:
        if region:
            return await asyncio.to_thread(moves.in_region)
        captures = agent.captures.views()  # first: one that ends meanwhile must not be missing from both
        stored = await asyncio.to_thread(agent.snapshots.list)
        views = {view.id: _with_verdict(agent, view) for view in stored}
        for view in captures:
            # What is being captured again is told as such; a failed capture does not hide what is stored.
            if view.status is SnapshotStatus.CAPTURING or view.id not in views:
                views[view.id] = view
        return sorted(views.values(), key=lambda view: (-view.created_at, view.id))

    @app.get("/v1/snapshots/{snapshot_id}")
    async def one(snapshot_id: str) -> SnapshotView:
        for view in await listing():
            if view.id == snapshot_id:
                return view
        return await asyncio.to_thread(agent.snapshots.view, snapshot_id)

    @app.post("/v1/snapshots", status_code=202)
    async def create(request: StartReplica) -> SnapshotView:
        return agent.capture(request)

    @app.post("/v1/snapshots/{snapshot_id}/verify")
    async def verify(snapshot_id: str) -> SnapshotView:
        snapshot = await asyncio.to_thread(agent.snapshots.get, snapshot_id)
        with snapshot.pin():
            try:
                await asyncio.to_thread(snapshot.verify)
            except SnapshotInvalid as error:
                await asyncio.to_thread(agent.snapshots.record_damage, snapshot_id, error.message)
        return await asyncio.to_thread(agent.snapshots.view, snapshot_id)

    @app.delete("/v1/snapshots/{snapshot_id}", status_code=204)
    async def remove(snapshot_id: str, force: bool = False, region: bool = False) -> None:
        if region:
            await asyncio.to_thread(moves.remove_from_region, snapshot_id)
            return
        await asyncio.to_thread(agent.snapshots.remove, snapshot_id, force)


def _add_snapshot_moves(app: FastAPI, moves: SnapshotMoves, superseded: Path) -> None:
    @app.post("/v1/snapshots/{snapshot_id}/push")
    async def push(snapshot_id: str) -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> TaskEvent:
            return TaskEvent(result=moves.push(snapshot_id, progress, cancelled), fraction=1.0)

        return StreamingResponse(stream_events(TaskEvent, work), media_type=NDJSON)

    @app.post("/v1/snapshots/gc")
    async def collect(grace_s: float) -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> TaskEvent:
            result = moves.collect_in_region(progress, cancelled, grace_s=grace_s)
            return TaskEvent(result=result, fraction=1.0)

        return StreamingResponse(stream_events(TaskEvent, work), media_type=NDJSON)

    @app.post("/v1/snapshots/{snapshot_id}/pull")
    async def pull(snapshot_id: str, content: bool = False) -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> TaskEvent:
            result = moves.pull(snapshot_id, progress, cancelled, content=content)
            return TaskEvent(result=result, fraction=1.0)

        return StreamingResponse(stream_events(TaskEvent, work), media_type=NDJSON)

    @app.post("/v1/snapshots/reseal")
    async def reseal() -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> TaskEvent:
            result = SnapshotResealing(moves, superseded).run(progress, cancelled)
            return TaskEvent(result=result, fraction=1.0)

        return StreamingResponse(stream_events(TaskEvent, work), media_type=NDJSON)


def _with_verdict(agent: Agent, view: SnapshotView) -> SnapshotView:
    """A good snapshot, unless this node found that it does not pay."""
    reason = agent.start_times.opted_out(view.id)
    if reason is None or view.status is not SnapshotStatus.GOOD:
        return view
    return view.model_copy(update={"status": SnapshotStatus.OPTED_OUT, "reason": reason})


def _is_over(agent: Agent, replica_id: str) -> Callable[[], bool]:
    def is_over() -> bool:
        try:
            return agent.table.get(replica_id).state.is_final
        except NotFound:
            return True

    return is_over


def _safe_id(replica_id: str) -> str:
    """Ids become file names: refuse what is not one of ours."""
    if not is_replica_id(replica_id):
        raise NotFound(f"{replica_id!r} is not a replica id.", remedy="`glowplug ps` lists them.")
    return replica_id


def _text_of(path: Path) -> bytes:
    """What the node's gateway, or the engine beside the control plane, counted; if there is one."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
