"""Answers from device memory, for the tests of GPU snapshots: no PyTorch, only the driver's own calls.

``device_server.py [PROCESSES]``: each process fills a buffer on the device that it sees with noise; ``/``
tells digests of what the devices hold. Environment: ``DEVICE_BYTES`` for each (half where there is less,
and so on), ``SLOW_S`` to start late.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MORE_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20


class Buffer:
    """Noise on the first device."""

    def __init__(self, size_bytes: int) -> None:
        from cuda.bindings import driver  # after the fork: a process that has used CUDA cannot be forked

        self._driver: Any = driver
        self._check(driver.cuInit(0))
        self._device = self._check(driver.cuDeviceGet(0))
        self._context = self._check(driver.cuDevicePrimaryCtxRetain(self._device))
        self._check(driver.cuCtxSetCurrent(self._context))
        while True:
            result, address = driver.cuMemAlloc(size_bytes)
            if result != driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                break
            size_bytes //= 2
        self._address, self._size_bytes = int(self._check((result, address))), size_bytes
        for address, length in self._chunks():
            self._check(driver.cuMemcpyHtoD(address, os.urandom(length), length))

    def digest(self) -> str:
        found = hashlib.blake2b(digest_size=8)
        for address, length in self._chunks():
            found.update(self._read(address, length))
        return found.hexdigest()

    def takes_more(self) -> bool:
        """Whether memory that is allocated now holds what is written to it."""
        noise = os.urandom(MORE_BYTES)
        self._check(self._driver.cuCtxSetCurrent(self._context))  # of this thread
        address = int(self._check(self._driver.cuMemAlloc(MORE_BYTES)))
        self._check(self._driver.cuMemcpyHtoD(address, noise, MORE_BYTES))
        return self._read(address, MORE_BYTES) == noise

    def uuid(self) -> str:
        digits = bytes(self._check(self._driver.cuDeviceGetUuid(self._device)).bytes).hex()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return "GPU-" + "-".join(parts)

    def _chunks(self) -> list[tuple[int, int]]:
        offsets = range(0, self._size_bytes, CHUNK_BYTES)
        return [(self._address + offset, min(CHUNK_BYTES, self._size_bytes - offset)) for offset in offsets]

    def _read(self, address: int, size_bytes: int) -> bytes:
        content = bytearray(size_bytes)
        self._check(self._driver.cuMemcpyDtoH(content, address, size_bytes))
        return bytes(content)

    def _check(self, answer: tuple[Any, ...]) -> Any:
        result, *values = answer
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(result.name)
        return values[0] if values else None


class Worker:
    """Another process with a buffer of its own."""

    def __init__(self, size_bytes: int) -> None:
        ask, told = os.pipe(), os.pipe()
        if os.fork() == 0:
            buffer = Buffer(size_bytes)
            while os.read(ask[0], 1):
                os.write(told[1], buffer.digest().encode() + b"\n")
            os._exit(0)
        self._ask, self._told = ask[1], os.fdopen(told[0], "r")
        self._one_at_a_time = threading.Lock()

    def digest(self) -> str:
        with self._one_at_a_time:
            os.write(self._ask, b"?")
            return self._told.readline().strip()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/more":
            value: object = {"takes_more": buffer.takes_more(), "uuid": buffer.uuid()}
        else:
            value = {"started": STARTED, "digests": [one.digest() for one in [buffer, *workers]]}
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


STARTED = os.urandom(8).hex()
size = int(os.environ.get("DEVICE_BYTES", str(1 << 20)))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
time.sleep(float(os.environ.get("SLOW_S", "0")))
workers = [Worker(size) for _ in range(int(sys.argv[1]) - 1 if len(sys.argv) > 1 else 0)]
buffer = Buffer(size)
ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
