"""Locks that die with their holder, so that kill -9 never leaves one behind.

Both kinds are ``flock``: the kernel drops them when the process ends, however it ends, and they hold between
threads of one process too, because every lock opens its own descriptor. A :class:`FileLock` is for doing
something once; a lock on a directory itself (:func:`share_directory`, :func:`own_directory`) says that what
lies in it is in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

_POLL_INTERVAL_S = 0.002
"""flock has no deadline of its own, so it is polled; holders keep it for a few fsyncs only."""


class HeldLock:
    """A lock somebody holds. Release it once, or use it as a context manager."""

    def __init__(self, descriptor: int, file: Path | None = None) -> None:
        self._descriptor: int | None = descriptor
        self._file = file

    def release(self) -> None:
        """Let go; the lock's file, if it has one, goes first, while nobody else can hold it."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            if self._file is not None:
                self._file.unlink(missing_ok=True)
            # Explicitly: a child forked at this very moment may still share the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def __enter__(self) -> HeldLock:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class FileLock:
    """Mutual exclusion by the name of a file that exists only while somebody holds or wants it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def try_acquire(self) -> HeldLock | None:
        """The lock, or None if somebody holds it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _try_flock(descriptor, fcntl.LOCK_EX):
                os.close(descriptor)
                return None
            if self._is_still_named(descriptor):
                return HeldLock(descriptor, self._path)
            os.close(descriptor)  # the last holder removed the file between our open and our lock

    def acquire(self, timeout_s: float) -> HeldLock | None:
        """The lock, or None if it could not be had within ``timeout_s`` (of real time: the wait is real)."""
        deadline = time.monotonic() + timeout_s
        while True:
            held = self.try_acquire()
            if held is not None or time.monotonic() >= deadline:
                return held
            time.sleep(_POLL_INTERVAL_S)

    def _is_still_named(self, descriptor: int) -> bool:
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))


def share_directory(path: Path) -> HeldLock | None:
    """Mark a directory as in use. None if it is gone, or going right now."""
    return _lock_directory(path, fcntl.LOCK_SH)


def own_directory(path: Path) -> HeldLock | None:
    """Sole ownership of a directory, in order to remove it. None if somebody uses it, or it is gone."""
    return _lock_directory(path, fcntl.LOCK_EX)


def _lock_directory(path: Path, kind: int) -> HeldLock | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if _try_flock(descriptor, kind) and os.fstat(descriptor).st_nlink > 0:
        return HeldLock(descriptor)
    os.close(descriptor)
    return None


def _try_flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        os.close(descriptor)
        raise
    return True
