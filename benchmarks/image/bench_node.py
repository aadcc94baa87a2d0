"""A node of Glowplug for the benchmark: state directory, SSD tier, blob daemon and mounts; no agent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.build import BuildResult, build_image
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.job import Job
from glowplug.image.lazy import trace
from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.daemon_state import DaemonPaths
from glowplug.image.lazy.launch import ensure_daemon, stop_daemon
from glowplug.image.lazy.mounter import LazyMounts, MountSettings
from glowplug.image.lazy.starts import LazyStarts
from glowplug.image.origin.folder import FolderOrigin
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

JOB_S = 3600.0


class Node:
    """One state directory. ``forced`` keeps images from graduating, to measure the daemon's path."""

    def __init__(self, root: Path, *, forced: bool = False, region: str | None = None) -> None:
        self.state = StateDir(root)
        self.region = region
        self.catalog = Catalog(self.state)
        self._settings = MountSettings("lazy" if forced else None)
        self._open()

    def _open(self) -> None:
        self.state.chunks.mkdir(parents=True, exist_ok=True)
        self.ssd = SsdStore(self.state.chunks)
        self.mounts = LazyMounts(self.state, self.ssd, self.catalog, self.daemon, self._settings)
        self.starts = LazyStarts(self.mounts, self.catalog, self.daemon, lambda _timeout_s: self.client())

    def daemon(self) -> DaemonClient:
        """The blob daemon, started with this node's region if none runs."""
        for name, value in (("GLOWPLUG_REGION", self.region), ("GLOWPLUG_ZONE", None)):
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        return ensure_daemon(self.state)

    def client(self) -> DaemonClient:
        """A client of the daemon that runs."""
        return DaemonClient(DaemonPaths(self.state).socket)

    def build(self, folder: Path, name: str, order: Sequence[Chunk] | None = None) -> BuildResult:
        """Import a folder."""
        return build_image(FolderOrigin(folder), self.ssd, self.catalog, job(), order=order, name=name)

    def folder(self, name: str) -> IndexFolder:
        """An image's index."""
        return self.catalog.get(self.catalog.resolve(name))

    def blob(self, name: str) -> Path:
        """The daemon's file that an image is mounted from."""
        return self.state.lazy / "blobs" / self.folder(name).digest

    def forget_content(self) -> None:
        """An empty cache, and a daemon that has read nothing, but runs."""
        self.unmount_all()
        stop_daemon(self.state)
        self.ssd.close()
        shutil.rmtree(self.state.chunks)
        self._open()
        self.daemon()

    def forget_daemon(self) -> None:
        """No mounts, and a daemon that was just started."""
        self.unmount_all()
        stop_daemon(self.state)
        self.daemon()

    def forget_traces(self, name: str) -> None:
        """As before the image's first start."""
        shutil.rmtree(self.folder(name).traces_path, ignore_errors=True)

    def save_trace(self, name: str, command: Sequence[str]) -> int:
        """Keep what was read since the image was attached as the trace of ``command``; its chunks."""
        folder = self.folder(name)
        order = self.client().trace(folder.digest)
        trace.save(folder.path, trace.key_of(command), command, order)
        return len(order)

    def unmount_all(self) -> None:
        """Take all mounts away."""
        for mounted in self.mounts.mounted():
            self.mounts.unmount(mounted.digest)

    def close(self) -> None:
        """End the daemon and all mounts."""
        with suppress(GlowplugError):
            self.unmount_all()
        stop_daemon(self.state)
        self.ssd.close()


def job() -> Job:
    """One that says nothing."""
    clock = SystemClock()
    return Job(lambda _text, _fraction: None, clock, clock.monotonic() + JOB_S)
