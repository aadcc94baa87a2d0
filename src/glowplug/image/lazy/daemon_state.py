"""Where the blob daemon keeps what it needs while it runs, and who of its processes is alive.

Each process holds a record lock on a file of its own for as long as it lives. The kernel gives the lock back
when it dies, however it dies, and names the holder to whoever asks: no pid file can lie about it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from glowplug.types.paths import StateDir

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


@dataclass(frozen=True)
class DaemonPaths:
    """File names below ``<state>/run/lazy`` and the log's."""

    state: StateDir

    @property
    def blobs(self) -> Path:
        """Where the FUSE filesystem is mounted: one file per image, named by its digest."""
        return self.state.lazy / "blobs"

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.state.lazy / "control.sock"

    @property
    def holder_lock(self) -> Path:
        """Locked by the holder."""
        return self.state.lazy / "holder.lock"

    @property
    def minding_lock(self) -> Path:
        """Locked by the holder from when it has the descriptors: the worker may die then, not before."""
        return self.state.lazy / "minding.lock"

    @property
    def worker_lock(self) -> Path:
        """Locked by the worker."""
        return self.state.lazy / "worker.lock"

    @property
    def log(self) -> Path:
        """What both processes have to say."""
        return self.state.logs / "blob-daemon.log"


def lock_owner(path: Path) -> int | None:
    """The process that holds the lock, None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def take_lock(path: Path) -> int | None:
    """Hold the lock as long as the returned descriptor is open; None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
