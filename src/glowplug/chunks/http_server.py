"""A server of objects over HTTP: range reads on kept connections, each answer checked before it is believed.

Redirects are not followed: whoever may answer is who was configured. Any number of threads may read at once;
each request has a connection of its own, and idle ones are kept for the next.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

from glowplug.chunks.http_address import HttpAddress, Resolver
from glowplug.chunks.http_buffers import ReceiveBuffers
from glowplug.chunks.http_connection import Head, HttpConnection
from glowplug.chunks.http_stream import BadAnswer, Closed, TooSlow
from glowplug.chunks.object_keys import absent, check_key, wrong_answer
from glowplug.chunks.pace import PATIENCE_S, Meter, Pace, Stalled
from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, Unavailable

CONNECT_TIMEOUT_S = 1.5  # the first packet may be lost once (Linux sends it again after a second)
_IDLE_CONNECTIONS = 32
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")


class Answer(NamedTuple):
    """An object's bytes, and what the server said of its cache (``HIT``, ``MISS`` .., or nothing)."""

    data: memoryview
    cache_status: str


@dataclass(frozen=True)
class Wanted:
    """A range of an object; or, where ``is_whole``, all of one that is at most ``size_bytes`` long.

    ``query`` is a signature to pass through: a credential, so it never appears in an error or a log.
    """

    key: str
    start: int
    size_bytes: int
    is_whole: bool = False
    query: str = ""

    def after(self, received_bytes: int) -> Wanted:
        """What is left of a range once so much of it has come."""
        return replace(self, start=self.start + received_bytes, size_bytes=self.size_bytes - received_bytes)


class HttpServer:
    """One server. Safe to use from many threads."""

    def __init__(self, url: str, clock: Clock, resolver: Resolver, tls: ssl.SSLContext | None = None) -> None:
        """Raises InvalidInput for a URL that is no HTTP server's."""
        self.address = HttpAddress.parse(url)
        self.clock = clock
        self.buffers = ReceiveBuffers()
        self.meter = Meter()
        self._resolver = resolver
        self._tls = (tls or ssl.create_default_context()) if self.address.is_tls else None
        self._idle: deque[HttpConnection] = deque()
        self._is_closed = False

    def __str__(self) -> str:
        return str(self.address)

    def request(self, wanted: Wanted, patience_s: float = PATIENCE_S[0]) -> Request:
        """One attempt to read; nothing happens until it is run. Raises InvalidInput for a bad key.

        ``patience_s`` is how long it may bring next to nothing.
        """
        check_key(wanted.key)
        if wanted.size_bytes <= 0 or wanted.start < 0:
            raise InvalidInput(f"{wanted.size_bytes} bytes are no range.", remedy="Ask for at least one.")
        return Request(self, wanted, patience_s)

    def close(self) -> None:
        """Drop the idle connections. May be called twice."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def take_idle(self) -> HttpConnection | None:
        """A connection kept from an earlier request that still looks alive."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_fit():
                return connection
            connection.close()
        return None

    def give_back(self, connection: HttpConnection) -> None:
        """Keep a connection for the next request, or close it."""
        if connection.is_reusable and not self._is_closed and len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def connect(self, request: Request, deadline_s: float) -> HttpConnection:
        """A new connection, known to ``request`` from the start. Raises OSError or Unavailable."""
        addresses = self._resolver.resolve(self.address.host, self.address.port, deadline_s)
        problem: OSError = OSError("it has no address")
        for family, address in addresses:
            try:
                return self._connect_to(family, address, request, deadline_s)
            except OSError as failed:
                problem = failed
                if self.clock.monotonic() >= deadline_s:
                    break
        raise problem

    def _connect_to(
        self, family: socket.AddressFamily, address: tuple[str, int], request: Request, deadline_s: float
    ) -> HttpConnection:
        connecting = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection = request.uses(HttpConnection(connecting, self.clock))
            connecting.settimeout(min(CONNECT_TIMEOUT_S, max(0.001, deadline_s - self.clock.monotonic())))
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting.connect(address)
            if self._tls is None:
                return connection
            secure = self._tls.wrap_socket(
                connecting, server_hostname=self.address.host, do_handshake_on_connect=False
            )
            connecting = secure
            connection = request.uses(HttpConnection(secure, self.clock))
            secure.do_handshake()
        except BaseException:
            connecting.close()
            raise
        return connection


class Request:
    """One attempt at one read of one server: run by one thread, cancelled by any."""

    def __init__(self, server: HttpServer, wanted: Wanted, patience_s: float) -> None:
        self._server = server
        self._wanted = wanted
        self._patience_s = patience_s
        self._pace = Pace(server.clock, patience_s, server.meter)
        self._body = memoryview(b"")
        self._lock = threading.Lock()
        self._connection: HttpConnection | None = None
        self._is_cancelled = False

    @property
    def received_bytes(self) -> int:
        """What has come so far, its headers included; may be read while it runs."""
        return self._pace.received_bytes

    def uses(self, connection: HttpConnection) -> HttpConnection:
        """From now on :meth:`cancel` ends this connection. Raises OSError if that has happened already."""
        with self._lock:
            self._connection = connection
            if self._is_cancelled:
                raise Closed("the request was cancelled")
        return connection

    def cancel(self) -> None:
        """Make it fail at once. A request that is over is not disturbed."""
        with self._lock:
            self._is_cancelled = True
            if self._connection is not None:
                self._connection.interrupt()

    def run(self, deadline_s: float) -> Answer:
        """The bytes.

        Raises NotFound, Unavailable, Stalled (with what came), DeadlineExceeded, InvalidInput (wrong answer).
        """
        try:
            with self._server.buffers.kept():
                return self._run(deadline_s)
        except TooSlow as slow:
            self._server.meter.add(stalls=1)
            came = self._body[: slow.body_bytes]
            raise Stalled(str(self._server), self._patience_s, came) from slow
        except TimeoutError as late:
            raise self._late(deadline_s) from late
        except OSError as problem:
            raise self._unavailable(str(problem) or type(problem).__name__) from problem
        except BadAnswer as problem:
            raise wrong_answer(self._wanted.key, str(self._server), str(problem)) from problem

    def _run(self, deadline_s: float) -> Answer:
        kept = self._server.take_idle()
        if kept is not None:
            try:
                return self._run_on(self.uses(kept), deadline_s)
            except ConnectionError:
                # Idle connections are closed at any time; an answer that broke off is another matter.
                if kept.has_answered or self._is_cancelled:
                    raise
        return self._run_on(self._server.connect(self, deadline_s), deadline_s)

    def _run_on(self, connection: HttpConnection, deadline_s: float) -> Answer:
        try:
            return self._converse(connection, deadline_s)
        finally:
            with self._lock:
                self._connection = None
                if self._is_cancelled:
                    connection.is_reusable = False
            self._server.give_back(connection)

    def _converse(self, connection: HttpConnection, deadline_s: float) -> Answer:
        wanted, address = self._wanted, self._server.address
        query = f"?{wanted.query}" if wanted.query else ""
        headers = {
            "Host": address.netloc,
            "Range": f"bytes={wanted.start}-{wanted.start + wanted.size_bytes - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "glowplug",
        }
        self._pace = Pace(self._server.clock, self._patience_s, self._server.meter)
        head = connection.ask(f"{address.prefix}/{wanted.key}{query}", headers, deadline_s, self._pace)
        if head.status not in (200, 206):
            connection.drain(head, deadline_s)
            raise self._refused(head)
        self._body = self._server.buffers.take(self._checked_length(head))
        connection.read_body(head, self._body, deadline_s)
        return Answer(self._body, head.headers.get("x-cache-status", ""))

    def _checked_length(self, head: Head) -> int:
        """The length of a body that is the one asked for. Raises BadAnswer."""
        wanted, length = self._wanted, head.length_bytes()
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadAnswer("it is encoded in a way that was not asked for")
        if head.status == 200:
            if not wanted.is_whole:
                raise BadAnswer("it is the whole object where a range was asked for")
            if length > wanted.size_bytes:
                raise BadAnswer(f"it is {length} bytes long, more than {wanted.size_bytes}")
            return length
        told = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        if told is None or int(told[1]) != wanted.start or int(told[2]) - wanted.start + 1 != length:
            raise BadAnswer("it is not the range that was asked for")
        if wanted.is_whole and told[3] != str(length):
            raise BadAnswer(f"the object is longer than {wanted.size_bytes} bytes")
        if not wanted.is_whole and length != wanted.size_bytes:
            raise BadAnswer(f"it is {length} bytes, not the {wanted.size_bytes} asked for")
        return length

    def _refused(self, head: Head) -> GlowplugError:
        if head.status in (404, 410):
            return absent(self._wanted.key, str(self._server))
        if head.status in (401, 403, 407, 408, 429) or head.status >= 500:
            return self._unavailable(f"it answered {head.status}")
        why = (
            "it redirects elsewhere, which is not followed" if head.status < 400 else f"status {head.status}"
        )
        return wrong_answer(self._wanted.key, str(self._server), why)

    def _late(self, deadline_s: float) -> GlowplugError:
        if self._server.clock.monotonic() < deadline_s:
            return self._unavailable("it does not answer")
        return DeadlineExceeded(
            f"{self._server} did not give {self._wanted.key} in time.",
            remedy="Look at its log and at the network.",
            stage="http",
        )

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self._server} could not give {self._wanted.key}: {why}.",
            remedy="Check that it runs and can be reached (`glowplug zone-cache status` for a zone cache).",
            key=self._wanted.key,
        )
