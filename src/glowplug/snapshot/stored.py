"""A finished snapshot in hand: prove its bytes, and keep them from being removed while they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.durable import io_error_as_snapshot_invalid
from glowplug.snapshot.hashing import hash_file
from glowplug.snapshot.locks import share_directory
from glowplug.snapshot.manifest import MANIFEST_NAME, STATUS_NAME, FileEntry, Manifest, invalid
from glowplug.snapshot.sealing.manifests import StoredManifest
from glowplug.snapshot.status import RestoreStatus
from glowplug.types.content import Fetching, TierRead, read_since
from glowplug.types.errors import Conflict, InvalidInput, KeyMissing, NotFound, SnapshotInvalid
from glowplug.types.replica import SnapshotStatus, SnapshotView

Progress = Callable[[int, int], None]
"""Told ``(bytes done, bytes in all)`` as verification goes."""


@dataclass(frozen=True)
class Snapshot:
    """One generation of a snapshot. ``path`` is its real folder, with what is said *about* it.

    Its files are in the content store: :meth:`open` tells where they can be read while it is pinned.
    ``on_unpinned`` is told the path when a pin ends, so that the store can remove what nobody wants any more.
    """

    path: Path
    stored: StoredManifest
    content: SnapshotContent = field(repr=False, compare=False)
    on_unpinned: Callable[[Path], object] = field(repr=False, compare=False)

    @property
    def manifest(self) -> Manifest:
        """What is said about it."""
        return self.stored.manifest

    @property
    def id(self) -> str:
        """The id made of the key."""
        return self.manifest.id

    @property
    def status(self) -> RestoreStatus:
        """How often it worked, read afresh."""
        return RestoreStatus.load(self.path)

    @property
    def used_at(self) -> float:
        """Unix time of the last restore, tried or done, else of when it came to this node."""
        for name in (STATUS_NAME, MANIFEST_NAME):  # the status is written with every restore
            with suppress(FileNotFoundError):
                return (self.path / name).stat().st_mtime
        return self.manifest.created_at

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
            with self.content.using(self.manifest.content):
                yield self
        finally:
            held.release()
            self.on_unpinned(self.path)

    def open(self) -> Path:
        """The folder of its files, to read and restore from. Pin it first.

        Raises SnapshotInvalid if they are lost or damaged; KeyMissing, ResourceExhausted, Unavailable or
        SystemUnfit if they cannot be shown at the moment.
        """
        try:
            return self.content.open(self.manifest.content)
        except (NotFound, InvalidInput) as problem:
            raise invalid(self.id, f"is damaged: {problem.message}", file="content") from problem

    def fetched(self) -> dict[str, TierRead]:
        """What was fetched of it from other machines so far, by tier."""
        return self.content.fetched(self.manifest.content)

    def missing_bytes(self) -> int:
        """How much of it is not on this node."""
        return self.content.usage(self.manifest.content).missing_bytes

    def fetching(self) -> Fetching:
        """What comes from other machines now, of this snapshot and of everything else."""
        return self.content.fetching()

    def give_up(self) -> None:
        """Nobody waits for what is not here any more: whoever reads that fails at once."""
        self.content.give_up(self.manifest.content)

    def read_by_tier(self, fetched_before: dict[str, TierRead]) -> dict[str, TierRead]:
        """Where it was, as a restore that began at ``fetched_before`` and is over found it."""
        fetched = read_since(fetched_before, self.fetched())
        here_bytes, here_chunks = self.manifest.total_bytes, self.content.chunks(self.manifest.content)
        for read in fetched.values():
            here_bytes -= read.bytes
            here_chunks -= read.chunks
        here = TierRead(here_bytes, max(0, here_chunks))
        return {"ssd": here, **fetched} if here_bytes > 0 else fetched

    def verify(self, progress: Progress | None = None, stopped: threading.Event | None = None) -> None:
        """Read every byte and compare. Raises SnapshotInvalid naming the file and what differs.

        Small files first: they fail fast, and a restore reads them first too. Raises Conflict soon after
        ``stopped`` is set: bytes that come from far away may take long.
        """
        folder = self.open()
        with io_error_as_snapshot_invalid(self.id, "being verified"):
            self._verify_names_and_lengths(folder)
            done_bytes = 0

            def advance(count: int) -> None:
                nonlocal done_bytes
                if stopped is not None and stopped.is_set():
                    raise Conflict("The verification was stopped.", snapshot_id=self.id)
                done_bytes += count
                if progress is not None:
                    progress(done_bytes, self.manifest.total_bytes)

            for name, expected in sorted(self.manifest.files.items(), key=lambda item: item[1].bytes):
                _require_equal(self.id, name, expected, hash_file(folder / name, advance))

    def view(self) -> SnapshotView:
        """The snapshot as the agent's API tells it."""
        status = self.status
        manifest = self.manifest
        usage = self.content.usage(manifest.content)
        return SnapshotView(
            id=manifest.id,
            app=manifest.app,
            server=manifest.server,
            status=SnapshotStatus.QUARANTINED if status.is_quarantined else SnapshotStatus.GOOD,
            bytes=manifest.total_bytes,
            content=manifest.content,
            sealed_with=self.stored.sealed_with,
            here_bytes=usage.here_bytes,
            deduplicated_bytes=manifest.deduplicated_bytes,
            is_in_region=usage.is_in_region,
            used_by=status.used_by,
            created_at=manifest.created_at,
            used_at=self.used_at,
            capture_s=manifest.timings.capture_s,
            frozen_s=manifest.timings.frozen_s,
            key=manifest.snapshot_key.digest,
            key_fields=dict(manifest.key),
            canary=manifest.canary_words,
            gpus=manifest.gpu_views,
            restores=status.restores,
            failures=status.failures,
            reason=status.reason,
        )

    def _verify_names_and_lengths(self, folder: Path) -> None:
        """Before any hashing: a missing, foreign or cut-off file shows at once."""
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}
        for name, expected in self.manifest.files.items():
            if name not in found:
                raise invalid(self.id, "is missing", file=name)
            if found[name] != expected.bytes:
                raise invalid(self.id, _lengths_differ(expected, found[name]), file=name)
        for name in sorted(found.keys() - self.manifest.files.keys()):
            raise invalid(self.id, "is not listed in the manifest", file=name)


def unreadable_view(snapshot_id: str, error: SnapshotInvalid | KeyMissing) -> SnapshotView:
    """What can be told of a snapshot whose manifest cannot be read, here or in the region."""
    is_locked = isinstance(error, KeyMissing)
    return SnapshotView(
        id=snapshot_id,
        app="",
        server="",
        status=SnapshotStatus.LOCKED if is_locked else SnapshotStatus.QUARANTINED,
        key="",
        sealed_with=error.details["key_id"] if is_locked else None,
        reason=error.message,
    )


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
