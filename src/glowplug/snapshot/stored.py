"""A finished snapshot in hand: prove its bytes, and keep them from being removed while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.snapshot.durable import io_error_as_snapshot_invalid
from glowplug.snapshot.hashing import hash_file
from glowplug.snapshot.locks import share_directory
from glowplug.snapshot.manifest import MANIFEST_NAME, STATUS_NAME, FileEntry, Manifest, invalid
from glowplug.snapshot.status import RestoreStatus
from glowplug.types.errors import NotFound
from glowplug.types.replica import SnapshotStatus, SnapshotView

Progress = Callable[[int, int], None]
"""Told ``(bytes done, bytes in all)`` as verification goes."""


@dataclass(frozen=True)
class Snapshot:
    """One generation of a snapshot. ``path`` is its real folder and stays valid while it is pinned.

    ``on_unpinned`` is told the path when a pin ends, so that the store can remove what nobody wants any more.
    """

    path: Path
    manifest: Manifest
    on_unpinned: Callable[[Path], object] = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        """The id made of the key."""
        return self.manifest.id

    @property
    def status(self) -> RestoreStatus:
        """How often it worked, read afresh."""
        return RestoreStatus.load(self.path)

    @contextmanager
    def pin(self) -> Iterator[Snapshot]:
        """Keep the files in place while the block runs, whoever removes or replaces the snapshot meanwhile.

        Raises NotFound if it is gone already. The pin ends with the process, should that be killed.
        """
        held = share_directory(self.path)
        if held is None:
            raise NotFound(
                f"Snapshot {self.id} was removed or replaced a moment ago.",
                remedy="Look it up again.",
                snapshot_id=self.id,
            )
        try:
            yield self
        finally:
            held.release()
            self.on_unpinned(self.path)

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte and compare. Raises SnapshotInvalid naming the file and what differs.

        Small files first: they fail fast, and a restore reads them first too.
        """
        with io_error_as_snapshot_invalid(self.id, "being verified"):
            self._verify_names_and_lengths()
            done_bytes = 0

            def advance(count: int) -> None:
                nonlocal done_bytes
                done_bytes += count
                if progress is not None:
                    progress(done_bytes, self.manifest.total_bytes)

            for name, expected in sorted(self.manifest.files.items(), key=lambda item: item[1].bytes):
                _require_equal(self.id, name, expected, hash_file(self.path / name, advance))

    def start_verification(self, executor: Executor) -> Future[None]:
        """Verify on ``executor`` while the restore runs. The future holds what :meth:`verify` raises.

        Pin the snapshot until the future is done.
        """
        return executor.submit(self.verify)

    def view(self) -> SnapshotView:
        """The snapshot as the agent's API tells it."""
        status = self.status
        manifest = self.manifest
        return SnapshotView(
            id=manifest.id,
            app=manifest.app,
            server=manifest.server,
            status=SnapshotStatus.QUARANTINED if status.is_quarantined else SnapshotStatus.GOOD,
            bytes=manifest.total_bytes,
            created_at=manifest.created_at,
            capture_s=manifest.timings.capture_s,
            frozen_s=manifest.timings.frozen_s,
            key=manifest.snapshot_key.digest,
            key_fields=dict(manifest.key),
            restores=status.restores,
            failures=status.failures,
            reason=status.reason,
        )

    def _verify_names_and_lengths(self) -> None:
        """Before any hashing: a missing, foreign or cut-off file shows at once."""
        with os.scandir(self.path) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
        for name, expected in self.manifest.files.items():
            if name not in found:
                raise invalid(self.id, "is missing", file=name)
            if found[name] != expected.bytes:
                raise invalid(self.id, _lengths_differ(expected, found[name]), file=name)
        for name in sorted(found.keys() - self.manifest.files.keys() - {MANIFEST_NAME, STATUS_NAME}):
            if not name.startswith("."):  # a half-written status of ours
                raise invalid(self.id, "is not listed in the manifest", file=name)


def _lengths_differ(expected: FileEntry, found_bytes: int) -> str:
    return f"has {found_bytes} bytes instead of {expected.bytes}"


def _require_equal(snapshot_id: str, name: str, expected: FileEntry, found: FileEntry) -> None:
    if found.bytes != expected.bytes:
        raise invalid(snapshot_id, _lengths_differ(expected, found.bytes), file=name)
    if found.blake3 != expected.blake3:
        raise invalid(
            snapshot_id,
            f"was altered: its BLAKE3 is {found.blake3[:16]}.. instead of {expected.blake3[:16]}..",
            file=name,
        )
