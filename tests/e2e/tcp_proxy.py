"""A TCP proxy that may slow down or fall silent while connections are open, as a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_PIECE_BYTES = 16 << 10


class TcpProxy:
    """Passes connections on to ``port``; what it passes back is limited by the public attributes."""

    def __init__(self, port: int) -> None:
        self.bytes_per_s: float | None = None
        self.silent_after_bytes: int | None = None
        self.passed_bytes = 0
        self.has_fallen_silent = threading.Event()
        self._target = port
        self._closed = threading.Event()
        self._turn = threading.Lock()
        self._next_s = 0.0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for connection in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
            threading.Thread(target=self._give_back, args=(far, near), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(_PIECE_BYTES):
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _give_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_PIECE_BYTES):
                if self.silent_after_bytes is not None and self.passed_bytes >= self.silent_after_bytes:
                    self.has_fallen_silent.set()
                    self._closed.wait()
                    return
                self._wait_for_turn(len(data))
                near.sendall(data)
                self.passed_bytes += len(data)
            near.shutdown(socket.SHUT_WR)

    def _wait_for_turn(self, size_bytes: int) -> None:
        """All connections share the limit."""
        if self.bytes_per_s is None:
            return
        with self._turn:
            now_s = time.monotonic()
            self._next_s = max(self._next_s, now_s) + size_bytes / self.bytes_per_s
            wait_s = self._next_s - now_s
        self._closed.wait(wait_s)


@contextlib.contextmanager
def tcp_proxy(port: int) -> Iterator[TcpProxy]:
    proxy = TcpProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
