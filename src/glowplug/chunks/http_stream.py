"""Bytes of an HTTP answer off a socket, within a deadline that no trickle of bytes can stretch.

A plain socket is left blocking and given its timeout as SO_RCVTIMEO, which Linux counts down over a whole
``recv``, MSG_WAITALL included: a body is one system call straight into the bytes that are handed on, with
neither a copy nor a fight for the interpreter's lock at every packet. TLS has no such thing and loops.
"""

from __future__ import annotations

import socket
import ssl
import struct
from typing import Protocol

from glowplug.types.clock import Clock

_PEEKED_BYTES = 4096
_PIECE_BYTES = 64 << 10
_SHORTEST_S = 0.001  # zero would mean no timeout at all
_END_OF_HEAD = b"\r\n\r\n"


class BadAnswer(Exception):
    """What came is not HTTP as we know it; the connection is of no more use."""


class Closed(ConnectionError):
    """The server closed the connection before the answer was whole."""


class Stream(Protocol):
    """One connection's bytes. Raises OSError as sockets do, TimeoutError when late, Closed at the end."""

    has_received: bool
    """A byte has come since this was last set to False."""

    @property
    def has_rest(self) -> bool:
        """Bytes came that nobody asked for."""
        ...

    def send(self, data: bytes, deadline_s: float) -> None:
        """All of it."""
        ...

    def head(self, limit_bytes: int, deadline_s: float) -> bytes:
        """Up to an empty line, which is read over. Raises BadAnswer if there is none within the limit."""
        ...

    def exactly(self, size_bytes: int, deadline_s: float) -> bytes:
        """The next ``size_bytes``."""
        ...


def stream_of(connected: socket.socket, clock: Clock) -> Stream:
    """The bytes of this connection."""
    if isinstance(connected, ssl.SSLSocket):
        return TlsStream(connected, clock)
    return PlainStream(connected, clock)


class PlainStream:
    """See :class:`Stream`."""

    has_rest = False

    def __init__(self, connected: socket.socket, clock: Clock) -> None:
        self._socket = connected
        self._clock = clock
        self.has_received = False

    def send(self, data: bytes, deadline_s: float) -> None:
        """See :class:`Stream`."""
        self._socket.settimeout(None)
        self._wait_until(deadline_s, socket.SO_SNDTIMEO)
        try:
            self._socket.sendall(data)
        except BlockingIOError as late:
            raise TimeoutError("nothing can be sent") from late

    def head(self, limit_bytes: int, deadline_s: float) -> bytes:
        """See :class:`Stream`."""
        head = bytearray()
        while len(head) <= limit_bytes:
            seen = self._receive(_PEEKED_BYTES, socket.MSG_PEEK, deadline_s)
            before = len(head)
            head += seen
            end = head.find(_END_OF_HEAD, max(0, before - len(_END_OF_HEAD)))
            if end >= 0:
                self.exactly(end + len(_END_OF_HEAD) - before, deadline_s)
                return bytes(head[:end])
            self.exactly(len(seen), deadline_s)
        raise BadAnswer("its headers do not end")

    def exactly(self, size_bytes: int, deadline_s: float) -> bytes:
        """See :class:`Stream`."""
        data = self._receive(size_bytes, socket.MSG_WAITALL, deadline_s) if size_bytes else b""
        if len(data) == size_bytes:
            return data
        pieces, got_bytes = [data], len(data)
        while got_bytes < size_bytes:
            try:
                piece = self._receive(size_bytes - got_bytes, socket.MSG_WAITALL, deadline_s)
            except Closed as closed:
                raise Closed(f"the server stopped after {got_bytes} of {size_bytes} bytes") from closed
            pieces.append(piece)
            got_bytes += len(piece)
        return b"".join(pieces)

    def _receive(self, size_bytes: int, flags: int, deadline_s: float) -> bytes:
        self._wait_until(deadline_s, socket.SO_RCVTIMEO)
        try:
            data = self._socket.recv(size_bytes, flags)
        except BlockingIOError as late:
            raise TimeoutError("nothing comes") from late
        if not data:
            raise Closed("the server closed the connection")
        self.has_received = True
        return data

    def _wait_until(self, deadline_s: float, option: int) -> None:
        left_s = deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        seconds, fraction = divmod(max(left_s, _SHORTEST_S), 1)
        self._socket.setsockopt(
            socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), int(fraction * 1e6))
        )


class TlsStream:
    """See :class:`Stream`."""

    def __init__(self, connected: ssl.SSLSocket, clock: Clock) -> None:
        self._socket = connected
        self._clock = clock
        self._rest = bytearray()
        self.has_received = False

    @property
    def has_rest(self) -> bool:
        """See :class:`Stream`."""
        return bool(self._rest)

    def send(self, data: bytes, deadline_s: float) -> None:
        """See :class:`Stream`."""
        self._wait_until(deadline_s)
        self._socket.sendall(data)

    def head(self, limit_bytes: int, deadline_s: float) -> bytes:
        """See :class:`Stream`."""
        while (end := self._rest.find(_END_OF_HEAD)) < 0:
            if len(self._rest) > limit_bytes:
                raise BadAnswer("its headers do not end")
            self._wait_until(deadline_s)
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                raise Closed("the server closed the connection")
            self.has_received = True
            self._rest += piece
        head = bytes(self._rest[:end])
        del self._rest[: end + len(_END_OF_HEAD)]
        return head

    def exactly(self, size_bytes: int, deadline_s: float) -> bytes:
        """See :class:`Stream`."""
        data = bytearray(size_bytes)
        view = memoryview(data)
        filled = min(len(self._rest), size_bytes)
        view[:filled] = memoryview(self._rest)[:filled]
        del self._rest[:filled]
        while filled < size_bytes:
            self._wait_until(deadline_s)
            got = self._socket.recv_into(view[filled:])
            if not got:
                raise Closed(f"the server stopped after {filled} of {size_bytes} bytes")
            filled += got
        return bytes(data)

    def _wait_until(self, deadline_s: float) -> None:
        left_s = deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self._socket.settimeout(left_s)
