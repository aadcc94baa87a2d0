"""Everything of this room on one node: images by specification, indexes by name, mounts, tasks.

The agent owns one. What is quick or needs the node's mounts is done here; the rest goes to a process of its
own (:mod:`glowplug.image.task_runner`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from glowplug.chunks.ssd import SsdStore
from glowplug.image.file_trees import FileTrees, is_file_tree
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.job import Job, Progress
from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.daemon_state import DaemonPaths
from glowplug.image.lazy.launch import ensure_daemon, stop_daemon
from glowplug.image.lazy.mounter import LazyMounts, MountSettings
from glowplug.image.lazy.starts import LazyStarts
from glowplug.image.mount import ImageMounter
from glowplug.image.node_store import ONLY_HERE, open_ssd
from glowplug.image.store import ImageStore
from glowplug.image.task_runner import TaskRunner
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput
from glowplug.types.image import (
    ImageTask,
    IndexView,
    MountTask,
    PrefetchTask,
    PullTask,
    RemoveTask,
    UnmountTask,
)
from glowplug.types.paths import StateDir

TASK_TIMEOUT_S = 24 * 3600.0
_LOG = logging.getLogger(__name__)


class NodeImages:
    """``in_use`` tells the ids of images that replicas use right now; its owner may set it later."""

    def __init__(
        self, state: StateDir, ssd: SsdStore, starts: LazyStarts, clock: Clock | None = None
    ) -> None:
        self.in_use: Callable[[], Collection[str]] = frozenset
        self._state = state
        self._clock = clock or SystemClock()
        self._catalog = Catalog(state)
        self._ssd = ssd
        self._starts = starts
        self._tasks = TaskRunner(state)
        self.store = ImageStore(state, in_use=lambda: self.in_use(), clock=self._clock)
        self.mounter = ImageMounter(state, starts, self._clock)
        self.files = FileTrees(state, ssd, self._catalog, starts, clock=self._clock)

    def close(self) -> None:
        """Leave everything as it is for the next agent."""
        self._ssd.close()

    def metrics(self) -> str:
        """What the blob daemon counts, as Prometheus text."""
        return self._starts.metrics()

    def prepare(self) -> None:
        """Start the blob daemon and so on, that no cold start has to wait for it. Raises Unavailable."""
        self._starts.prepare()

    def sweep(self) -> None:
        """Put right what killed processes left, and release what ended containers held."""
        self._starts.sweep()

    def release_all(self) -> None:
        """Unmount every image and stop the blob daemon: nothing runs on this node any more."""
        for view in self.store.list():
            try:
                self.mounter.unmount(view.id)
            except GlowplugError as problem:
                _LOG.warning("%s", problem)
        self._starts.release_all()
        stop_daemon(self._state)

    def indexes(self) -> list[IndexView]:
        """All indexes of images, named ones first."""
        views = [self._view(folder) for folder in self._catalog.list() if not is_file_tree(folder)]
        return sorted(views, key=lambda view: (not view.names, view.names, view.digest))

    def index(self, image: str) -> IndexView:
        """One, by name or digest. Raises NotFound."""
        return self._view(self._catalog.get(self._catalog.resolve(image)))

    def remove(self, image_id: str) -> None:
        """Remove an image made from a specification, and its index if nothing else needs that."""
        digest = self.store.get(image_id).digest
        self.store.remove(image_id)
        if digest is not None:
            names = [name for name, named in self._catalog.names().items() if named == digest]
            self._drop_unless_needed(digest, names)

    def run(self, task: ImageTask, progress: Progress, cancelled: threading.Event) -> dict[str, Any]:
        """Do a task; ends soon after ``cancelled`` is set. Raises what the task raises."""
        job = Job(progress, self._clock, self._clock.monotonic() + TASK_TIMEOUT_S, cancelled)
        match task:
            case MountTask():
                return self._mount(task)
            case UnmountTask():
                return self._unmount(task)
            case RemoveTask():
                return self._remove_name(task)
            case PrefetchTask():
                digest = self._catalog.resolve(task.image)
                return self._starts.prefetch(digest, job, everything=task.all)
            case PullTask():
                result = self._tasks.run(task, job)
                self._starts.refresh(result["digest"])
                if task.content:
                    result |= self._starts.prefetch(result["digest"], job, everything=True)
                return result
            case _:
                return self._tasks.run(task, job)

    def _mount(self, task: MountTask) -> dict[str, Any]:
        mounted = self._starts.mount_by_hand(self._catalog.resolve(task.image), _path(task.target))
        return {"path": str(mounted.path), "kind": mounted.kind, "seconds": mounted.seconds}

    def _unmount(self, task: UnmountTask) -> dict[str, Any]:
        if task.image.startswith("/"):
            self._starts.unmount_target(Path(task.image))
        else:
            self._starts.unmount(self._catalog.resolve(task.image))
        return {}

    def _remove_name(self, task: RemoveTask) -> dict[str, Any]:
        digest = self._catalog.resolve(task.image)
        names = {name for name, named in self._catalog.names().items() if named == digest}
        if task.image in names:
            removed = self._drop_unless_needed(digest, names - {task.image})
            if not removed:
                self._catalog.unname(task.image)
            return {"removed": removed}
        if not self._drop_unless_needed(digest, names):
            raise Conflict(
                f"Image {task.image} is needed.",
                remedy="First remove its names and the images made of it (`glowplug image ls`).",
                digest=digest,
            )
        return {"removed": True}

    def _drop_unless_needed(self, digest: str, names: Collection[str]) -> bool:
        """Remove an index that has no other ``names`` and is no deployment's; raises Conflict if mounted."""
        self._refuse_file_tree(digest)
        if names or digest in self.store.digests():
            return False
        self._starts.unmount(digest)
        self._catalog.remove(digest)
        self._ssd.unpin(ONLY_HERE + digest)
        return True

    def _refuse_file_tree(self, digest: str) -> None:
        try:
            is_refused = is_file_tree(self._catalog.get(digest))
        except InvalidInput:  # damaged: it may go
            return
        if is_refused:
            raise Conflict(
                f"{digest[:16]} is the memory of a snapshot.",
                remedy="`glowplug snapshot ls` lists snapshots, `glowplug snapshot rm` removes one.",
                digest=digest,
            )

    def _view(self, folder: IndexFolder) -> IndexView:
        manifest = folder.manifest
        usage = self._ssd.usage(folder.table())
        return IndexView(
            digest=folder.digest,
            names=sorted(name for name, digest in self._catalog.names().items() if digest == folder.digest),
            entries=manifest.entries,
            content_bytes=manifest.content_bytes,
            index_bytes=manifest.index.size_bytes + manifest.chunks.size_bytes,
            here_bytes=usage.bytes,
            is_complete=usage.is_complete,
            mounted=self._starts.kind(folder.digest),
            traces=sorted(path.stem for path in folder.traces_path.glob("*.json")),
            config=manifest.config.model_dump(mode="json"),
        )


def open_images(state: StateDir) -> NodeImages:
    """The images of a node, with whatever a killed predecessor left half done put right."""
    ssd, catalog = open_ssd(state), Catalog(state)
    mounts = LazyMounts(state, ssd, catalog, lambda: ensure_daemon(state), MountSettings.from_environment())
    starts = LazyStarts(
        mounts,
        catalog,
        daemon=lambda: ensure_daemon(state),
        running=lambda timeout_s: DaemonClient(DaemonPaths(state).socket, timeout_s=timeout_s),
    )
    starts.sweep()
    return NodeImages(state, ssd, starts)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
