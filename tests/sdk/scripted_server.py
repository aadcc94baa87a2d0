"""Servers for the client's tests: one that routes like the real router, one that says what it is told."""

from __future__ import annotations

import re
import socket
import threading
from types import TracebackType
from typing import Self

_REQUEST_LINE = re.compile(rb"^(\S+) /[^/ ]+/[^/ ]+(/\S*)")


class _SocketServer:
    """``with``: accepts on a free port, a thread per connection."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(60)

    @property
    def url(self) -> str:
        """What GLOWPLUG_URL would be."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class StandInRouter(_SocketServer):
    """``/{app}/{server}/{path}`` goes to the runner's ``/{path}``, as the real router sends it."""

    def __init__(self, runner_port: int) -> None:
        self._runner_port = runner_port

    def _serve(self, connection: socket.socket) -> None:
        with connection, socket.create_connection(("127.0.0.1", self._runner_port)) as runner:
            head = connection.recv(1 << 16)
            runner.sendall(_REQUEST_LINE.sub(rb"\1 \2", head, count=1))
            back = threading.Thread(target=_copy, args=(runner, connection), daemon=True)
            back.start()
            _copy(connection, runner)
            back.join(60)


class ScriptedServer(_SocketServer):
    """Answers every request with the same bytes, then closes; with None it never answers."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self._released = threading.Event()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            if self._answer is None:
                self._released.wait(60)
                return
            connection.sendall(self._answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        super().__exit__(kind, error, trace)


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()
