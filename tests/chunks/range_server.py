"""A folder over HTTP with the manners of a distant store: latency before each answer, a limited rate each.

Run as a process of its own (``python -m tests.chunks.range_server FOLDER``), so that its Python does not
compete for the lock of the one that reads; prints its port on the first line.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import threading
import time
from pathlib import Path

PIECE_BYTES = 256 << 10
RANGE = re.compile(rb"range: *bytes=(\d+)-(\d+)", re.IGNORECASE)


def serve(folder: Path, latency_s: float, bytes_per_s: float) -> None:
    """Never returns."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(
            target=converse, args=(connection, folder, latency_s, bytes_per_s), daemon=True
        ).start()


def converse(connection: socket.socket, folder: Path, latency_s: float, bytes_per_s: float) -> None:
    """Answer the requests of one connection."""
    pending = b""
    with connection:
        while True:
            while b"\r\n\r\n" not in pending:
                more = connection.recv(65536)
                if not more:
                    return
                pending += more
            head, _, pending = pending.partition(b"\r\n\r\n")
            try:
                answer(connection, folder, head, latency_s, bytes_per_s)
            except OSError:
                return


def answer(
    connection: socket.socket, folder: Path, head: bytes, latency_s: float, bytes_per_s: float
) -> None:
    time.sleep(latency_s)
    path = folder / head.split(b" ", 2)[1].decode().lstrip("/")
    if not path.is_file():
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    wanted = RANGE.search(head)
    total = path.stat().st_size
    start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, total)
    connection.sendall(
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n"
        b'ETag: "x"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n'
        % (end - start, start, end - 1, total)
    )
    began, position = time.monotonic(), start
    with path.open("rb") as file:
        while position < end:
            position += os.sendfile(
                connection.fileno(), file.fileno(), position, min(PIECE_BYTES, end - position)
            )
            ahead_s = (position - start) / bytes_per_s - (time.monotonic() - began)
            if ahead_s > 0:
                time.sleep(ahead_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--bytes-per-s", type=float, default=1e12)
    given = parser.parse_args()
    serve(given.folder, given.latency_s, given.bytes_per_s)
