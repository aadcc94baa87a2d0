"""The part of the control API that the node agents answer: replicas, logs, exec, images, snapshots.

Lists are put together from all nodes that answer; a single thing is asked of each node until one knows it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Response, WebSocket
from pydantic import TypeAdapter
from starlette.websockets import WebSocketDisconnect
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from glowplug.control.answers import deny_websocket
from glowplug.control.messages import CaptureRequest, PlacementView
from glowplug.control.node_link import NodeLink
from glowplug.control.plane import ControlPlane
from glowplug.control.streams import NDJSON, Stream, ndjson
from glowplug.node.client import NodeClient
from glowplug.types.cluster import NodeState
from glowplug.types.errors import GlowplugError, NotFound, Unavailable
from glowplug.types.ids import new_replica_id
from glowplug.types.image import IndexView, TaskEvent, TaskRequest
from glowplug.types.replica import (
    BuildEvent,
    BuildRequest,
    ImageView,
    ReplicaView,
    SnapshotView,
)

log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_REPLICAS = TypeAdapter(list[ReplicaView])
_INTERNAL_ERROR = 1011
_LIST_WAIT_S = 5.0


class _Nodes:
    """All agents, asked together."""

    def __init__(self, plane: ControlPlane) -> None:
        self._links = plane.links
        self._fleet = plane.fleet

    async def gather(self, ask: Callable[[NodeLink], Awaitable[list[_Item]]]) -> list[_Item]:
        """The lists of all nodes as one, without those of nodes that do not answer; one must."""
        links = [link for link in self._links if not link.is_silent]
        answers = await asyncio.gather(*(self._bounded(ask, link) for link in links), return_exceptions=True)
        found = [item for answer in answers if isinstance(answer, list) for item in answer]
        problems = [answer for answer in answers if isinstance(answer, BaseException)]
        for problem in problems:
            if not isinstance(problem, Unavailable) or len(problems) == len(answers):
                raise problem
            log.warning("a list is incomplete: %s", problem)
        return found

    async def _bounded(
        self, ask: Callable[[NodeLink], Awaitable[list[_Item]]], link: NodeLink
    ) -> list[_Item]:
        """A list is not held up for long by one of several machines."""
        try:
            async with asyncio.timeout(None if len(self._links) == 1 else _LIST_WAIT_S):
                return await ask(link)
        except TimeoutError:
            raise Unavailable(
                f"Node {link.name} does not answer in time.", remedy="See glowplug cluster status."
            ) from None

    async def find(self, ask: Callable[[NodeClient], Awaitable[_Item]]) -> _Item:
        """The first node's answer that is not NotFound. Raises Unavailable if one did not answer instead."""
        missing: NotFound | None = None
        silent: Unavailable | None = None
        for link in self._links:
            try:
                return await ask(link.client)
            except NotFound as error:
                missing = error
            except Unavailable as error:
                silent = error
        raise silent or missing or Unavailable("There is no node.", remedy="Run glowplug up.")

    async def client_of(self, replica_id: str) -> NodeClient:
        """The agent that has this replica. Raises NotFound."""
        known = self._fleet.replicas.get(replica_id)
        if len(self._links) == 1:
            return self._links[0].client
        if known is not None:
            return next(link.client for link in self._links if link.name == known.node)

        async def ask(client: NodeClient) -> NodeClient:
            await client.replica(replica_id)
            return client

        return await self.find(ask)

    async def holder_of(self, snapshot_id: str) -> NodeClient:
        """The agent that has this snapshot. Raises NotFound."""

        async def ask(client: NodeClient) -> NodeClient:
            await client.snapshot(snapshot_id)
            return client

        return await self.find(ask)

    @property
    def clients(self) -> list[NodeClient]:
        """All agents."""
        return [link.client for link in self._links]

    @property
    def first(self) -> NodeClient:
        """Where new things are made: here, else on the first that is ready. Raises Unavailable."""
        for link in self._links:
            if link.is_own or link.state is NodeState.READY:
                return link.client
        raise Unavailable("No node is ready.", remedy="See glowplug cluster status.")


def node_routes(plane: ControlPlane) -> APIRouter:
    """All routes, without their prefix."""
    routes = APIRouter()
    nodes = _Nodes(plane)
    _add_replicas(routes, plane, nodes)
    _add_exec(routes, nodes)
    _add_images(routes, plane, nodes)
    _add_snapshots(routes, plane, nodes)
    return routes


def _add_replicas(routes: APIRouter, plane: ControlPlane, nodes: _Nodes) -> None:
    @routes.get(
        "/replicas", status_code=200, response_class=Response, responses={200: {"model": list[ReplicaView]}}
    )
    async def replicas() -> Response:
        """All replicas, capture replicas too."""

        async def of_one(link: NodeLink) -> list[str]:
            """As JSON, one node after the other: thousands at once would keep requests waiting."""
            views = await link.client.replicas()
            name = None if link.is_own and len(plane.links) == 1 else link.name
            named = [view.model_copy(update={"node": name}) for view in views]
            return [_REPLICAS.dump_json(named).decode()[1:-1]] if named else []

        return Response(f"[{','.join(await nodes.gather(of_one))}]", media_type="application/json")

    @routes.get("/replicas/{replica_id}")
    async def replica(replica_id: str) -> ReplicaView:
        """One replica."""
        return await nodes.find(lambda client: client.replica(replica_id))

    @routes.get("/replicas/{replica_id}/placement")
    async def placement(replica_id: str) -> PlacementView:
        """Why it is on its node: every node's score when it was placed."""
        return plane.placer.of(replica_id)

    @routes.post("/replicas/{replica_id}/stop", status_code=202)
    async def stop(replica_id: str, grace_s: Annotated[float, Query(ge=0, le=3600)] = 10.0) -> ReplicaView:
        """Stop one replica: it finishes what it is doing within `grace_s`, and gets nothing new."""
        known = plane.fleet.replicas.get(replica_id)
        if known is None:
            return await nodes.find(lambda client: client.stop_replica(replica_id, grace_s=grace_s))
        plane.fleet.drain(known, grace_s)
        return known.view

    @routes.get("/replicas/{replica_id}/logs", status_code=200, response_class=Stream)
    async def logs(
        replica_id: str, tail: Annotated[int | None, Query(ge=0)] = None, follow: bool = False
    ) -> Response:
        """Its output as text; with `follow`, until it ends."""
        client = await nodes.client_of(replica_id)
        return Stream(client.logs(replica_id, tail=tail, follow=follow), "text/plain; charset=utf-8")


def _add_images(routes: APIRouter, plane: ControlPlane, nodes: _Nodes) -> None:
    @routes.get("/images")
    async def images() -> list[ImageView]:
        """All images."""
        return await nodes.gather(lambda link: link.client.images())

    @routes.get("/images/{image_id}")
    async def image(image_id: str) -> ImageView:
        """One image."""
        return await nodes.find(lambda client: client.image(image_id))

    @routes.delete("/images/{image_id}", status_code=204)
    async def delete_image(image_id: str) -> None:
        """Remove an image that nothing uses."""
        for link in plane.links:
            link.ready_images.discard(image_id)
        await nodes.find(lambda client: client.delete_image(image_id))

    @routes.post(
        "/images",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": BuildEvent, "description": "NDJSON of build events"}},
    )
    async def build(request: BuildRequest) -> Response:
        """Make an image ready; the last line holds the image or the error."""
        return Stream(ndjson(_build(nodes.first, request)), NDJSON)

    @routes.get("/indexes")
    async def indexes() -> list[IndexView]:
        """All image indexes."""
        return await nodes.gather(lambda link: link.client.indexes())

    @routes.get("/indexes/{image:path}")
    async def index(image: str) -> IndexView:
        """One image index, by name or digest."""
        return await nodes.find(lambda client: client.index(image))

    @routes.post(
        "/image-tasks",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": TaskEvent, "description": "NDJSON of task events"}},
    )
    async def image_task(request: TaskRequest) -> Response:
        """Import, push, pull, mount ... an image; the last line holds the result or the error."""
        return Stream(ndjson(_relayed(nodes.first.image_task(request.task))), NDJSON)


async def _relayed(stream: AsyncGenerator[TaskEvent, None]) -> AsyncGenerator[TaskEvent, None]:
    async with aclosing(stream) as events:
        async for event in events:
            yield event


async def _resealed(clients: list[NodeClient]) -> AsyncGenerator[TaskEvent, None]:
    """One node after the other: what the first has done in the region the next ones need not do."""
    total: dict[str, Any] = {"resealed": [], "region": [], "left": []}
    for client in clients:
        async for event in _relayed(client.reseal_snapshots()):
            if event.result is None:
                yield event
                continue
            for name, found in event.result.items():
                total[name] += found
    yield TaskEvent(result=total, fraction=1.0)


async def _build(client: NodeClient, request: BuildRequest) -> AsyncGenerator[BuildEvent, None]:
    async with aclosing(client.build_image(request.image)) as events:
        async for event in events:
            yield event


def _add_snapshots(routes: APIRouter, plane: ControlPlane, nodes: _Nodes) -> None:
    @routes.get("/snapshots")
    async def snapshots(region: bool = False) -> list[SnapshotView]:
        """All snapshots of the nodes, or those of the region."""
        if region:
            return await nodes.first.snapshots(region=True)
        return await nodes.gather(lambda link: link.client.snapshots())

    @routes.get("/snapshots/{snapshot_id}")
    async def snapshot(snapshot_id: str) -> SnapshotView:
        """One snapshot."""
        return await nodes.find(lambda client: client.snapshot(snapshot_id))

    @routes.delete("/snapshots/{snapshot_id}", status_code=204)
    async def delete_snapshot(snapshot_id: str, region: bool = False) -> None:
        """Remove a snapshot from the nodes, or from the region."""
        if region:
            await nodes.first.delete_snapshot(snapshot_id, region=True)
            return
        await nodes.find(lambda client: client.delete_snapshot(snapshot_id))

    @routes.post("/snapshots/{snapshot_id}/verify")
    async def verify(snapshot_id: str) -> SnapshotView:
        """Hash everything again."""
        return await nodes.find(lambda client: client.verify_snapshot(snapshot_id))

    @routes.post(
        "/snapshots/{snapshot_id}/push",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": TaskEvent, "description": "NDJSON of task events"}},
    )
    async def push(snapshot_id: str) -> Response:
        """Bring it to the region; the last line holds the result or the error."""
        client = await nodes.holder_of(snapshot_id)
        return Stream(ndjson(_relayed(client.push_snapshot(snapshot_id))), NDJSON)

    @routes.post(
        "/snapshots/{snapshot_id}/pull",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": TaskEvent, "description": "NDJSON of task events"}},
    )
    async def pull(snapshot_id: str, content: bool = False) -> Response:
        """Fetch it from the region; the last line holds the result or the error."""
        return Stream(ndjson(_relayed(nodes.first.pull_snapshot(snapshot_id, content=content))), NDJSON)

    @routes.post(
        "/snapshots/gc",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": TaskEvent, "description": "NDJSON of task events"}},
    )
    async def collect(grace_s: Annotated[float, Query(ge=0, allow_inf_nan=False)]) -> Response:
        """Remove what no snapshot in the region needs any more; the last line has the result or error."""
        return Stream(ndjson(_relayed(nodes.first.collect_snapshots(grace_s))), NDJSON)

    @routes.post(
        "/snapshots/reseal",
        status_code=200,
        response_class=Stream,
        responses={200: {"model": TaskEvent, "description": "NDJSON of task events"}},
    )
    async def reseal() -> Response:
        """Seal all snapshots of the nodes and of the region with the first key; ends as a push does."""
        return Stream(ndjson(_resealed(nodes.clients)), NDJSON)

    @routes.post("/snapshots", status_code=202)
    async def capture(request: CaptureRequest) -> SnapshotView:
        """Capture the active version of a server now."""
        # The capture replica is not given secrets: the agent looks for them in what it captured.
        target = plane.fleet.target(request.app, request.server)
        return await nodes.first.create_snapshot(target.order(new_replica_id(request.app, request.server)))


def _add_exec(routes: APIRouter, nodes: _Nodes) -> None:
    @routes.websocket("/replicas/{replica_id}/exec")
    async def run(socket: WebSocket, replica_id: str) -> None:
        """Carry an exec socket to the agent and back, frame by frame."""
        try:
            client = await nodes.client_of(replica_id)
            async with client.exec(replica_id, socket.query_params.multi_items()) as agent:
                await socket.accept()
                await _bridge(socket, agent)
        except GlowplugError as error:
            await socket.receive()
            await deny_websocket(socket.scope, socket.send, error)


async def _bridge(socket: WebSocket, agent: ClientConnection) -> None:
    pumps = {
        asyncio.ensure_future(_to_agent(socket, agent)),
        asyncio.ensure_future(_to_caller(agent, socket)),
    }
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
    code = agent.close_code if agent.close_code not in (None, 1005, 1006) else 1000
    # The caller may have closed first: then there is nobody to tell.
    with suppress(RuntimeError, OSError, WebSocketDisconnect):
        await socket.close(code if agent.close_code != 1006 else _INTERNAL_ERROR)


async def _to_agent(socket: WebSocket, agent: ClientConnection) -> None:
    while True:
        message: dict[str, Any] = dict(await socket.receive())
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        await agent.send(message["bytes"] if text is None else text)


async def _to_caller(agent: ClientConnection, socket: WebSocket) -> None:
    with suppress(ConnectionClosed):
        async for frame in agent:
            if isinstance(frame, str):
                await socket.send_text(frame)
            else:
                await socket.send_bytes(frame)
