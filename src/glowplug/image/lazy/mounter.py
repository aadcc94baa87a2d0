"""One mount per image and node, made in milliseconds, whatever was killed before.

The kernel's own tables are the state: what is mounted, on what, and whether anybody still has it open. So
nothing has to be recovered when an agent starts again, and what a killed one left behind is recognised by
looking. Three rules keep a mount from ever reading something else than its image:

- pin, then mount; unpin only when nobody, in any mount namespace, has the image open any more;
- a mount on packs is made only under a pin that was taken together with the mark "every chunk is here";
- a lazy mount whose daemon's filesystem has gone is taken away; it answered with errors, never with zeros.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from glowplug.image.index.catalog import Catalog
from glowplug.image.index.folder import IndexFolder
from glowplug.image.job import Job
from glowplug.image.lazy import fuse_mount, page_cache
from glowplug.image.lazy.erofs_mount import gathered_content, mount_erofs, mount_erofs_on_loops
from glowplug.image.lazy.graduate import (
    PIN_PREFIX,
    Graduated,
    PinnedPacks,
    graduate,
    is_graduated,
    mark_name,
    read_graduated,
    release_if_abandoned,
)
from glowplug.image.lazy.held import CurrentMount, HeldImages, Kind, hold
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.plain_mount import mount_plain
from glowplug.image.lazy.probe import WAYS, Way, mount_support
from glowplug.image.lock import held, held_if_free
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, NotFound, SystemUnfit, Unavailable
from glowplug.types.paths import StateDir

_log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0  # somebody else's mount of the same image may have to start the daemon first
_PIN_PREFIX = "mount:"
_SERVER_ENDS_S = 1.0
_SERVER_POLL_S = 0.01


class BlobDaemon(Protocol):
    """What mounting needs of the daemon's client."""

    def attach(self, digest: str) -> object:
        """Make the daemon ready to serve this image. Raises NotFound, InvalidInput, Unavailable."""
        ...


@dataclass(frozen=True)
class MountSettings:
    """``forced``: the only way to mount that is tried, for tests and for people who look for a fault."""

    forced: Way | None = None

    @classmethod
    def from_environment(cls) -> MountSettings:
        """``GLOWPLUG_MOUNT``. Raises InvalidInput for a value that is no way."""
        value = os.environ.get("GLOWPLUG_MOUNT", "")
        for way in WAYS:
            if way == value:
                return cls(way)
        if not value:
            return cls()
        raise InvalidInput(
            f"GLOWPLUG_MOUNT is {value!r}.", remedy=f"Unset it, or use one of {', '.join(WAYS)}."
        )


@dataclass(frozen=True)
class Mounted:
    """An image's tree, read-only, below a folder that only its owner enters; ``seconds`` to mount it."""

    digest: str
    path: Path
    kind: Kind
    seconds: float = 0.0
    is_new: bool = False  # it was not mounted before


@dataclass
class Swept:
    """What :meth:`LazyMounts.sweep` did, by digest."""

    released: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)


class LazyMounts:
    """The images that are mounted on this machine. Safe from several threads and processes."""

    def __init__(
        self,
        state: StateDir,
        ssd: PinnedPacks,
        catalog: Catalog,
        daemon: Callable[[], BlobDaemon],
        settings: MountSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        # The kernel shows paths without links.
        self._state = StateDir(state.root.resolve())
        self._held = HeldImages(self._state)
        self._ssd = ssd
        self._catalog = catalog
        self._daemon = daemon
        self._settings = settings or MountSettings()
        self._clock = clock or SystemClock()

    def mount(self, digest: str, *, direct: bool = True) -> Mounted:
        """Mount it, unless it is. Without ``direct`` a new mount goes through the daemon, which sees reads.

        Raises NotFound, InvalidInput (a damaged index), Unavailable (no daemon), SystemUnfit (no way to).
        """
        started_s = self._clock.monotonic()
        target = self._held.target(digest)
        with self._alone(digest):
            folder = self._catalog.get(digest)
            direct = direct and self._settings.forced is None
            kept = self._keep(folder, direct=direct)
            kind = kept or self._mount(folder, direct=direct)
        return Mounted(digest, target, kind, self._clock.monotonic() - started_s, is_new=kept is None)

    def unmount(self, digest: str) -> None:
        """Take it away; if it is not mounted, nothing. Raises Conflict while somebody uses it.

        Containers that have their own copy of the mount keep it, and with it the image's pin: ``sweep``
        releases that when they have ended.
        """
        with self._alone(digest):
            current = self._held.current(digest)
            if current is not None:
                fuse_mount.unmount(self._held.target(digest))
            if current is not None and current.kind == "plain_fuse":
                self._wait_for_server(digest)
            self._release(digest)

    def forget_pages(self, digest: str) -> None:
        """Bytes of it were wrong: let the kernel read everything again.

        What it has cached of the daemon's file outlives mounts; of a mount in use it has each file, too.
        """
        target = self._held.target(digest)
        for folder, _, names in os.walk(target):
            for name in names:
                page_cache.forget_pages(Path(folder, name))
        page_cache.forget_pages(self._held.blobs / digest)

    def mounted(self) -> list[Mounted]:
        """All images mounted now, by digest."""
        found = []
        for digest in sorted(self._held.digests()):
            current = self._held.current(digest)
            if current is not None:
                found.append(Mounted(digest, self._held.target(digest), current.kind))
        return found

    def graduate(self, digest: str) -> bool:
        """Let it be mounted from local packs from the next mount on, if every chunk is here."""
        folder = self._catalog.get(digest)
        return self._can_mount_packs and graduate(
            folder, self._ssd, can_gather=self._can_gather, clock=self._clock
        )

    def probe(self) -> None:
        """Find out how this kernel mounts, before the first mount has to."""
        mount_support(self._state)

    def sweep(self) -> Swept:
        """Clean up after killed processes, and containers that ended since. Never waits for others."""
        swept = Swept()
        owners = list(self._ssd.pins())
        pinned = {owner.removeprefix(_PIN_PREFIX) for owner in owners if owner.startswith(_PIN_PREFIX)}
        for digest in sorted(self._held.digests() | pinned):
            with held_if_free(self._held.lock(digest)) as is_ours:
                if is_ours:
                    self._sweep_one(digest, is_pinned=digest in pinned, swept=swept)
        for owner in owners:
            if owner.startswith(PIN_PREFIX):
                self._sweep_graduation(owner.removeprefix(PIN_PREFIX))
        return swept

    # --- what is mounted already ---

    def _keep(self, folder: IndexFolder, *, direct: bool) -> Kind | None:
        """The kind of the current mount if it is good to go on with; one that is not is taken away."""
        current = self._held.current(folder.digest)
        if current is None:
            return None
        if not self._is_sound(folder.digest, current):
            _log.warning("image %s: its %s mount is dead, making a new one", folder.digest, current.kind)
            fuse_mount.detach(self._held.target(folder.digest))
            return None
        if (
            current.kind != "graduated"
            and direct
            and self._can_mount_packs
            and is_graduated(folder, self._ssd, can_gather=self._can_gather)
        ):
            return self._unmount_if_idle(folder.digest, current.kind)
        return current.kind

    @property
    def _can_mount_packs(self) -> bool:
        """Only as files. On block devices the kernel gives wrong bytes (Linux 6.18): where a file goes on in
        another pack at the block at which it left the one before, it reads on in that one."""
        return "lazy" in mount_support(self._state).ways

    @property
    def _can_gather(self) -> bool:
        return mount_support(self._state).can_gather

    def _is_sound(self, digest: str, current: CurrentMount) -> bool:
        if current.kind == "graduated":
            return self._ssd.is_complete(mark_name(digest, current.detail))
        if current.kind == "plain_fuse":
            return _answers(self._held.target(digest))
        self._daemon()  # one that died is replaced, and its filesystem with it
        return current.detail == self._blob_device()

    def _unmount_if_idle(self, digest: str, kind: Kind) -> Kind | None:
        """It has graduated: nothing but the present mount is in the way of a better one."""
        try:
            fuse_mount.unmount(self._held.target(digest))
        except Conflict:
            return kind
        return None

    # --- a new mount ---

    def _mount(self, folder: IndexFolder, *, direct: bool) -> Kind:
        target = self._held.target(folder.digest)
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            table = hold(folder.chunks_path, self._held.chunks(folder.digest), folder.manifest.chunks)
            self._held.hold_for_daemon(folder)
            if direct and self._mount_graduated(folder, table, target):
                return "graduated"
            self._ssd.pin(_PIN_PREFIX + folder.digest, table)
            return self._mount_some_way(folder, target)
        except BaseException:
            self._release(folder.digest)
            raise

    def _mount_graduated(self, folder: IndexFolder, table: Path, target: Path) -> bool:
        graduated = read_graduated(folder) if self._can_mount_packs else None
        if graduated is None or not graduated.record.is_mountable(can_gather=self._can_gather):
            return False
        if not self._ssd.pin_if_complete(_PIN_PREFIX + folder.digest, graduated.mark, table):
            return False
        try:
            self._mount_on_packs(folder, graduated, target)
        except (GlowplugError, OSError) as refused:
            _log.warning("image %s is not mounted from local packs: %s", folder.digest, refused)
            return False
        return True

    def _mount_on_packs(self, folder: IndexFolder, graduated: Graduated, target: Path) -> None:
        digest, record = folder.digest, graduated.record
        packs = [self._ssd.pack_path(pack) for pack in record.packs]
        link = self._held.graduated(digest, graduated.record_hash)
        index = hold(folder.graduated_index_path, link, record.index)
        if record.gathered is not None:
            link = self._held.gathered(digest, graduated.record_hash)
            with gathered_content(hold(folder.gathered_path, link, record.gathered), packs) as small_files:
                mount_erofs(index, [*packs, small_files], target, directio=True)
        else:
            mount_erofs(index, packs, target, directio=True)

    def _mount_some_way(self, folder: IndexFolder, target: Path) -> Kind:
        refusals: list[str] = []
        for way in [self._settings.forced] if self._settings.forced else mount_support(self._state).ways:
            try:
                self._mount_one_way(way, folder, target)
            except SystemUnfit as refused:
                _log.warning("image %s cannot be mounted as %s: %s", folder.digest, way, refused.message)
                refusals.append(f"{way}: {refused.message}")
            else:
                return way
        raise SystemUnfit(
            f"Image {folder.digest[:16]} cannot be mounted here: {' '.join(refusals) or 'no way works'}",
            remedy="`glowplug doctor` tells which ways of mounting work here, and why others do not.",
            digest=folder.digest,
        )

    def _mount_one_way(self, way: Way, folder: IndexFolder, target: Path) -> None:
        digest = folder.digest
        if way == "plain_fuse":
            link = hold(folder.index_path, self._held.plain(digest), folder.manifest.index)
            mount_plain(self._state, digest, link, target)
            return
        self._daemon().attach(digest)
        link = self._held.lazy(digest, self._blob_device())
        index = hold(folder.index_path, link, folder.manifest.index)
        blob = self._held.blobs / digest
        if way == "lazy":
            mount_erofs(index, [blob], target, directio=True)
        else:
            mount_erofs_on_loops(index, [blob], target)

    # --- the daemon ---

    def _blob_device(self) -> str:
        """The device number of the daemon's filesystem: another one after both its processes were killed."""
        entry = mounted_at(self._held.blobs)
        if entry is None:
            raise Unavailable(
                "The blob daemon has no filesystem.",
                remedy="See logs/blob-daemon.log in the state directory.",
            )
        return entry.device

    # --- letting go ---

    def _release(self, digest: str) -> bool:
        """Unpin and forget it, unless somebody still has it open; returns whether nobody has."""
        if self._held.is_used(digest):
            return False
        self._ssd.unpin(_PIN_PREFIX + digest)
        self._held.release(digest)
        return True

    def _wait_for_server(self, digest: str) -> None:
        """The process of a plain mount ends a moment after the unmount, unless a container has a copy."""
        deadline_s = self._clock.monotonic() + _SERVER_ENDS_S
        while self._held.is_used(digest) and self._clock.monotonic() < deadline_s:
            time.sleep(_SERVER_POLL_S)

    def _sweep_one(self, digest: str, *, is_pinned: bool, swept: Swept) -> None:
        try:
            current = self._held.current(digest)
        except Conflict as foreign:
            _log.warning("%s", foreign)
            return
        if current is not None and not self._is_worth_keeping(digest, current, is_pinned):
            fuse_mount.detach(self._held.target(digest))
            swept.detached.append(digest)
            current = None
        if current is None and self._release(digest):
            swept.released.append(digest)

    def _is_worth_keeping(self, digest: str, current: CurrentMount, is_pinned: bool) -> bool:
        return self._is_alive(digest, current) and (is_pinned or self._repin(digest, current))

    def _is_alive(self, digest: str, current: CurrentMount) -> bool:
        """As ``_is_sound``, but without starting a daemon."""
        if current.kind in ("graduated", "plain_fuse"):
            return self._is_sound(digest, current)
        entry = mounted_at(self._held.blobs)
        return entry is not None and entry.device == current.detail and _answers(self._held.blobs)

    def _repin(self, digest: str, current: CurrentMount) -> bool:
        """The SSD tier lost its records: pin again what is mounted. False if that cannot be made safe."""
        owner, table = _PIN_PREFIX + digest, self._held.chunks(digest)
        _log.error("image %s is mounted and was not pinned", digest)
        if current.kind == "graduated":
            return self._ssd.pin_if_complete(owner, mark_name(digest, current.detail), table)
        self._ssd.pin(owner, table)
        return True

    def _sweep_graduation(self, digest: str) -> None:
        try:
            release_if_abandoned(self._catalog.get(digest), self._ssd)
        except (NotFound, InvalidInput):  # the image was removed
            self._ssd.unpin(PIN_PREFIX + digest)

    @contextmanager
    def _alone(self, digest: str) -> Iterator[None]:
        job = Job(lambda _text, _fraction: None, self._clock, self._clock.monotonic() + LOCK_TIMEOUT_S)
        with held(self._held.lock(digest), job, f"waiting for the mount of image {digest[:16]}"):
            yield


def _answers(path: Path) -> bool:
    """Whether the FUSE filesystem at ``path`` has a server: asked for something that is never cached."""
    try:
        os.statvfs(path)
    except OSError:
        return False
    return True
