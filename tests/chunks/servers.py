"""Servers for tests of everything remote: a real S3 API, and HTTP servers that misbehave on purpose."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.ports import free_port

from glowplug.chunks.region_objects import ObstoreObjects

START_TIMEOUT_S = 60.0


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(int(START_TIMEOUT_S / 0.05)):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"ended with {process.wait(0.05)} instead of listening on {port}")
    raise AssertionError(f"nothing listens on {port}")


class S3Server:
    """moto's server: the S3 API with everything in memory, so a restart forgets it all."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def make_bucket(self, name: str) -> str:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=60):
            return name

    def objects(self, bucket: str, prefix: str = "some/prefix") -> ObstoreObjects:
        return ObstoreObjects(f"s3://{bucket}/{prefix}", self.options)

    @property
    def options(self) -> dict[str, str]:
        return {
            "endpoint": self.url,
            "access_key_id": "tests",
            "secret_access_key": "tests",
            "region": "us-east-1",
        }


class Conversation:
    """One connection of a misbehaving server, as the behaviour under test sees it."""

    def __init__(self, connection: socket.socket, head: bytes, released: threading.Event) -> None:
        self.connection = connection
        self.head = head
        self.released = released  # set when the test is over: what stalls waits for this

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def wanted(self) -> tuple[int, int]:
        """Start and end of the range that was asked for."""
        found = re.search(rb"range: bytes=(\d+)-(\d+)", self.head, re.IGNORECASE)
        assert found
        return int(found[1]), int(found[2]) + 1

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def answer(
        self,
        status: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    def give(self, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """As a good server does."""
        start, end = self.wanted
        body = content[start:end]
        if not body:
            self.answer("416 Range Not Satisfiable")
            return
        told = {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(content)}", **(headers or {})}
        self.answer("206 Partial Content", body, told)

    def drip(self, data: bytes) -> None:
        """A byte at a time for as long as the test goes on."""
        for number in range(len(data)):
            if self.released.wait(0.02):
                return
            self.send(data[number : number + 1])


Behaviour = Callable[[Conversation], None]


class HttpServer:
    """Answers each request as ``behaviour`` says; that may be replaced at any time."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[str] = []
        self.heads: list[bytes] = []
        self.released = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._open: set[socket.socket] = set()
        self._tls: ssl.SSLContext | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def wrap(self, tls: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self._tls = tls

    def _converse(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            connection = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            pending = b""
            while True:
                while b"\r\n\r\n" not in pending:
                    more = connection.recv(65536)
                    if not more:
                        return
                    pending += more
                head, _, pending = pending.partition(b"\r\n\r\n")
                conversation = Conversation(connection, head, self.released)
                self.requests.append(conversation.target)
                self.heads.append(head)
                self.behaviour(conversation)

    def stop(self) -> None:
        self.released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):  # each ends, in a thread of its own, while we go on
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@contextlib.contextmanager
def http_server(behaviour: Behaviour) -> Iterator[HttpServer]:
    server = HttpServer(behaviour)
    try:
        yield server
    finally:
        server.stop()


def serving(folder: Path) -> Behaviour:
    """A good server of the files in ``folder``."""

    def behave(conversation: Conversation) -> None:
        path = folder / conversation.target.partition("?")[0].lstrip("/")
        if path.is_file():
            conversation.give(path.read_bytes())
        else:
            conversation.answer("404 Not Found")

    return behave


def stalling(conversation: Conversation) -> None:
    conversation.released.wait(60)
    conversation.connection.close()
