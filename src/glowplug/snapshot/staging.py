"""A snapshot in the making: an empty folder for the runtime to write to, then sealed, then published.

Sealing hashes everything, moves it into the content store and writes the manifest, so that a trial restore
exercises the very bytes that later restores will read; publishing is one rename. Until then nothing of it can
be found by anybody, and whatever goes wrong leaves only the folder and content without a snapshot, which its
owner (or, after kill -9, the next sweep) removes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.durable import (
    full_disk_as_resource_exhausted,
    io_error_as_snapshot_invalid,
    sync_directory,
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
from glowplug.snapshot.references import ContentReferences
from glowplug.snapshot.sealing.manifests import Manifests
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import Clock
from glowplug.types.content import KeptFiles
from glowplug.types.errors import Conflict, SnapshotInvalid

_PARALLEL_FILES = 4
_NO_CONTENT = "0" * 64


class Staging:
    """One capture. Made by ``SnapshotStore.begin``, which owns the folders and the capture lock.

    The runtime writes to ``files``: that is ``path``, on the disk, unless snapshots are encrypted.
    """

    def __init__(
        self,
        key: SnapshotKey,
        path: Path,
        files: Path,
        clock: Clock,
        content: SnapshotContent,
        references: ContentReferences,
        manifests: Manifests,
        publish: Callable[[str, Path], Snapshot],
    ) -> None:
        self.key = key
        self.path = path
        self.files = files
        self._clock = clock
        self._content = content
        self._references = references
        self._manifests = manifests
        self._publish = publish
        self._is_sealed = False
        self._is_published = False

    @property
    def id(self) -> str:
        """The id the finished snapshot will have."""
        return self.key.id

    def seal(self, draft: ManifestDraft) -> Snapshot:
        """Move all files into the content store and write the manifest. The runtime must be done with them.

        The result can be verified and restored from, but nobody else finds it yet. Raises SnapshotInvalid
        for a folder or a draft that no manifest can describe, ResourceExhausted for a full disk.
        """
        if self._is_sealed:
            raise Conflict(f"Snapshot {self.id} is sealed already.", snapshot_id=self.id)
        with (
            full_disk_as_resource_exhausted(self.id),
            io_error_as_snapshot_invalid(self.id, "being sealed"),
            self._references.adding(self.id),
        ):
            names = self._file_names()
            hashed = self._hash(names)
            self._encoded_manifest(draft, hashed, KeptFiles(_NO_CONTENT, 0))  # refused before it is kept
            kept = self._content.keep(self.files, names)
            encoded = self._encoded_manifest(draft, hashed, kept)
            # Read back what was written, so that a manifest nobody can read is noticed now.
            stored = self._manifests.decode(encoded, self.id)
            write_durably(self.path / MANIFEST_NAME, encoded)
            for name in names:
                (self.files / name).unlink(missing_ok=True)
            sync_directory(self.path)
        self._is_sealed = True
        return Snapshot(self.path, stored, self._content, on_unpinned=lambda _path: None)

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
        with os.scandir(self.files) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    raise self._unfit(entry.name, "is not a regular file, and a snapshot holds no others")
                if entry.name in (MANIFEST_NAME, STATUS_NAME):
                    raise self._unfit(entry.name, "has a name that Glowplug reserves for itself")
                names.append(entry.name)
        if not names:
            raise self._unfit(str(self.files), "is empty: the runtime captured nothing")
        return sorted(names)

    def _unfit(self, file: str, problem: str) -> SnapshotInvalid:
        return SnapshotInvalid(
            f"The capture of snapshot {self.id} cannot be kept: {file} {problem}.",
            remedy="The server goes on without a snapshot; `glowplug doctor` checks the runtime's version.",
            snapshot_id=self.id,
            file=file,
            problem=problem,
        )

    def _hash(self, names: list[str]) -> dict[str, FileEntry]:
        with ThreadPoolExecutor(_PARALLEL_FILES, "snapshot-seal") as pool:
            hashed = {name: pool.submit(hash_file, self.files / name) for name in names}
            return {name: future.result() for name, future in hashed.items()}

    def _encoded_manifest(self, draft: ManifestDraft, files: dict[str, FileEntry], kept: KeptFiles) -> bytes:
        try:
            manifest = Manifest(
                id=self.id,
                app=draft.app,
                server=draft.server,
                deployment=draft.deployment,
                key=dict(self.key.fields),
                created_at=self._clock.wall() if draft.created_at is None else draft.created_at,
                files=files,
                content=kept.digest,
                deduplicated_bytes=kept.deduplicated_bytes,
                canary=draft.canary,
                hook_ports=draft.hook_ports,
                gpus=draft.gpus,
                timings=draft.timings,
                tools=draft.tools,
            )
            return self._manifests.encode(manifest)
        except (ValueError, TypeError, RecursionError) as error:
            raise invalid(self.id, f"cannot be written: {str(error)[:300]}") from error
