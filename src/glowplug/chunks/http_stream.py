"""Bytes of an HTTP answer off a socket, within a deadline that no trickle of bytes can stretch.

A plain socket is left blocking and given its timeout as SO_RCVTIMEO, which Linux counts down over a whole
``recv``, MSG_WAITALL included: a body is one system call straight into the memory that is handed on, with
neither a copy nor a fight for the interpreter's lock at every packet. TLS has no such thing and loops. Every
wait ends after a tick, so that an answer that stalls is noticed (:mod:`glowplug.chunks.pace`).
"""

from __future__ import annotations

import socket
import ssl
import struct
from abc import ABC, abstractmethod

from glowplug.chunks.pace import PATIENCE_S, TICK_S, Meter, Pace
from glowplug.types.clock import Clock

_HEAD_PIECE_BYTES = 4096
_SHORTEST_S = 0.001  # zero would mean no timeout at all
_END_OF_HEAD = b"\r\n\r\n"


class BadAnswer(Exception):
    """What came is not HTTP as we know it; the connection is of no more use."""


class Closed(ConnectionError):
    """The server closed the connection before the answer was whole."""


class TooSlow(Exception):
    """Next to nothing has come for too long, after ``body_bytes``; the connection is of no more use."""

    def __init__(self, body_bytes: int) -> None:
        super().__init__()
        self.body_bytes = body_bytes


class Stream(ABC):
    """One connection's bytes. Raises OSError as sockets do, TimeoutError when late, Closed at the end.

    What receives raises TooSlow, too.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.pace = Pace(clock, PATIENCE_S[0], Meter())  # until a request brings its own
        self._rest = b""  # came with a head, and follows it
        self.has_received = False
        """A byte has come since this was last set to False."""

    @property
    def has_rest(self) -> bool:
        """Bytes came that nobody asked for."""
        return bool(self._rest)

    @abstractmethod
    def send(self, data: bytes, deadline_s: float) -> None:
        """All of it."""

    def head(self, limit_bytes: int, deadline_s: float) -> bytes:
        """Up to an empty line, which is read over. Raises BadAnswer if there is none within the limit."""
        head, searched = self._rest, 0
        while (end := head.find(_END_OF_HEAD, searched)) < 0:
            if len(head) > limit_bytes:
                raise BadAnswer("its headers do not end")
            searched = max(0, len(head) - len(_END_OF_HEAD))
            piece = self._receive(_HEAD_PIECE_BYTES, self._tick_s(deadline_s, 0))
            if piece is None:
                continue
            if not piece:
                raise Closed("the server closed the connection")
            self.has_received = True
            self.pace.got(len(piece))
            head += piece
        self._rest = head[end + len(_END_OF_HEAD) :]
        return head[:end]

    def fill(self, into: memoryview, deadline_s: float) -> None:
        """The next bytes, as many as there is room for."""
        filled = min(len(self._rest), len(into))
        into[:filled] = self._rest[:filled]
        self._rest = self._rest[filled:]
        while filled < len(into):
            got_bytes = self._receive_into(into[filled:], self._tick_s(deadline_s, filled))
            if got_bytes is None:
                continue
            if not got_bytes:
                raise Closed(f"the server stopped after {filled} of {len(into)} bytes")
            self.has_received = True
            self.pace.got(got_bytes)
            filled += got_bytes

    def _tick_s(self, deadline_s: float, body_bytes: int) -> float:
        """How long to wait for bytes now. Raises TimeoutError, TooSlow."""
        left_s = _left_s(self._clock, deadline_s)
        if self.pace.is_stalled:
            raise TooSlow(body_bytes)
        return min(left_s, TICK_S)

    @abstractmethod
    def _receive(self, limit_bytes: int, timeout_s: float) -> bytes | None:
        """What has come, at least one byte; none at the end; None if nothing came in time."""

    @abstractmethod
    def _receive_into(self, into: memoryview, timeout_s: float) -> int | None:
        """Wait for some or all of this; how many bytes came, none at the end; None if none did in time."""


def stream_of(connected: socket.socket, clock: Clock) -> Stream:
    """The bytes of this connection."""
    if isinstance(connected, ssl.SSLSocket):
        return TlsStream(connected, clock)
    return PlainStream(connected, clock)


class PlainStream(Stream):
    """See :class:`Stream`."""

    def __init__(self, connected: socket.socket, clock: Clock) -> None:
        super().__init__(clock)
        self._socket = connected

    def send(self, data: bytes, deadline_s: float) -> None:
        """See :class:`Stream`."""
        if self._socket.gettimeout() is not None:  # was set to connect
            self._socket.settimeout(None)
        self._wait_for(_left_s(self._clock, deadline_s), socket.SO_SNDTIMEO)
        try:
            self._socket.sendall(data)
        except BlockingIOError as late:
            raise TimeoutError("nothing can be sent") from late

    def _receive(self, limit_bytes: int, timeout_s: float) -> bytes | None:
        self._wait_for(timeout_s, socket.SO_RCVTIMEO)
        try:
            return self._socket.recv(limit_bytes)
        except BlockingIOError:
            return None

    def _receive_into(self, into: memoryview, timeout_s: float) -> int | None:
        self._wait_for(timeout_s, socket.SO_RCVTIMEO)
        try:
            return self._socket.recv_into(into, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            return None

    def _wait_for(self, timeout_s: float, option: int) -> None:
        seconds, fraction = divmod(timeout_s, 1)
        self._socket.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(fraction * 1e6))
        )


class TlsStream(Stream):
    """See :class:`Stream`."""

    def __init__(self, connected: ssl.SSLSocket, clock: Clock) -> None:
        super().__init__(clock)
        self._socket = connected

    def send(self, data: bytes, deadline_s: float) -> None:
        """See :class:`Stream`."""
        self._socket.settimeout(_left_s(self._clock, deadline_s))
        self._socket.sendall(data)

    def _receive(self, limit_bytes: int, timeout_s: float) -> bytes | None:
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(limit_bytes)
        except TimeoutError:
            return None

    def _receive_into(self, into: memoryview, timeout_s: float) -> int | None:
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv_into(into)
        except TimeoutError:
            return None


def _left_s(clock: Clock, deadline_s: float) -> float:
    left_s = deadline_s - clock.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    return max(left_s, _SHORTEST_S)
