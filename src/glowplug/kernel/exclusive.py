"""Being the only one: a lock on a file that ends with its holder, so that kill -9 never leaves it behind."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.types.errors import Conflict

_PATIENCE_S = 1.0
_POLL_S = 0.02


@contextmanager
def exclusive(file: Path, taken: Conflict) -> Iterator[None]:
    """Hold the lock on ``file``, made if need be, inside the block. Raises ``taken`` if another does."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lock_exclusively(descriptor):
            raise taken
        yield
    finally:
        os.close(descriptor)


def lock_exclusively(descriptor: int) -> bool:
    """Take the lock of an open file or directory; False when another holds it.

    Whoever only looks whether it is held holds a shared one for microseconds: that must not stop a start.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(_POLL_S)
        else:
            return True
