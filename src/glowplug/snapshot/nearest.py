"""Why there is no snapshot for a key: what comes closest to it, and what keeps that from being used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glowplug.snapshot.key import Difference, SnapshotKey, explain_differences
from glowplug.snapshot.stored import Snapshot


@dataclass(frozen=True)
class Nearest:
    """The closest one. ``differences`` of its key are none where it is this key's own."""

    snapshot_id: str
    differences: list[Difference]
    reason: str


def closest(key: SnapshotKey, snapshots: Iterable[Snapshot]) -> Nearest | None:
    """The one whose key differs least, of equal ones the newest; one that does not differ is none."""
    candidates = [
        (len(differences), -snapshot.manifest.created_at, snapshot.id, differences)
        for snapshot in snapshots
        if (differences := key.difference(snapshot.manifest.key))
    ]
    if not candidates:
        return None
    _, _, snapshot_id, differences = min(candidates)
    return Nearest(snapshot_id, differences, explain_differences(differences))
