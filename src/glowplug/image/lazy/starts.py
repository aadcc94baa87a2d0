"""Starting commands from lazily mounted images: what a command read the first time is fetched ahead the next.

The first start of a command from an image goes through the blob daemon even if all content is here, because
only the daemon sees what is read; from then on the image is mounted the fastest way there is.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glowplug.image.imports.command import predicted_chunks
from glowplug.image.imports.graph import ImportGraph
from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.job import Job
from glowplug.image.lazy import syscalls, trace
from glowplug.image.lazy.client import DaemonClient, PrefetchProgress
from glowplug.image.lazy.mount_table import mounted_at, read_mount_table
from glowplug.image.lazy.mounter import LazyMounts, Mounted
from glowplug.image.mount import MountUse
from glowplug.types.content import Fetching, TierRead
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unavailable

_log = logging.getLogger(__name__)

STATS_TIMEOUT_S = 0.5  # between a replica and its readiness
FETCHING_TIMEOUT_S = 2.0  # what a restore's failure is blamed on depends on it
_PREFETCH_WAIT_S = 1.0
SSD_TIER = "ssd"


class LazyStarts:
    """Mounts, traces and prefetch of the images of one node. Safe from many threads.

    ``running`` gives a client of the daemon without starting one, ``daemon`` starts it where needed.
    """

    def __init__(
        self,
        mounts: LazyMounts,
        catalog: Catalog,
        daemon: Callable[[], DaemonClient],
        running: Callable[[float], DaemonClient],
    ) -> None:
        self._mounts = mounts
        self._catalog = catalog
        self._daemon = daemon
        self._running = running

    # --- what the agent does for replicas (glowplug.image.mount.IndexMounts) ---

    def mount(self, digest: str, command: Sequence[str]) -> Path:
        """Where the tree is; what ``command`` needed before is being fetched when this returns."""
        folder = self._catalog.get(digest)
        is_known = (folder.traces_path / f"{trace.key_of(command)}.json").exists()
        # While the kernel mounts it the first bytes are on their way.
        is_early = self.kind(digest) is None and not folder.graduated_record_path.exists()
        if is_early:
            self.fetch_ahead(digest, command)
        mounted = self._mounts.mount(digest, direct=is_known)
        if mounted.kind == "lazy" and mounted.is_new and not is_early:
            self.fetch_ahead(digest, command)
        return mounted.path

    def unmount(self, digest: str) -> None:
        """Release it. Raises Conflict while somebody uses it."""
        self._mounts.unmount(digest)

    def read_anew(self, digest: str) -> None:
        """Bytes of it were wrong: forget where the daemon knows them, and what the kernel cached of them."""
        try:
            self._running(STATS_TIMEOUT_S).detach(digest)
        except GlowplugError as problem:
            _log.warning("no daemon was told to forget image %s: %s", digest[:16], problem.message)
        self._mounts.forget_pages(digest)

    def use(self, digest: str) -> MountUse:
        """How it is mounted, and what the daemon gave since it was attached: before it is mounted, maybe."""
        kind = self.kind(digest)
        if kind not in (None, "lazy"):
            return MountUse(kind)
        try:
            blob = self._running(STATS_TIMEOUT_S).stats().blobs.get(digest)
        except GlowplugError as problem:
            if kind is not None:
                _log.warning("what image %s read cannot be told: %s", digest[:16], problem.message)
            return MountUse(kind or "")
        if blob is None:
            return MountUse(kind or "")
        reads = {SSD_TIER: TierRead(blob.ssd_bytes, blob.ssd_chunks)}
        reads |= {tier: TierRead(share.bytes, share.chunks) for tier, share in blob.tiers.items()}
        return MountUse(kind or "", {tier: read for tier, read in reads.items() if read.bytes})

    def keep_trace(self, digest: str, command: Sequence[str]) -> None:
        """Remember what was read since the image was attached, unless this command has a trace.

        And if everything is here by now, the next mount is direct.
        """
        try:
            folder = self._catalog.get(digest)
            key = trace.key_of(command)
            if self.kind(digest) != "lazy":
                return
            if not (folder.traces_path / f"{key}.json").exists():
                order = self._running(STATS_TIMEOUT_S).trace(digest)
                if order:
                    trace.save(folder.path, key, command, order)
            self._mounts.graduate(digest)
        except (GlowplugError, OSError) as problem:
            _log.warning("the access trace of image %s was not kept: %s", digest[:16], problem)

    def graduate(self, digest: str) -> bool:
        """Let it be mounted from local packs from now on, if every chunk is here; whether it will be."""
        try:
            return self._mounts.graduate(digest)
        except (GlowplugError, OSError) as problem:
            _log.warning("%s is mounted through the blob daemon: %s", digest[:16], problem)
            return False

    def prepare(self) -> None:
        """Do what the first mount would otherwise wait for: start the daemon, try the kernel's ways to mount.

        Raises Unavailable.
        """
        self._mounts.probe()
        self._daemon()

    def metrics(self) -> str:
        """The daemon's numbers as Prometheus text; empty while none runs."""
        try:
            return self._running(STATS_TIMEOUT_S).metrics()
        except GlowplugError:
            return ""

    def sweep(self) -> None:
        """Put right what killed processes left, and release what ended containers held.

        What was fetched completely since it was mounted is mounted without the daemon the next time.
        """
        self._mounts.sweep()
        for mounted in self._mounts.mounted():
            if mounted.kind == "lazy":
                self.graduate(mounted.digest)

    def release_all(self) -> None:
        """Unmount whatever nobody uses, and what :meth:`mount_by_hand` showed elsewhere."""
        for mounted in self._mounts.mounted():
            try:
                for place in _shown_at(mounted.path):
                    syscalls.unmount(place)
                self._mounts.unmount(mounted.digest)
            except GlowplugError as problem:
                _log.warning("image %s stays mounted: %s", mounted.digest[:16], problem.message)

    # --- what people do by hand ---

    def mount_by_hand(self, digest: str, target: Path | None) -> Mounted:
        """Mount it, and show it at ``target`` too. Raises InvalidInput for a target that cannot be."""
        if target is not None and (not target.is_dir() or any(target.iterdir())):
            raise InvalidInput(
                f"{target} is not an empty folder.", remedy="Name an empty folder.", path=str(target)
            )
        self._mounts.graduate(digest)
        mounted = self._mounts.mount(digest)
        if target is not None:
            syscalls.bind(mounted.path, target)
        return mounted

    def unmount_target(self, target: Path) -> None:
        """Undo a mount at a folder. Raises NotFound unless an image is shown there."""
        shown = mounted_at(target.resolve())
        if shown is None or shown.kind not in ("erofs", "fuse.glowplug"):
            raise NotFound(
                f"No image is mounted at {target}.",
                remedy="`glowplug image ls` shows mounts.",
                path=str(target),
            )
        syscalls.unmount(target)

    def prefetch(self, digest: str, job: Job, *, everything: bool) -> dict[str, Any]:
        """Fetch what traces say, or everything, and wait for it: ``{"bytes"}``. Raises Unavailable."""
        folder = self._catalog.get(digest)
        found = None if everything else trace.best(folder.path, [], folder.table())
        if not everything and found is None:
            raise InvalidInput(
                f"Image {digest[:16]} has no access trace yet.",
                remedy="Use --all, or start it once so that there is one.",
            )
        client = self._daemon()
        client.attach(digest)
        progress = client.prefetch(digest, None if found is None else found.order)
        while not progress.is_over:
            job.say("fetching", progress.done_bytes / progress.total_bytes if progress.total_bytes else None)
            if job.cancelled.is_set():
                client.prefetch_cancel(digest)
            job.check("fetching")
            progress = client.prefetch_status(digest, _PREFETCH_WAIT_S)
        _check(progress, digest)
        self._mounts.graduate(digest)
        return {"bytes": progress.done_bytes}

    def refresh(self, digest: str) -> None:
        """The image was pulled again: where its chunks lie may have changed."""
        try:
            self._running(STATS_TIMEOUT_S).refresh(digest)
        except GlowplugError:  # no daemon runs: it will read what is there when it does
            return

    def fetching(self) -> Fetching:
        """What the daemon fetches now, for all; nothing if none runs."""
        try:
            return self._running(FETCHING_TIMEOUT_S).stats().fetching
        except GlowplugError:
            return Fetching()

    def give_up(self, digest: str) -> None:
        """Fetch no more of it, and fail the reads that wait for that; a failure to do so is logged."""
        try:
            self._running(STATS_TIMEOUT_S).give_up(digest)
        except GlowplugError as problem:
            _log.warning("image %s goes on being fetched: %s", digest[:16], problem.message)

    def kind(self, digest: str) -> str | None:
        """How it is mounted; None if it is not."""
        return next((m.kind for m in self._mounts.mounted() if m.digest == digest), None)

    def fetch_ahead(self, digest: str, command: Sequence[str]) -> None:
        """Begin to fetch what ``command`` reads; a failure is logged: it is read, or not, when it is."""
        try:
            folder = self._catalog.get(digest)
            found = trace.best(folder.path, command, folder.table())
            if found is not None:
                self._daemon().prefetch(digest, found.order)
            elif predicted := _predicted(folder, command):
                self._daemon().prefetch(digest, predicted, is_guess=True)
        except (GlowplugError, OSError) as problem:
            _log.warning("nothing of image %s is fetched ahead: %s", digest[:16], problem)


def _predicted(folder: IndexFolder, command: Sequence[str]) -> array[int]:
    """What the command will read as far as the image's import graph tells, if it has one that is sound."""
    try:
        graph = ImportGraph.parse(folder.imports_path.read_bytes(), folder.table())
    except FileNotFoundError:
        return array("I")
    return predicted_chunks(graph, command)


def _shown_at(path: Path) -> list[Path]:
    """Other places where the filesystem mounted at ``path`` is, too; the last made first."""
    own = mounted_at(path)
    table = read_mount_table()
    return [entry.path for entry in reversed(table) if own and entry.device == own.device and entry != own]


def _check(progress: PrefetchProgress, digest: str) -> None:
    if progress.error is not None:
        raise GlowplugError.from_dict(progress.error)
    if progress.failed_chunks:
        raise Unavailable(
            f"{progress.failed_chunks} chunks of image {digest[:16]} could not be fetched.",
            remedy="Are region and zone reachable? The blob daemon's log tells; then try again.",
            digest=digest,
        )
