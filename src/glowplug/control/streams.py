"""Streamed answers of the control API whose source is closed the moment the caller leaves.

The framework's own streaming response leaves its generator to the garbage collector when a client
disconnects; ours hold a build, a log or a lock, so their end must not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from glowplug.types.replica import Message

NDJSON = "application/x-ndjson"


class Stream(Response):
    """Sends what ``chunks`` yields as it comes. The first chunk is awaited before the status is sent.

    An error of ours before the first chunk is raised (and answered like any other); a later one breaks the
    connection, so that half a stream does not look like a whole one.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], media_type: str) -> None:
        self._chunks = chunks
        self.background = None
        self.status_code = 200
        self.media_type = media_type
        self.init_headers()
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the source ends or the caller leaves."""
        async with aclosing(self._chunks) as chunks:
            sender = asyncio.ensure_future(self._send_all(chunks, send))
            leaver = asyncio.ensure_future(_wait_for_disconnect(receive))
            try:
                await asyncio.wait({sender, leaver}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaver.cancel()
                sender.cancel()
                await asyncio.gather(leaver, sender, return_exceptions=True)
            if not sender.cancelled() and (error := sender.exception()) is not None:
                raise error

    async def _send_all(self, chunks: AsyncGenerator[bytes, None], send: Send) -> None:
        first = await anext(chunks, b"")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def ndjson(events: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    """Each message as one line."""
    async with aclosing(events) as source:
        async for event in source:
            yield event.model_dump_json().encode() + b"\n"


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
