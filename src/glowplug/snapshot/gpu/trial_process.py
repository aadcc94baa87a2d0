"""A small program that holds device memory, to try the driver's checkpoints on: ``glowplug gpu check``.

It fills the memory with noise, says so, and then answers ``verify`` lines on stdin with whether the device
still holds that noise. It ends with its stdin.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
from typing import Any

_CHUNK_BYTES = 16 << 20


class DeviceNoise:
    """Noise on device ``index``, and its digest. Raises RuntimeError with the driver's word."""

    def __init__(self, index: int, size_bytes: int) -> None:
        self._driver: Any = importlib.import_module("cuda.bindings.driver")
        self._size_bytes = size_bytes
        self._check(self._driver.cuInit(0))
        device = self._check(self._driver.cuDeviceGet(index))
        self._check(self._driver.cuCtxSetCurrent(self._check(self._driver.cuDevicePrimaryCtxRetain(device))))
        self._address = int(self._check(self._driver.cuMemAlloc(size_bytes)))
        written = hashlib.blake2b()
        for offset, length in self._chunks():
            noise = os.urandom(length)
            written.update(noise)
            self._check(self._driver.cuMemcpyHtoD(self._address + offset, noise, length))
        self._written = written.digest()

    def is_whole(self) -> bool:
        """Read it back from the device, and compare."""
        found = hashlib.blake2b()
        for offset, length in self._chunks():
            part = bytearray(length)
            self._check(self._driver.cuMemcpyDtoH(part, self._address + offset, length))
            found.update(part)
        return found.digest() == self._written

    def _chunks(self) -> list[tuple[int, int]]:
        offsets = range(0, self._size_bytes, _CHUNK_BYTES)
        return [(offset, min(_CHUNK_BYTES, self._size_bytes - offset)) for offset in offsets]

    def _check(self, answer: tuple[Any, ...]) -> Any:
        result, *values = answer
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(result.name)
        return values[0] if values else None


def command(device: int, size_bytes: int) -> list[str]:
    """How to start one: its file alone, since it needs nothing else of Glowplug."""
    return [sys.executable, "-P", __file__, "--device", str(device), "--bytes", str(size_bytes)]


def main() -> None:
    """See :func:`command`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the driver prints is no answer
    try:
        noise = DeviceNoise(arguments.device, arguments.bytes)
    except (ImportError, RuntimeError) as error:
        print(json.dumps({"ready": False, "reason": str(error)}), file=answers, flush=True)
        sys.exit(1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "verify":
            print(json.dumps({"whole": noise.is_whole()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
