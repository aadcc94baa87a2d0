"""Sockets that live inside another network namespace, opened without moving the process there.

A replica answers only inside its own namespace. A socket belongs to the namespace of the thread that created
it, for ever: so the thread steps in, calls ``socket()``, and steps back, which takes microseconds; connecting
and talking then happen from anywhere. Promise: whatever happens in between, the calling thread is home again
when :meth:`NamespaceSockets.open` returns or raises; if it cannot get home the process aborts, because every
later socket would silently belong to one replica.

Call it from a thread whose signal handlers do not raise (the control process only sets flags in them).
"""

from __future__ import annotations

import ctypes
import os
import socket
from typing import Any, Self

_CLONE_NEWNET = 0x4000_0000
# Linux's TCP_USER_TIMEOUT: the kernel gives up on a peer that acknowledges nothing. A sandbox that was killed
# takes its network stack along and resets nothing, so this bounds what a forgotten socket may cost.
_UNACKNOWLEDGED_LIMIT_MS = 30_000


class NamespaceSockets:
    """Makes TCP sockets inside ``netns`` (a file such as ``/run/netns/x``), or at home when it is None.

    Owns one descriptor of the namespace: :meth:`close` releases it. Raises OSError when the file is gone.
    """

    def __init__(self, netns: str | None) -> None:
        # PyDLL keeps the interpreter lock: no other thread of ours runs during the two calls.
        self._setns: Any = None if netns is None else ctypes.PyDLL(None, use_errno=True).setns
        self._namespace_fd = None if netns is None else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)

    def open(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A non-blocking socket inside the namespace. Raises OSError."""
        if self._namespace_fd is None:
            made = socket.socket(family, kind, protocol)
        else:
            made = self._open_inside(self._namespace_fd, family, kind, protocol)
        try:
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_LIMIT_MS)
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Let go of the namespace. Sockets made so far keep working."""
        if self._namespace_fd is not None:
            os.close(self._namespace_fd)
            self._namespace_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_inside(self, inside_fd: int, family: int, kind: int, protocol: int) -> socket.socket:
        home_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._enter(inside_fd)
            try:
                return socket.socket(family, kind, protocol)
            finally:
                self._return_home(home_fd)
        finally:
            os.close(home_fd)

    def _enter(self, fd: int) -> None:
        if self._setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")

    def _return_home(self, home_fd: int) -> None:
        try:
            self._enter(home_fd)
        except OSError as error:
            os.write(2, f"fatal: cannot return to our own network namespace: {error}\n".encode())
            os.abort()
