"""A server that thinks for a moment and answers a few bytes: what the router is measured against.

As cheap as Python allows (one protocol object on uvloop), so that what wrk sees is the router and not this.
"""

from __future__ import annotations

import argparse
import asyncio

import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"


class Thinker(asyncio.Protocol):
    """Answers each request ``think_s`` after its head has arrived."""

    def __init__(self, think_s: float) -> None:
        self._think_s = think_s
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.endswith(b"\r\n\r\n"):
            return
        self._head = b""
        if self._think_s:
            self._loop.call_later(self._think_s, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)  # type: ignore[attr-defined]


async def serve(think_s: float) -> None:
    """Listen on a free port, print it, serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Thinker(think_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--think-ms", type=float, default=10.0)
    uvloop.run(serve(parser.parse_args().think_ms / 1000))
