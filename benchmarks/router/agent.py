"""A stand-in node agent whose every replica is one server that already runs, and is ready when asked for."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse

from glowplug.types.replica import (
    BuildEvent,
    BuildRequest,
    Endpoint,
    ImageView,
    ReplicaEvent,
    ReplicaState,
    ReplicaView,
    StartReplica,
)

HEARTBEAT_S = 1.0


def make_app(port: int) -> FastAPI:
    """The few calls that a control plane makes of an agent for one warm replica."""
    app = FastAPI()
    changes: asyncio.Queue[ReplicaEvent] = asyncio.Queue()

    async def events() -> AsyncIterator[str]:
        yield ReplicaEvent(type="synced").model_dump_json() + "\n"
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    event = await changes.get()
            except TimeoutError:
                event = ReplicaEvent(type="heartbeat")
            yield event.model_dump_json() + "\n"

    @app.get("/v1/watch")
    async def watch() -> StreamingResponse:
        return StreamingResponse(events())

    @app.post("/v1/images")
    async def build(request: BuildRequest) -> Response:
        image = ImageView(id="img", kind=request.image.kind, spec=request.image)
        return Response(BuildEvent(image=image).model_dump_json() + "\n")

    @app.post("/v1/replicas", status_code=201)
    async def start(order: StartReplica) -> ReplicaView:
        view = ReplicaView(
            id=order.replica_id,
            app=order.app,
            server=order.server.name,
            deployment_id=order.deployment_id,
            state=ReplicaState.READY,
            created_at=time.time(),
            endpoint=Endpoint(host="127.0.0.1", port=port),
        )
        changes.put_nowait(ReplicaEvent(type="change", replica=view))
        return view

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--port", type=int, required=True, help="where the replica answers")
    options = parser.parse_args()
    uvicorn.run(make_app(options.port), uds=options.socket, log_level="warning")
