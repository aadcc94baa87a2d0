"""A region over HTTP inside the test: it holds back, fails or falsifies an answer when it is told to.

Each chunk is an object of its own, so what happens to one request happens to one chunk.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.image.lazy.blob_content import BlobContent

from glowplug.chunks.pack import Encoding, pack_key
from glowplug.chunks.placement import Place, Placement

PATIENCE_S = 120.0
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class RegionServer:
    """Objects by key, and what is to happen when they are asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._objects: dict[str, bytes] = {}
        self._failing: set[str] = set()
        self._falsified: set[str] = set()
        self._gates: dict[str, tuple[threading.Event, threading.Event]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, content: BlobContent) -> bytes:
        """Hold all chunks of a blob; returns its ``placement.bin``."""
        for index, body in enumerate(content.bodies):
            self._objects[self.key(content, index)] = body
        return Placement.pack(
            [Place(chunk.id, 0, chunk.size_bytes, Encoding.RAW) for chunk in content.chunks]
        )

    @staticmethod
    def key(content: BlobContent, index: int) -> str:
        return pack_key(content.chunks[index].id)

    def fail(self, content: BlobContent, index: int) -> None:
        """Answer 500 for this chunk."""
        self._failing.add(self.key(content, index))

    def falsify(self, content: BlobContent, index: int) -> None:
        """Give other bytes of the same length for this chunk."""
        self._falsified.add(self.key(content, index))

    def heal(self) -> None:
        self._failing.clear()
        self._falsified.clear()

    def hold(self, content: BlobContent, index: int) -> tuple[threading.Event, threading.Event]:
        """Hold back this chunk's answer. Events: it was asked for; let it go."""
        gate = (threading.Event(), threading.Event())
        self._gates[self.key(content, index)] = gate
        return gate

    def close(self) -> None:
        for _, release in self._gates.values():
            release.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, key: str) -> bytes | None:
        self.requests.append(key)
        if key in self._gates:
            asked, release = self._gates[key]
            asked.set()
            release.wait(PATIENCE_S)
        body = None if key in self._failing else self._objects.get(key)
        if body is not None and key in self._falsified:
            return bytes([body[0] ^ 1]) + body[1:]
        return body

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        region = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = region.answer(self.path.lstrip("/"))
                if body is None:
                    self.send_error(500)
                    return
                found = _RANGE.fullmatch(self.headers.get("Range", ""))
                start, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(body))
                self.send_response(206 if found else 200)
                self.send_header("Content-Length", str(end - start))
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
                self.end_headers()
                self.wfile.write(body[start:end])

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def region_server() -> Iterator[RegionServer]:
    server = RegionServer()
    try:
        yield server
    finally:
        server.close()
