"""A node in a temporary folder: its chunks, its catalog, its mounts, and nothing left of them afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import subprocess
import threading
from pathlib import Path

from tests.image.lazy.small_image import detach_all

from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.build import build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.job import Job
from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.daemon_state import DaemonPaths, lock_owner
from glowplug.image.lazy.launch import ensure_daemon, stop_daemon
from glowplug.image.lazy.mount_table import MountEntry, read_mount_table
from glowplug.image.lazy.mounter import LazyMounts, MountSettings
from glowplug.image.lazy.probe import Way
from glowplug.image.origin.folder import FolderOrigin
from glowplug.types.clock import SystemClock
from glowplug.types.paths import StateDir

PACK_BYTES = 2 << 20  # small, so that images lie in several
PATIENCE_S = 60.0


def a_job() -> Job:
    clock = SystemClock()
    return Job(lambda _text, _fraction: None, clock, clock.monotonic() + PATIENCE_S, threading.Event())


def make_files(folder: Path, seed: int = 7) -> Path:
    """A few files, small and large, that no other seed has the content of."""
    noise = random.Random(seed)
    folder.mkdir()
    for number in range(40):
        (folder / f"small-{number}").write_bytes(noise.randbytes(noise.randrange(1, 9000)))
    (folder / "large").write_bytes(noise.randbytes((3 << 20) + 17))
    (folder / "empty").touch()
    (folder / "link").symlink_to("large")
    return folder


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Length and hash of every file: where they differ, pytest says which, and soon."""
    return {
        os.path.relpath(Path(at) / name, folder): _told((Path(at) / name).read_bytes())
        for at, _, names in os.walk(folder)
        for name in names
    }


def _told(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()[:16]


class Node:
    """The node's store and catalog. Close it when all its mounts are gone."""

    def __init__(self, root: Path) -> None:
        self.state = StateDir(root.resolve() / "state")
        self.state.create()
        self.ssd = self.open_ssd()
        self.catalog = Catalog(self.state)

    def open_ssd(self) -> SsdStore:
        return SsdStore(self.state.chunks, budget_bytes=None, pack_bytes=PACK_BYTES)

    def add_image(self, folder: Path) -> IndexFolder:
        built = build_image(FolderOrigin(folder), self.ssd, self.catalog, a_job())
        return self.catalog.get(built.digest)

    def read_stored(self, folder: IndexFolder, name: str) -> bytes:
        """A file's content from the store, past all mounts."""
        inode = folder.tree().lookup(name.encode())
        assert inode is not None
        chunks = [chunk for extent in inode.extents for chunk in extent.chunks]
        return b"".join(self.ssd.get(chunk, PATIENCE_S) for chunk in chunks)

    def close(self) -> None:
        self.ssd.close()


class MountingNode(Node):
    """A node with a real daemon. Close it, and all its mounts and processes are gone."""

    def mounts(self, forced: Way | None = None) -> LazyMounts:
        return LazyMounts(self.state, self.ssd, self.catalog, self.daemon, MountSettings(forced))

    def daemon(self) -> DaemonClient:
        return ensure_daemon(self.state, PATIENCE_S)

    def kill_daemon(self) -> None:
        """Both processes at once, so that nobody answers any more."""
        paths = DaemonPaths(self.state)
        for lock in (paths.holder_lock, paths.worker_lock):
            kill_and_wait(lock_owner(lock))

    def kill_worker(self) -> None:
        kill_and_wait(lock_owner(DaemonPaths(self.state).worker_lock))

    def entries(self, digest: str) -> list[MountEntry]:
        target = self.state.lazy / "mounts" / digest
        return [entry for entry in read_mount_table() if entry.path == target]

    def assert_nothing_is_left(self, folder: IndexFolder) -> None:
        """No mount, no pin, no file of a mount."""
        assert self.entries(folder.digest) == []
        assert self.ssd.pins() == []
        assert not (self.state.lazy / "held" / folder.digest).exists()
        assert not (self.state.lazy / "mounts" / folder.digest).exists()

    def unmount_everything(self) -> None:
        for entry in reversed(read_mount_table()):
            if entry.path.is_relative_to(self.state.lazy / "mounts"):
                detach_all(entry.path)

    def close(self) -> None:
        self.unmount_everything()
        stop_daemon(self.state)
        super().close()


def kill_and_wait(pid: int | None) -> None:
    """SIGKILL, and be sure that it is gone. None is nobody."""
    if pid is not None:
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert select.select([process], [], [], PATIENCE_S)[0]
        os.close(process)


def start_container(path: Path) -> subprocess.Popen[bytes]:
    """In a mount namespace of its own, which keeps the mounts of now; hashes files of ``path`` when told."""
    script = f'echo ready; while read -r name; do cat "{path}/$name" | sha256sum; done'
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process
