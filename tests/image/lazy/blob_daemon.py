"""A real blob daemon with a state directory, a disk and a region of its own; nothing is left of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.image.lazy.blob_content import BlobContent, short_state
from tests.image.lazy.region_server import RegionServer, region_server
from tests.image.lazy.small_image import detach_all

from glowplug.chunks.ssd import SsdStore
from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.daemon_state import DaemonPaths, lock_owner
from glowplug.image.lazy.launch import ensure_daemon, stop_daemon
from glowplug.types.paths import StateDir

PATIENCE_S = 60.0

needs_fuse = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="only root can mount FUSE"
)


class Daemon:
    """The daemon of ``state``, and what its tests do to it."""

    def __init__(self, state: StateDir, region: RegionServer) -> None:
        self.state = state
        self.region = region
        self.paths = DaemonPaths(state)
        self.client: DaemonClient = ensure_daemon(state, PATIENCE_S)

    def serve(self, content: BlobContent, here: Sequence[int] | None = None) -> Path:
        """A blob's file; its chunks ``here`` (all) are on this machine, all can be fetched."""
        folder = content.publish(self.state)
        (folder / "placement.bin").write_bytes(self.region.add(content))
        with SsdStore(self.state.chunks) as ssd:
            content.store(ssd, here)
        return self.paths.blobs / content.digest

    def kill_worker(self) -> int:
        """SIGKILL; returns when another worker answers in its place."""
        pid = self.client.ping(PATIENCE_S).pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.client.ping(PATIENCE_S).pid != pid)
        return pid

    def kill_holder(self) -> int:
        """SIGKILL; returns when it is gone."""
        pid = lock_owner(self.paths.holder_lock)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lock_owner(self.paths.holder_lock) != pid)
        return pid

    def kill_all(self) -> None:
        """SIGKILL both, so that nobody holds the connection."""
        worker = lock_owner(self.paths.worker_lock)
        self.kill_holder()
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: lock_owner(self.paths.worker_lock) is None)


@contextmanager
def running_daemon() -> Iterator[Daemon]:
    with short_state() as state, region_server() as region, pytest.MonkeyPatch.context() as environment:
        environment.setenv("GLOWPLUG_REGION", region.url)
        environment.delenv("GLOWPLUG_ZONE", raising=False)
        state.chunks.mkdir(exist_ok=True)
        try:
            yield Daemon(state, region)
        finally:
            with suppress(FileNotFoundError):
                print(DaemonPaths(state).log.read_text())
            region.close()  # first: whoever waits for it is let go
            stop_daemon(state)
            detach_all(state.lazy / "blobs")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came to that"
        time.sleep(0.005)


def read_at(path: Path, offset: int, size_bytes: int) -> bytes:
    """Read past the page cache of the blob's file, as an EROFS mount with ``directio`` does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(descriptor, size_bytes, offset)
    finally:
        os.close(descriptor)
