"""The snapshots of one machine, each always wholly there or not there at all.

Whatever is killed, or fills up, at whatever moment: a reader finds the older generation of a snapshot or the
newer, complete and checked, and :meth:`SnapshotStore.sweep` removes the rest at the next start. One capture
per id at a time; a generation in use outlives its removal or replacement until its last user is done. The
files themselves are in the content store, and go when the last snapshot that needs them has gone.
Reading methods touch nothing; all of it may be called from several threads and processes at once.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.durable import (
    full_disk_as_resource_exhausted,
    io_error_as_snapshot_invalid,
    remove_tree,
    require_free_bytes,
    sync_directory,
    write_durably,
)
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.layout import Layout, is_snapshot_id, owner_of
from glowplug.snapshot.locks import FileLock, HeldLock, own_directory
from glowplug.snapshot.manifest import MANIFEST_NAME, invalid
from glowplug.snapshot.nearest import Nearest, closest
from glowplug.snapshot.references import ContentReferences, read_manifest
from glowplug.snapshot.sealing.manifests import Manifests, StoredManifest
from glowplug.snapshot.staging import Staging
from glowplug.snapshot.status import RestoreStatus
from glowplug.snapshot.stored import Snapshot, unreadable_view
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import Conflict, DeadlineExceeded, KeyMissing, NotFound, SnapshotInvalid
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotView

_log = logging.getLogger(__name__)

_CHANGE_TIMEOUT_S = 10.0
"""Changes take a few fsyncs; a disk that needs longer than this for them is itself the problem."""

_READ_ATTEMPTS = 10
"""How often a snapshot may be replaced under a reader before the reader gives up."""


class SnapshotStore:
    """All finished snapshots below one state directory, and the captures on their way to become one.

    ``manifests`` is told how this node writes and reads them; ``content`` seals if that does.
    """

    def __init__(
        self,
        state: StateDir,
        content: SnapshotContent,
        clock: Clock | None = None,
        manifests: Manifests | None = None,
    ) -> None:
        self.manifests = manifests or Manifests()
        self._layout = Layout(state)
        self._content = content
        self._references = ContentReferences(self._layout, content)
        self._clock: Clock = clock or SystemClock()
        self._has_left_something = False

    @contextmanager
    def begin(self, key: SnapshotKey, expected_bytes: int = 0) -> Iterator[Staging]:
        """A fresh, empty folder to capture into; it is gone after the block unless it was published.

        Raises Conflict while somebody else captures this key, ResourceExhausted when fewer than
        ``expected_bytes`` are free or the disk fills up inside the block.
        """
        try:
            with full_disk_as_resource_exhausted(key.id), self._capture_lock(key.id):
                path = self._staging_folder(key.id, expected_bytes)
                try:
                    with self._content.capture_folder(path, expected_bytes) as files:
                        yield self._staging(key, path, files)
                finally:
                    self._remove_or_warn(path)
        finally:
            self._references.drop_unneeded()

    def adopt(self, stored: StoredManifest, fetch: Callable[[], None]) -> Snapshot:
        """Publish a snapshot captured elsewhere; ``fetch`` sees to it that its content is known here.

        It replaces one of its id. Raises Conflict while that is captured here, and what ``fetch`` raises.
        """
        manifest = stored.manifest
        try:
            with full_disk_as_resource_exhausted(manifest.id), self._capture_lock(manifest.id):
                path = self._staging_folder(manifest.id, 0)
                try:
                    with self._references.adding(manifest.id):
                        fetch()
                        write_durably(path / MANIFEST_NAME, stored.raw)
                        sync_directory(path)
                    return self._publish(manifest.id, path)
                finally:
                    self._remove_or_warn(path)
        finally:
            self._references.drop_unneeded()

    def get(self, snapshot_id: str) -> Snapshot:
        """The finished snapshot. Raises NotFound; SnapshotInvalid for an unsound manifest; KeyMissing."""
        for _ in range(_READ_ATTEMPTS):
            self._require_present(snapshot_id)
            generation = self._layout.current(snapshot_id)
            if generation is None:
                continue  # published this instant, or nothing this store made: the loop's end tells
            try:
                return self._snapshot(generation, snapshot_id)
            except SnapshotInvalid:
                # Broken, or replaced and removed while we read it? Only then does the link point elsewhere.
                if self._layout.current(snapshot_id) == generation:
                    raise
        raise invalid(snapshot_id, "is not what this store writes, or changes all the time", file=snapshot_id)

    def has(self, snapshot_id: str) -> bool:
        """Whether there is one of this id, whatever its state."""
        return self._layout.current(snapshot_id) is not None

    def find(self, key: SnapshotKey) -> Snapshot | None:
        """The snapshot to restore for ``key``: None if there is none, or it is quarantined.

        Raises SnapshotInvalid for one whose manifest is not sound, KeyMissing for one locked here.
        :meth:`nearest` tells why there is none.
        """
        try:
            snapshot = self.get(key.id)
        except NotFound:
            return None
        if snapshot.manifest.key != dict(key.fields) or snapshot.status.is_quarantined:
            return None
        return snapshot

    def nearest(self, key: SnapshotKey, app: str, server: str) -> Nearest | None:
        """What :meth:`find` nearly found: this key's own snapshot, or the most similar of the same server."""
        own = self._own_obstacle(key)
        if own is not None:
            return own
        of_server = (
            snapshot
            for snapshot in self._sound_snapshots()
            if (snapshot.manifest.app, snapshot.manifest.server) == (app, server)
        )
        return closest(key, of_server)

    def list(self) -> list[SnapshotView]:
        """Every finished snapshot, newest first. One that is not sound is listed as quarantined, and why."""
        views = (self._view_or_none(snapshot_id) for snapshot_id in self._layout.ids())
        found = (view for view in views if view is not None)
        return sorted(found, key=lambda view: (-view.created_at, view.id))

    def view(self, snapshot_id: str) -> SnapshotView:
        """One line of :meth:`list`. Raises NotFound."""
        try:
            return self.get(snapshot_id).view()
        except (SnapshotInvalid, KeyMissing) as error:
            return unreadable_view(snapshot_id, error)

    def remove(self, snapshot_id: str, force: bool = False) -> None:
        """Forget a snapshot. Raises NotFound, and Conflict while it is in use.

        With ``force`` one in use is forgotten at once, and its bytes go when its last user is done.
        """
        self._require_present(snapshot_id)
        with self._change(snapshot_id):
            generation = self._layout.current(snapshot_id)
            if generation is None:
                self._require_present(snapshot_id)
                remove_tree(self._layout.link(snapshot_id))
                return
            owned = own_directory(generation)
            if owned is None and generation.is_dir() and not force:
                raise Conflict(
                    f"Snapshot {snapshot_id} is in use: a replica is being restored from it.",
                    remedy="Wait until the restore is done, or remove it with --force.",
                    snapshot_id=snapshot_id,
                )
            self._unlink_and_discard(snapshot_id, generation, owned)

    def quarantine(self, snapshot_id: str, reason: str) -> RestoreStatus:
        """Never restore this one again; it stays for inspection. Raises NotFound."""
        return self._update_status(snapshot_id, lambda status: status.quarantined(reason))

    def record_damage(self, snapshot_id: str, reason: str) -> RestoreStatus:
        """Bytes of it were wrong: forget those, and quarantine it unless the region can make it good.

        Otherwise it is one more failed restore. Raises NotFound.
        """
        if self._content.drop_damage(self.get(snapshot_id).manifest.content):
            return self.record_restore(snapshot_id, False, reason)
        return self.quarantine(snapshot_id, reason)

    def record_restore(self, snapshot_id: str, ok: bool, reason: str = "", server: str = "") -> RestoreStatus:
        """Count a restore, of this server (``app/server``). The third failure in a row quarantines.

        Raises NotFound.
        """
        if ok:
            with suppress(SnapshotInvalid):  # it is told of by whoever looks for it next
                self._content.note_use(self.get(snapshot_id).manifest.content)
            return self._update_status(snapshot_id, lambda status: status.after_success(server))
        return self._update_status(snapshot_id, lambda status: status.after_failure(reason))

    def sweep(self) -> tuple[str, ...]:
        """Remove what killed processes left behind, and return its names. Captures under way are spared."""
        self._layout.create()
        self._has_left_something = False
        removed: list[str] = []
        for path in [*self._layout.staging.iterdir(), *self._layout.generations.iterdir()]:
            owner = owner_of(path.name)
            if owner is not None and self._sweep_one(path, owner):
                removed.append(path.name)
        self._references.drop_unneeded()
        return tuple(sorted(removed))

    def sweep_again(self) -> None:
        """As :meth:`sweep` if something could not be removed, by a failing disk, since; else nothing."""
        if self._has_left_something:
            self.sweep()

    def _sweep_one(self, path: Path, owner: str) -> bool:
        """Remove one thing that belongs to no capture under way, no snapshot and no user."""
        lock = FileLock(self._layout.capture_lock(owner)).try_acquire()
        if lock is None:
            return False
        with lock:
            if path == self._layout.capture_lock(owner):
                return True  # releasing it removes it
            if path.parent == self._layout.generations:
                return self._discard(path)
            return self._remove_or_warn(path)

    def _capture_lock(self, snapshot_id: str) -> HeldLock:
        with io_error_as_snapshot_invalid(snapshot_id, "being begun"):
            self._layout.create()
            lock = FileLock(self._layout.capture_lock(snapshot_id)).try_acquire()
        if lock is None:
            raise Conflict(
                f"Snapshot {snapshot_id} is being captured right now.",
                remedy="Wait for that capture to finish; `glowplug snapshot ls` shows it.",
                snapshot_id=snapshot_id,
            )
        return lock

    def _staging_folder(self, snapshot_id: str, expected_bytes: int) -> Path:
        with io_error_as_snapshot_invalid(snapshot_id, "being begun"):
            require_free_bytes(self._layout.staging, expected_bytes, snapshot_id)
            return Path(tempfile.mkdtemp(prefix=f"{snapshot_id}.", dir=self._layout.staging))

    def _staging(self, key: SnapshotKey, path: Path, files: Path) -> Staging:
        return Staging(
            key, path, files, self._clock, self._content, self._references, self.manifests, self._publish
        )

    def _snapshot(self, folder: Path, snapshot_id: str) -> Snapshot:
        stored = self.manifests.decode(read_manifest(folder, snapshot_id), snapshot_id)
        return Snapshot(folder, stored, self._content, self._discard)

    def _publish(self, snapshot_id: str, staged: Path) -> Snapshot:
        """Move a sealed folder in place; the link's rename is the moment it becomes the snapshot."""
        layout = self._layout
        generation = layout.generations / staged.name
        new_link = layout.staging / f"{staged.name}.link"
        link = layout.link(snapshot_id)
        snapshot = self._snapshot(staged, snapshot_id)
        with self._change(snapshot_id):
            replaced = layout.current(snapshot_id)
            try:
                if replaced is None:
                    remove_tree(link)  # whatever it is, it is no snapshot of ours
                staged.rename(generation)
                sync_directory(layout.generations)
                new_link.symlink_to(layout.link_target(generation))
                new_link.replace(link)
            except BaseException:
                new_link.unlink(missing_ok=True)
                self._discard(generation)  # unless the link points at it already
                raise
            sync_directory(layout.root)
        if replaced is not None:
            self._discard(replaced)
        return replace(snapshot, path=generation)

    def _discard(self, generation: Path) -> bool:
        """Remove a generation that is neither the current one nor in use; whether it was removed.

        Failing to is no failure of what the caller did: the next sweep tries again.
        """
        owner = owner_of(generation.name)
        if owner is None or self._layout.current(owner) == generation:
            return False
        owned = own_directory(generation)
        if owned is None:
            return False
        with owned:
            is_removed = self._remove_or_warn(generation)
        self._references.drop_unneeded()
        return is_removed

    def _remove_or_warn(self, path: Path) -> bool:
        try:
            remove_tree(path)
        except OSError as error:
            _log.warning("could not remove %s, the next sweep tries again: %s", path, error)
            self._has_left_something = True
            return False
        return True

    def _unlink_and_discard(self, snapshot_id: str, generation: Path, owned: HeldLock | None) -> None:
        """Forget first, then remove: a crash between leaves an unreferenced generation for the sweep."""
        try:
            self._layout.link(snapshot_id).unlink()
            sync_directory(self._layout.root)
        finally:
            if owned is not None:
                owned.release()
        self._discard(generation)

    @contextmanager
    def _change(self, snapshot_id: str) -> Iterator[None]:
        """One change of the store at a time; what the disk says against it becomes one of our errors."""
        with (
            full_disk_as_resource_exhausted(snapshot_id),
            io_error_as_snapshot_invalid(snapshot_id, "being changed"),
            self._change_lock(snapshot_id),
        ):
            yield

    def _change_lock(self, snapshot_id: str) -> HeldLock:
        self._layout.create()
        lock = FileLock(self._layout.change_lock).acquire(_CHANGE_TIMEOUT_S)
        if lock is None:
            raise DeadlineExceeded(
                f"Snapshot {snapshot_id} could not be changed: the store was busy for {_CHANGE_TIMEOUT_S} s.",
                remedy="Look for a disk that hangs (`dmesg`), and try again.",
                snapshot_id=snapshot_id,
                stage="snapshot_store",
            )
        return lock

    def _update_status(
        self, snapshot_id: str, change: Callable[[RestoreStatus], RestoreStatus]
    ) -> RestoreStatus:
        self._require_present(snapshot_id)
        with self._change(snapshot_id):
            generation = self._layout.current(snapshot_id)
            if generation is None:
                raise self._absent(snapshot_id)
            status = change(RestoreStatus.load(generation))
            status.save(generation)
            return status

    def _own_obstacle(self, key: SnapshotKey) -> Nearest | None:
        try:
            snapshot = self.get(key.id)
        except NotFound:
            return None
        except (SnapshotInvalid, KeyMissing) as error:
            return Nearest(key.id, [], error.message)
        status = snapshot.status
        if not status.is_quarantined:
            return None
        return Nearest(key.id, [], f"snapshot {key.id} is quarantined: {status.reason or 'no reason given'}")

    def _sound_snapshots(self) -> Iterator[Snapshot]:
        for snapshot_id in self._layout.ids():
            try:
                yield self.get(snapshot_id)
            except (NotFound, SnapshotInvalid, KeyMissing) as error:
                _log.debug("passing over snapshot %s: %s", snapshot_id, error.message)

    def _view_or_none(self, snapshot_id: str) -> SnapshotView | None:
        try:
            return self.view(snapshot_id)
        except NotFound:  # removed since its name was read
            return None

    def _require_present(self, snapshot_id: str) -> None:
        if not is_snapshot_id(snapshot_id) or not os.path.lexists(self._layout.link(snapshot_id)):
            raise self._absent(snapshot_id)

    def _absent(self, snapshot_id: str) -> NotFound:
        return NotFound(
            f"There is no snapshot {snapshot_id[:64]!r}.",
            remedy="`glowplug snapshot ls` lists those there are.",
            snapshot_id=snapshot_id[:64],
        )
