"""A swap file for as long as a test or a benchmark needs one. Needs root and a real disk.

Swap is the whole machine's: what ran out of memory before has more of it then. Tests that go on beside each
other and need the one or the other take turns.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_COMMAND_TIMEOUT_S = 120
_TURNS = Path(tempfile.gettempdir()) / "glowplug-swap.lock"


@contextmanager
def swap_file(size_bytes: int) -> Iterator[Path]:
    """Swap of that size, taken away again; what lies in it then comes back into memory."""
    with _turn(fcntl.LOCK_EX), tempfile.TemporaryDirectory(prefix="gp-swap-") as folder:
        file = Path(folder) / "swap"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
        _run("mkswap", file)
        _run("swapon", file)
        try:
            yield file
        finally:
            _run("swapoff", file)


@contextmanager
def without_swap_file() -> Iterator[None]:
    """Nobody else has one meanwhile."""
    with _turn(fcntl.LOCK_SH):
        yield


@contextmanager
def _turn(kind: int) -> Iterator[None]:
    with _TURNS.open("ab") as file:
        fcntl.flock(file, kind)
        yield


def _run(program: str, file: Path) -> None:
    argv = [f"/sbin/{program}", str(file)]
    subprocess.run(argv, check=True, capture_output=True, timeout=_COMMAND_TIMEOUT_S)
