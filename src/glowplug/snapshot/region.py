"""What is said about snapshots in a region: ``snapshots/<id>.json``, a stored manifest, byte for byte.

The content it names is in the region before it, so a snapshot that can be found there can be had. Any node
that computes the same key finds it under the same id. What is read is treated as hostile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from glowplug.chunks.objects import WriteObjects
from glowplug.snapshot.layout import is_snapshot_id
from glowplug.snapshot.sealing.manifests import MAX_STORED_BYTES, Manifests, StoredManifest, content_named
from glowplug.types.errors import KeyMissing, NotFound, SnapshotInvalid

_log = logging.getLogger(__name__)

_PREFIX = "snapshots/"
_TIMEOUT_S = 30.0


class RegionSnapshots:
    """The snapshots of one region. Raises Unavailable and DeadlineExceeded, whatever is asked."""

    def __init__(self, objects: WriteObjects, manifests: Manifests | None = None) -> None:
        self.objects = objects
        self._manifests = manifests or Manifests()

    def write(self, stored: StoredManifest) -> None:
        """Make it known, in place of an older one of its id. Its content must be there."""
        self.objects.write(_key(stored.manifest.id), stored.raw, _TIMEOUT_S)

    def has(self, snapshot_id: str) -> bool:
        """Whether one of this id, sound or not, is known there."""
        return any(info.key == _key(snapshot_id) for info in self.objects.list(_key(snapshot_id)))

    def ids(self) -> Sequence[str]:
        """What there is, sound or not."""
        return [info.key.removeprefix(_PREFIX).removesuffix(".json") for info in self.objects.list(_PREFIX)]

    def contents(self) -> set[str]:
        """Digests of the content that must be kept for what is there, whoever can open it.

        Raises SnapshotInvalid if one does not tell.
        """
        found = set()
        for snapshot_id in self.ids():
            try:
                found.add(content_named(self._read(snapshot_id, _TIMEOUT_S), snapshot_id))
            except NotFound:  # removed meanwhile, or nothing of ours
                continue
            except SnapshotInvalid as problem:
                raise SnapshotInvalid(
                    f"It is not known what {snapshot_id} in the region needs: {problem.message}",
                    remedy=f"Remove it (glowplug snapshot rm --region {snapshot_id}), or push it again.",
                    snapshot_id=snapshot_id,
                ) from problem
        return found

    def look(self, snapshot_id: str) -> StoredManifest | KeyMissing | None:
        """One of :meth:`ids`: None, and a line in the log, if it is gone meanwhile or nothing of ours."""
        try:
            return self.read(snapshot_id)
        except KeyMissing as locked:
            return locked
        except (NotFound, SnapshotInvalid) as problem:
            _log.warning("%s: %s", _key(snapshot_id), problem.message)
            return None

    def remove(self, snapshot_id: str) -> str | None:
        """Forget it, but not its content, whose digest is returned if it tells. Raises NotFound."""
        data = self._read(snapshot_id, _TIMEOUT_S)
        digest: str | None = None
        try:
            digest = content_named(data, snapshot_id)
        except SnapshotInvalid as problem:
            _log.warning("removing %s, which is not sound: %s", snapshot_id, problem.message)
        self.objects.delete([_key(snapshot_id)])
        return digest

    def read(self, snapshot_id: str, timeout_s: float = _TIMEOUT_S) -> StoredManifest:
        """Raises NotFound, SnapshotInvalid, KeyMissing."""
        return self._manifests.decode(self._read(snapshot_id, timeout_s), snapshot_id)

    def _read(self, snapshot_id: str, timeout_s: float) -> bytes:
        if not is_snapshot_id(snapshot_id):
            raise _absent(snapshot_id)
        try:
            return self.objects.read_all(_key(snapshot_id), MAX_STORED_BYTES, timeout_s)
        except NotFound as error:
            raise _absent(snapshot_id) from error


def _key(snapshot_id: str) -> str:
    return f"{_PREFIX}{snapshot_id}.json"


def _absent(snapshot_id: str) -> NotFound:
    return NotFound(
        f"There is no snapshot {snapshot_id[:64]!r} in the region.",
        remedy="`glowplug snapshot push` brings one there, on a node that has it.",
        snapshot_id=snapshot_id[:64],
    )
