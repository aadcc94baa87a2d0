"""One connection between the coordinator and a rank: lines of JSON, each waited for with a deadline."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from glowplug.nccl.words import MAX_LINE_BYTES, from_line, to_line
from glowplug.types.errors import DeadlineExceeded, InvalidInput

_RECEIVE_BYTES = 1 << 16


class Line:
    """Owns the socket. Not for two threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def send(self, message: dict[str, Any], deadline_s: float) -> None:
        """Raises OSError when the other side is gone, or does not take it in time."""
        self._connection.settimeout(deadline_s)
        self._connection.sendall(to_line(message))

    def receive(self, deadline_s: float) -> dict[str, Any] | None:
        """The next message; None when the other side has closed the connection, or ended.

        Raises DeadlineExceeded, or InvalidInput for what is no message.
        """
        ends_s = time.monotonic() + deadline_s
        while (length := self._received.find(b"\n")) < 0:
            if len(self._received) > MAX_LINE_BYTES:
                raise InvalidInput(
                    f"A message between ranks is longer than {MAX_LINE_BYTES} bytes.",
                    remedy="Nobody but ranks may talk to their ports.",
                )
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"Nothing was said for {deadline_s:g} s.")
            self._connection.settimeout(left_s)
            try:
                received = self._connection.recv(_RECEIVE_BYTES)
            except TimeoutError:
                continue
            except OSError:
                return None
            if not received:
                return None
            self._received += received
        line = bytes(self._received[:length])
        del self._received[: length + 1]
        return from_line(line)

    def close(self) -> None:
        """May be called twice."""
        with contextlib.suppress(OSError):
            self._connection.close()
