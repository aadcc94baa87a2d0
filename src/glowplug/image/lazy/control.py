"""The daemon's control socket: one JSON object a line asked, one a line answered.

``{"v": 1, "op": "ping"}`` is answered ``{"v": 1, "ok": {...}}`` or ``{"v": 1, "error": {...}}``, where the
error is a GlowplugError's. Only the owner can reach the socket; still every length has a bound, every wait a
deadline, and nothing that is sent ends more than its own connection.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput

_log = logging.getLogger(__name__)

CONTROL_VERSION = 1
MAX_LINE_BYTES = 16 << 20
"""A prefetch order of two million chunks: an image of 2 TB."""

_MAX_CONNECTIONS = 32
_LINE_TIMEOUT_S = 10.0  # from a line's first byte to its last, and for an answer to be taken
_IDLE_TIMEOUT_S = 60.0
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What an operation says, and the descriptors that go with it."""

    fields: Mapping[str, Any]
    descriptors: Sequence[int] = ()


Operation = Callable[[Mapping[str, Any]], Answer]
"""Takes the request's fields. Raises GlowplugError."""


class ControlServer:
    """Answers on a listening socket, a thread a connection. The socket's descriptor becomes ours."""

    def __init__(self, descriptor: int, operations: Mapping[str, Operation], clock: Clock) -> None:
        self._listener = socket.socket(fileno=descriptor)
        self._operations = operations
        self._clock = clock
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    @property
    def descriptor(self) -> int:
        """The listening socket's."""
        return self._listener.fileno()

    def start(self) -> None:
        """Start accepting."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as problem:
                _log.error("no control connections are accepted any more: %s", problem)
                return
            if not self._places.acquire(timeout=_LINE_TIMEOUT_S):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="control-one", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                reader = LineReader(connection, self._clock)
                while (line := reader.read(_IDLE_TIMEOUT_S, _LINE_TIMEOUT_S)) is not None:
                    self._answer(connection, line)
        except (OSError, GlowplugError) as problem:
            _log.warning("a control connection ended early: %s", problem)
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            answer = self._run(line)
            reply: dict[str, Any] = {"v": CONTROL_VERSION, "ok": dict(answer.fields)}
            descriptors = answer.descriptors
        except GlowplugError as problem:
            reply, descriptors = {"v": CONTROL_VERSION, "error": problem.to_dict()}, ()
        data = json.dumps(reply, default=str).encode() + b"\n"
        connection.settimeout(_LINE_TIMEOUT_S)
        if descriptors:
            sent = socket.send_fds(connection, [data], list(descriptors))
            data = data[sent:]
        connection.sendall(data)

    def _run(self, line: bytes) -> Answer:
        fields = parse_line(line)
        name = fields.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            raise InvalidInput(
                f"The blob daemon knows no operation {str(name)[:100]!r}.",
                remedy="Use the client of this version, or restart the daemon.",
            )
        try:
            return operation(fields)
        except GlowplugError:
            raise
        except Exception as problem:
            _log.exception("operation %s failed", name)
            raise GlowplugError(
                f"Operation {name} failed: {problem}.", remedy="The blob daemon's log tells where."
            ) from problem


class LineReader:
    """Lines of a connection, bounded in length and time."""

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._buffer = bytearray()

    def read(self, idle_timeout_s: float, line_timeout_s: float) -> bytes | None:
        """The next line without its end; None where the other side has closed.

        Raises DeadlineExceeded, InvalidInput for a line that is too long or broken off, or OSError.
        """
        searched = 0
        deadline_s = self._clock.monotonic() + (line_timeout_s if self._buffer else idle_timeout_s)
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE_BYTES:
                raise InvalidInput("A control line is too long.", remedy="Send shorter orders.")
            received = self._receive(deadline_s)
            if not received:
                if self._buffer:
                    raise InvalidInput("A control line broke off.", remedy="Send it again.")
                return None
            if not self._buffer:
                deadline_s = self._clock.monotonic() + line_timeout_s
            self._buffer += received
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _receive(self, deadline_s: float) -> bytes:
        left_s = deadline_s - self._clock.monotonic()
        if left_s > 0:
            self._connection.settimeout(left_s)
            try:
                return self._connection.recv(_READ_BYTES)
            except TimeoutError:
                pass
        raise DeadlineExceeded("A control line did not come in time.", remedy="Try again.", stage="control")


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of a line of our version. Raises InvalidInput."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise InvalidInput("A control line is not JSON.", remedy="Send one JSON object a line.") from problem
    if not isinstance(fields, dict):
        raise InvalidInput("A control line is not a JSON object.", remedy="Send one JSON object a line.")
    if fields.get("v") != CONTROL_VERSION:
        raise InvalidInput(
            f"The control line is not of version {CONTROL_VERSION}.",
            remedy="Restart the blob daemon after an update.",
        )
    return fields
