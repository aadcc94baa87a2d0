"""One GET at a time over one HTTP/1.1 connection, within a deadline that nothing a server does can stretch.

The standard library and urllib3 bound each wait for bytes, not the whole answer: a server that sends a byte a
second, be it of a header, holds their caller for hours. Here every wait is for what is left until the
deadline, and another thread can end a request at any time. Only what object servers send is understood: a
status, headers, a body of announced length.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from glowplug.chunks.http_stream import BadAnswer, TooSlow, stream_of
from glowplug.chunks.pace import Pace
from glowplug.types.clock import Clock

MAX_HEAD_BYTES = 32 << 10
_DRAINED_BYTES = 64 << 10  # an error's body up to here is read, so that the connection can be used again
_DRAIN_TIMEOUT_S = 0.1
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_LENGTH = re.compile(r"\d{1,15}")
_INTERIM_ANSWERS = 4


@dataclass(frozen=True)
class Head:
    """An answer's status and headers (names in lower case)."""

    status: int
    headers: Mapping[str, str]
    is_kept_alive: bool

    def length_bytes(self) -> int:
        """How long the body is. Raises BadAnswer unless that was announced."""
        length = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not _LENGTH.fullmatch(length):
            raise BadAnswer("it does not say how long it is")
        return int(length)


class HttpConnection:
    """An open connection. One thread uses it; another may :meth:`interrupt` it."""

    def __init__(self, connected: socket.socket, clock: Clock) -> None:
        self._socket = connected
        self._clock = clock
        self._stream = stream_of(connected, clock)
        self.is_reusable = True

    @property
    def has_answered(self) -> bool:
        """A byte of the current request's answer has come."""
        return self._stream.has_received

    def is_fit(self) -> bool:
        """An idle connection: nothing has come on it unasked, not even its end."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return self.is_reusable and not self._stream.has_rest and not poll.poll(0)

    def ask(self, target: str, headers: Mapping[str, str], deadline_s: float, pace: Pace) -> Head:
        """Send a GET and return the answer's head, as fast as ``pace`` wants it and the body.

        Raises BadAnswer, TooSlow, TimeoutError or OSError.
        """
        self._stream.has_received = False
        self._stream.pace = pace
        self.is_reusable = False  # until the whole answer has been read
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self._stream.send("\r\n".join([*lines, "", ""]).encode("ascii"), deadline_s)
        for _ in range(_INTERIM_ANSWERS):
            head = parse_head(self._stream.head(MAX_HEAD_BYTES, deadline_s))
            if head.status >= 200:
                return head
        raise BadAnswer("it never comes to the point")

    def read_body(self, head: Head, into: memoryview, deadline_s: float) -> None:
        """The body, which the head announces as long as ``into`` is. Raises as :meth:`ask`."""
        self._stream.fill(into, deadline_s)
        self.is_reusable = head.is_kept_alive

    def drain(self, head: Head, deadline_s: float) -> None:
        """Read over an error's body if that is cheap and quick; else the connection is not reusable."""
        deadline_s = min(deadline_s, self._clock.monotonic() + _DRAIN_TIMEOUT_S)
        with contextlib.suppress(BadAnswer, TooSlow, OSError):
            size_bytes = head.length_bytes()
            if size_bytes <= _DRAINED_BYTES:
                self.read_body(head, memoryview(bytearray(size_bytes)), deadline_s)

    def interrupt(self) -> None:
        """Make whatever waits on this connection fail at once."""
        with contextlib.suppress(OSError):  # it was closed, or not open yet
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give it up. May be called twice."""
        self._socket.close()


def parse_head(data: bytes) -> Head:
    """The head of an answer, without the empty line that ends it. Raises BadAnswer."""
    status_line, *lines = data.split(b"\r\n")
    status = _STATUS.fullmatch(status_line)
    if status is None:
        raise BadAnswer("it is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise BadAnswer("it has a header that is none")
        name, value = field[1].decode("ascii").lower(), field[2].decode("latin-1")
        if name in ("content-length", "content-range") and headers.get(name, value) != value:
            raise BadAnswer(f"it contradicts itself about its {name}")
        headers[name] = value
    wants_close = "close" in headers.get("connection", "").lower()
    return Head(int(status[2]), headers, status[1] == b"1" and not wants_close)
