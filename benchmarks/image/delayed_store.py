"""A distant store on this machine: a folder behind latency and a limit of bytes per second and connection."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from native_tools import NativeTools

MEGABYTES_PER_S = 100.0
LOOPBACK = "127.0.0.1"
RANGE_BYTES = 4 << 20
CONNECTIONS = 16
_TIMEOUT_S = 300.0


class Counts(NamedTuple):
    """What was asked of a server."""

    requests: int
    bytes: int

    def since(self, earlier: Counts) -> Counts:
        """The difference."""
        return Counts(self.requests - earlier.requests, self.bytes - earlier.bytes)


class DelayedStore(NamedTuple):
    """A running server."""

    port: int
    latency_ms: float
    host: str = LOOPBACK

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def counts(self) -> Counts:
        """What was asked of it so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/.counts", timeout=10) as answer:
            requests, sent_bytes = answer.read().split()
        return Counts(int(requests), int(sent_bytes))


@contextmanager
def serving(
    tools: NativeTools,
    folder: Path,
    latency_ms: float,
    megabytes_per_s: float = MEGABYTES_PER_S,
    host: str = LOOPBACK,
) -> Iterator[DelayedStore]:
    """Serve ``folder`` at the address ``host`` until the end of the block."""
    command = [str(tools.delayed_server), str(folder), str(latency_ms), str(megabytes_per_s), host]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield DelayedStore(int(server.stdout.readline()), latency_ms, host)
    finally:
        server.kill()
        server.wait()


def download(store: DelayedStore, name: str, target: Path, connections: int = CONNECTIONS) -> int:
    """Fetch all of an object with parallel range requests, as a whole-image download does; its length."""
    size_bytes = _length(store, name)
    starts = iter(range(0, size_bytes, RANGE_BYTES))
    lock = threading.Lock()
    problems: list[BaseException] = []
    with target.open("wb") as file:
        file.truncate(size_bytes)

        def work() -> None:
            try:
                _ranges(store, name, size_bytes, file.fileno(), starts, lock)
            except BaseException as problem:  # noqa: BLE001 - told to whoever waits
                problems.append(problem)

        workers = [threading.Thread(target=work) for _ in range(connections)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if problems:
        raise problems[0]
    return size_bytes


def ceiling_bytes_per_s(tools: NativeTools, file: Path) -> float:
    """What the server and :func:`download` manage together without any limit: what they cannot hide."""
    target = file.with_name(".ceiling")
    with serving(tools, file.parent, 0, 0) as store:
        started_s = time.monotonic()
        size_bytes = download(store, file.name, target)
        took_s = time.monotonic() - started_s
    target.unlink()
    return size_bytes / took_s


def _length(store: DelayedStore, name: str) -> int:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=_TIMEOUT_S)
    connection.request("HEAD", f"/{name}")
    answer = connection.getresponse()
    assert answer.status == 200, f"{name}: {answer.status}"
    length = int(answer.headers["Content-Length"])
    connection.close()
    return length


def _ranges(
    store: DelayedStore, name: str, size_bytes: int, file: int, starts: Iterator[int], lock: threading.Lock
) -> None:
    import os
    import socket

    buffer = memoryview(bytearray(RANGE_BYTES))
    with socket.create_connection(("127.0.0.1", store.port), timeout=_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            end = min(start + RANGE_BYTES, size_bytes)
            connection.sendall(
                f"GET /{name} HTTP/1.1\r\nHost: store\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode()
            )
            head = b""
            while b"\r\n\r\n" not in head:  # a byte at a time would be read by nobody; peek instead
                head = connection.recv(1024, socket.MSG_PEEK)
                assert head, "the server hung up"
            connection.recv(head.index(b"\r\n\r\n") + 4)
            assert head.startswith(b"HTTP/1.1 206"), head[:80]
            filled = 0
            while filled < end - start:
                got = connection.recv_into(buffer[filled : end - start], 0, socket.MSG_WAITALL)
                assert got, "the server hung up"
                filled += got
            os.pwrite(file, buffer[: end - start], start)
