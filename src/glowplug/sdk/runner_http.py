"""HTTP as the runner speaks it: threads and the standard library, small answers in one packet.

Promises: HTTP/1.1 with keep-alive; bounded request bodies (plain or chunked); head and body of an answer in
one write; results of a generator as chunked lines; errors always as JSON; and a server that knows which of
its connections are answering and which only wait, so that it can let go of the latter.
"""

from __future__ import annotations

import contextlib
import http
import json
import re
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from glowplug.types.errors import GlowplugError, InvalidInput

MAX_BODY_BYTES = 64 << 20
STREAM_TYPE = "application/x-ndjson"
# Longer than any router keeps an idle connection, so that it is never we who close one under its hands.
IDLE_TIMEOUT_S = 600.0
BODY_TIMEOUT_S = 60.0
# How long a client that is sending too much may go on before it is cut off, having been told why.
LINGER_S = 5.0
# How long to wait for other answers before letting go of what is idle. (Those just sent take microseconds.)
SETTLE_S = 5.0
_MAX_LINE_BYTES = 8 << 10
_MAX_TRAILERS = 100
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")


class Server(socketserver.ThreadingTCPServer):
    """A listening socket and a thread per connection. Owns both; :meth:`drain` gives them up in order."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self._idle: set[socket.socket] = set()
        self._answering = 0
        self._changed = threading.Condition()
        self.is_draining = False
        super().__init__(address, handler)

    def start(self) -> None:
        """Accept connections, on a thread of its own."""
        threading.Thread(target=self.serve_forever, args=(0.2,), name="accept", daemon=True).start()

    def drain(self, timeout_s: float) -> bool:
        """Accept nothing more, let answers finish; False if some did not within ``timeout_s``."""
        self.is_draining = True
        self.shutdown()
        self.server_close()
        self.close_idle()
        with self._changed:
            return self._changed.wait_for(lambda: self._answering == 0, timeout_s)

    def close_idle(self) -> None:
        """Close the connections on which no request is being answered."""
        with self._changed:
            for connection in self._idle:
                _shut(connection, socket.SHUT_RDWR)

    def close_others(self) -> None:
        """For a request being answered: once no other is, or after a while, close the idle connections."""
        with self._changed:
            self._changed.wait_for(lambda: self._answering <= 1, SETTLE_S)
        self.close_idle()

    def note_idle(self, connection: socket.socket) -> None:
        """The connection waits for its next request."""
        with self._changed:
            self._idle.add(connection)
            if self.is_draining:
                _shut(connection, socket.SHUT_RDWR)

    def note_answering(self, connection: socket.socket) -> None:
        """A request arrived on it."""
        with self._changed:
            self._idle.discard(connection)
            self._answering += 1

    def note_answered(self, connection: socket.socket) -> None:
        """The answer was sent, or cannot be any more: the connection is idle, or about to be closed."""
        with self._changed:
            self.note_idle(connection)
            self._answering -= 1
            self._changed.notify_all()

    def note_closed(self, connection: socket.socket) -> None:
        """The connection is about to be closed."""
        with self._changed:
            self._idle.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection ended badly: silence if the client went away, a traceback otherwise."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            traceback.print_exc()


class Handler(BaseHTTPRequestHandler):
    """One connection. A subclass answers requests in :meth:`answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_TIMEOUT_S
    server: Server
    _is_answering = False

    def answer(self) -> None:
        """Answer the request in ``self.command`` and ``self.path``. May raise GlowplugError."""
        raise NotImplementedError

    def handle_one_request(self) -> None:
        """Read and answer one request, keeping the server's books."""
        self.server.note_idle(self.connection)
        try:
            super().handle_one_request()
        finally:
            if self._is_answering:
                self._is_answering = False
                self.server.note_answered(self.connection)

    def finish(self) -> None:
        """Close the connection."""
        self.server.note_closed(self.connection)
        super().finish()

    def parse_request(self) -> bool:
        """Read the request's head; from here on the connection counts as answering."""
        self._is_answering = True
        self.server.note_answering(self.connection)
        is_parsed = super().parse_request()
        if is_parsed and (self.request_version != "HTTP/1.1" or self.server.is_draining):
            self.close_connection = True
        return is_parsed

    def handle_expect_100(self) -> bool:
        """Say "go on" only to what we will read to its end."""
        length = self.headers.get("Content-Length", "0")
        # Otherwise read_body() answers with 413 instead.
        return _announced_bytes(length) > MAX_BODY_BYTES or super().handle_expect_100()

    def do_GET(self) -> None:
        """Answer any method: the routes know which they allow."""
        try:
            self.answer()
        except GlowplugError as error:
            self.send_json(error.http_status, error.to_dict())

    do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_GET  # noqa: N815

    def read_body(self) -> bytes | None:
        """The request's body, or None if it was too large or too slow, which has then been answered."""
        self.connection.settimeout(BODY_TIMEOUT_S)
        try:
            body = self._read_body()
        except _BodyTooLarge:
            self._refuse_body()
            return None
        except TimeoutError:
            self.send_error(408)
            return None
        except InvalidInput:
            # Where this request ends is unknown, so nothing can follow it.
            self.close_connection = True
            raise
        self.connection.settimeout(IDLE_TIMEOUT_S)
        return body

    def send_json(self, status: int, data: Any, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer with JSON, head and body in one write."""
        body = json.dumps(data, default=str).encode()
        self.send_bytes(status, body, headers=headers)

    def send_bytes(self, status: int, body: bytes, *, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer with JSON that is already encoded."""
        length = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
        head = self._head(status, (*length, *headers))
        self.wfile.write(head if self.command == "HEAD" else head + body)

    def send_lines(self, lines: Generator[bytes]) -> None:
        """Answer with a stream of lines, each sent when it is there; the first goes with the head.

        Closes ``lines``, also when the client went away.
        """
        is_chunked = self.request_version == "HTTP/1.1"
        framing = (("Transfer-Encoding", "chunked"),) if is_chunked else ()
        pending = self._head(200, (("Content-Type", STREAM_TYPE), *framing))
        with contextlib.closing(lines):
            for line in lines:
                self.wfile.write(pending + (b"%x\r\n%b\r\n" % (len(line), line) if is_chunked else line))
                pending = b""
        self.wfile.write(pending + (b"0\r\n\r\n" if is_chunked else b""))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that http.server itself refuses, in our form; the connection ends with it."""
        self.close_connection = True
        phrase = message or http.HTTPStatus(code).phrase
        error = InvalidInput(f"The request is malformed: {phrase}.", remedy="Send HTTP/1.1.")
        self.send_json(code, error.to_dict())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by http.server
        """Requests are the router's to log; here they would bury what the user prints."""

    def _head(self, status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
        lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", f"Date: {self.date_time_string()}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _read_body(self) -> bytes:
        encoding = self.headers.get_all("Transfer-Encoding", [])
        lengths = set(self.headers.get_all("Content-Length", []))
        if encoding:
            if lengths or [value.strip().lower() for value in encoding] != ["chunked"]:
                raise InvalidInput("The body's length is ambiguous.", remedy="Send one Content-Length.")
            return b"".join(self._chunks())
        length = lengths.pop() if lengths else "0"
        if lengths or not (length.isascii() and length.isdigit()):
            raise InvalidInput("The body's length is malformed.", remedy="Send one Content-Length.")
        if _announced_bytes(length) > MAX_BODY_BYTES:
            raise _BodyTooLarge
        return self._exactly(_announced_bytes(length))

    def _chunks(self) -> Iterator[bytes]:
        total_bytes = 0
        while size := self._chunk_size():
            total_bytes += size
            if total_bytes > MAX_BODY_BYTES:
                raise _BodyTooLarge
            yield self._exactly(size)
            if self.rfile.readline(3) not in (b"\r\n", b"\n"):
                raise InvalidInput("A chunk of the body is malformed.", remedy="Send one Content-Length.")
        for _ in range(_MAX_TRAILERS):
            if self.rfile.readline(_MAX_LINE_BYTES) in (b"\r\n", b"\n", b""):
                return
        raise InvalidInput("The body has too many trailers.", remedy="Send one Content-Length.")

    def _chunk_size(self) -> int:
        line = self.rfile.readline(_MAX_LINE_BYTES)
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise InvalidInput("A chunk of the body is malformed.", remedy="Send one Content-Length.")
        return int(match[1], 16)

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) != size:
            raise InvalidInput("The body ended too early.", remedy="Send as much as was announced.")
        return data

    def _refuse_body(self) -> None:
        self.close_connection = True
        error = InvalidInput(
            f"The request's body is larger than {MAX_BODY_BYTES >> 20} MiB.",
            remedy="Send less at once; put large data into a gp.Volume.",
            max_bytes=MAX_BODY_BYTES,
        )
        self.send_json(413, error.to_dict())
        # Closing at once, with unread bytes, would reset the connection and take the answer with it.
        _shut(self.connection, socket.SHUT_WR)
        self.connection.settimeout(LINGER_S)
        end_s = time.monotonic() + LINGER_S
        while time.monotonic() < end_s and self.connection.recv(1 << 20):
            pass


class _BodyTooLarge(Exception):
    pass


def _announced_bytes(length: str) -> int:
    """A Content-Length as a number, however long it is written; 0 for what is not a number."""
    digits = length.lstrip("0") or "0"
    if not (digits.isascii() and digits.isdigit()):
        return 0
    return int(digits) if len(digits) <= len(str(MAX_BODY_BYTES)) else MAX_BODY_BYTES + 1


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other side was first
        connection.shutdown(how)
