"""Being the only one: a lock on a file that ends with its holder, so that kill -9 never leaves it behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.types.errors import Conflict


@contextmanager
def exclusive(file: Path, taken: Conflict) -> Iterator[None]:
    """Hold the lock on ``file``, made if need be, inside the block. Raises ``taken`` if another does."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield
    finally:
        os.close(descriptor)
