"""A snapshot in the making: an empty folder for the runtime to write to, then sealed, then published.

Sealing hashes and fsyncs everything and writes the manifest, so that a trial restore from
:attr:`Staging.path` exercises the very bytes whose hashes were taken; publishing is one rename. Until then
nothing of it can be found by anybody, and whatever goes wrong leaves only the folder, which its owner (or,
after kill -9, the next sweep) removes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from glowplug.snapshot.durable import (
    full_disk_as_resource_exhausted,
    io_error_as_snapshot_invalid,
    sync_directory,
    sync_file,
    write_durably,
)
from glowplug.snapshot.hashing import hash_file
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.manifest import (
    MANIFEST_NAME,
    STATUS_NAME,
    FileEntry,
    Manifest,
    ManifestDraft,
    invalid,
)
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, SnapshotInvalid

_PARALLEL_FILES = 4


class Staging:
    """One capture. Made by ``SnapshotStore.begin``, which owns the folder and the capture lock."""

    def __init__(
        self, key: SnapshotKey, path: Path, clock: Clock, publish: Callable[[str, Path], Snapshot]
    ) -> None:
        self.key = key
        self.path = path
        self._clock = clock
        self._publish = publish
        self._is_sealed = False
        self._is_published = False

    @property
    def id(self) -> str:
        """The id the finished snapshot will have."""
        return self.key.id

    def seal(self, draft: ManifestDraft) -> Snapshot:
        """Hash and fsync all files and write the manifest. The folder must not change from here on.

        The result can be verified and restored from, but nobody else finds it yet. Raises SnapshotInvalid
        for a folder or a draft that no manifest can describe, ResourceExhausted for a full disk.
        """
        if self._is_sealed:
            raise Conflict(f"Snapshot {self.id} is sealed already.", snapshot_id=self.id)
        with (
            full_disk_as_resource_exhausted(self.id),
            io_error_as_snapshot_invalid(self.id, "being sealed"),
        ):
            encoded = self._encoded_manifest(draft, self._hash_and_sync(self._file_names()))
            # Read back what was written, so that a manifest nobody can read is noticed now.
            manifest = Manifest.decode(encoded, self.id)
            write_durably(self.path / MANIFEST_NAME, encoded)
            sync_directory(self.path)
        self._is_sealed = True
        return Snapshot(self.path, manifest, on_unpinned=lambda _path: None)

    def publish(self) -> Snapshot:
        """Put the sealed snapshot in place, replacing an older one of its id, in one step.

        :attr:`path` is gone afterwards; the result has its own. Raises Conflict unless sealed, and as
        :meth:`seal`.
        """
        if not self._is_sealed or self._is_published:
            state = "published already" if self._is_published else "not sealed yet"
            raise Conflict(f"Snapshot {self.id} is {state}.", snapshot_id=self.id)
        snapshot = self._publish(self.id, self.path)
        self._is_published = True
        return snapshot

    def commit(self, draft: ManifestDraft) -> Snapshot:
        """:meth:`seal` and :meth:`publish`, with nothing between."""
        self.seal(draft)
        return self.publish()

    def _file_names(self) -> list[str]:
        names: list[str] = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise self._unfit(entry.name, "is not a regular file, and a snapshot holds no others")
                if entry.name in (MANIFEST_NAME, STATUS_NAME):
                    raise self._unfit(entry.name, "has a name that Glowplug reserves for itself")
                names.append(entry.name)
        if not names:
            raise self._unfit(str(self.path), "is empty: the runtime captured nothing")
        return sorted(names)

    def _unfit(self, file: str, problem: str) -> SnapshotInvalid:
        return SnapshotInvalid(
            f"The capture of snapshot {self.id} cannot be kept: {file} {problem}.",
            remedy="The server goes on without a snapshot; `glowplug doctor` checks the runtime's version.",
            snapshot_id=self.id,
            file=file,
            problem=problem,
        )

    def _hash_and_sync(self, names: list[str]) -> dict[str, FileEntry]:
        """The disk writes one file out while the processor hashes another, or the same."""
        with ThreadPoolExecutor(_PARALLEL_FILES, "snapshot-seal") as pool:
            synced = [pool.submit(sync_file, self.path / name) for name in names]
            hashed = {name: pool.submit(hash_file, self.path / name) for name in names}
            for future in synced:
                future.result()
            return {name: future.result() for name, future in hashed.items()}

    def _encoded_manifest(self, draft: ManifestDraft, files: dict[str, FileEntry]) -> bytes:
        try:
            manifest = Manifest(
                id=self.id,
                app=draft.app,
                server=draft.server,
                deployment=draft.deployment,
                key=dict(self.key.fields),
                created_at=self._clock.wall(),
                files=files,
                canary=draft.canary,
                timings=draft.timings,
                tools=draft.tools,
            )
            return manifest.encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid(self.id, f"cannot be written: {str(error)[:300]}") from error
