"""Exclusion between threads and processes alike, by a lock on a file: gone when its holder dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.image.job import Job

POLL_S = 0.01


@contextmanager
def held(path: Path, job: Job, stage: str) -> Iterator[None]:
    """Hold the lock file ``path``; waits as long as ``job`` allows, telling it once that it waits."""
    descriptor = _open(path)
    try:
        is_waiting = False
        while not _take(descriptor):
            if not is_waiting:
                job.say(stage)
                is_waiting = True
            job.check(stage)
            job.cancelled.wait(POLL_S)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock if nobody does: yields whether it is held. Never waits."""
    descriptor = _open(path)
    try:
        yield _take(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
