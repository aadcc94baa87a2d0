"""Images in the agent's HTTP API: what is here, builds, and tasks with their progress."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from glowplug.image.job import Progress
from glowplug.image.node_images import NodeImages
from glowplug.node import failures
from glowplug.types.errors import GlowplugError
from glowplug.types.image import IndexView, TaskEvent, TaskRequest
from glowplug.types.replica import BuildEvent, BuildRequest, ErrorInfo, ImageView

NDJSON = "application/x-ndjson"
_Event = TypeVar("_Event", BuildEvent, TaskEvent)
Work = Callable[[Progress, threading.Event], _Event]


def add_images(app: FastAPI, images: NodeImages) -> None:
    """Add the routes to ``app``."""

    @app.get("/v1/images")
    async def listing() -> list[ImageView]:
        return list(await asyncio.to_thread(images.store.list))

    @app.get("/v1/images/{image_id}")
    async def one(image_id: str) -> ImageView:
        return await asyncio.to_thread(images.store.get, image_id)

    @app.delete("/v1/images/{image_id}", status_code=204)
    async def remove(image_id: str) -> None:
        await asyncio.to_thread(images.remove, image_id)

    @app.post("/v1/images")
    async def build(request: BuildRequest) -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> BuildEvent:
            image = images.store.ensure(request.image, progress, cancelled)
            return BuildEvent(image=image, fraction=1.0)

        return StreamingResponse(stream_events(BuildEvent, work), media_type=NDJSON)

    @app.get("/v1/indexes")
    async def indexes() -> list[IndexView]:
        return await asyncio.to_thread(images.indexes)

    @app.get("/v1/indexes/{image:path}")
    async def index(image: str) -> IndexView:
        return await asyncio.to_thread(images.index, image)

    @app.post("/v1/image-tasks")
    async def task(request: TaskRequest) -> StreamingResponse:
        def work(progress: Progress, cancelled: threading.Event) -> TaskEvent:
            return TaskEvent(result=images.run(request.task, progress, cancelled), fraction=1.0)

        return StreamingResponse(stream_events(TaskEvent, work), media_type=NDJSON)


async def stream_events(kind: type[_Event], work: Work[_Event]) -> AsyncIterator[str]:
    """Progress lines, then the outcome or the error; the work ends soon after nobody listens any more."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[_Event] = asyncio.Queue()
    cancelled = threading.Event()

    def progress(text: str, fraction: float | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, kind(text=text, fraction=fraction))

    def guarded() -> _Event:
        try:
            return work(progress, cancelled)
        except GlowplugError as error:
            return kind(error=ErrorInfo.of(error))
        except OSError as error:
            problem = failures.from_system("The image could not be made", error)
            return kind(error=ErrorInfo.of(problem))

    working = loop.run_in_executor(None, guarded)
    try:
        while not working.done() or not queue.empty():
            waiting = asyncio.ensure_future(queue.get())
            await asyncio.wait([waiting, working], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield waiting.result().model_dump_json() + "\n"
            else:
                waiting.cancel()
        yield (await working).model_dump_json() + "\n"
    finally:
        cancelled.set()
