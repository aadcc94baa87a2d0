"""Snapshots between nodes, by way of the region: content first, then the manifest that makes it known.

A pushed snapshot is from then on a cached one here: its bytes may go when room is needed, and come back when
they are read. A pulled one is restored like one captured here, if this node computes the same key for it:
every byte is compared with the manifest, and the canary is asked. A node that seals snapshots lets no other
ones out, and takes no others from the region: whoever can write there could have made them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from glowplug.image.file_trees import FileTrees
from glowplug.image.job import Job, Progress
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.region import RegionSnapshots
from glowplug.snapshot.sealing.manifests import StoredManifest
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot, unreadable_view
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, KeyMissing, NotFound, SnapshotInvalid
from glowplug.types.replica import SnapshotStatus, SnapshotView

MOVE_TIMEOUT_S = 24 * 3600.0
BRING_TIMEOUT_S = 60.0
"""For a manifest and an index. A start does not wait that long: see :mod:`glowplug.node.snapshot_search`."""


@dataclass(frozen=True)
class SnapshotMoves:
    """``region`` opens the region that this node belongs to; it raises InvalidInput if there is none."""

    snapshots: SnapshotStore
    files: FileTrees
    region: Callable[[], RegionSnapshots]
    clock: Clock

    def push(self, snapshot_id: str, progress: Progress, cancelled: threading.Event) -> dict[str, Any]:
        """``{"id", "sent_bytes", "skipped_bytes"}``. Raises NotFound, SnapshotInvalid for a bad one, .."""
        region = self.region()
        snapshot = self.snapshots.get(snapshot_id)
        if snapshot.status.is_quarantined:
            raise SnapshotInvalid(
                f"Snapshot {snapshot_id} is quarantined: {snapshot.status.reason or 'no reason given'}.",
                remedy=f"Let it be captured anew (`glowplug snapshot rm {snapshot_id}`), then push that.",
                snapshot_id=snapshot_id,
            )
        self._require_sealed(snapshot.stored, "here")
        with snapshot.pin(), self.files.pushing() as lease:

            def report(text: str, fraction: float | None) -> None:
                lease.renew()
                progress(text, fraction)

            result = self.files.push(snapshot.manifest.content, self.job(report, cancelled))
            lease.renew()
            region.write(snapshot.stored)
        sent = {name: result[name] for name in ("sent_bytes", "skipped_bytes")}
        return {"id": snapshot_id, **sent}

    def pull(
        self, snapshot_id: str, progress: Progress, cancelled: threading.Event, *, content: bool
    ) -> dict[str, Any]:
        """``{"id", "bytes"}``: known here from then on; with ``content`` all its bytes are fetched, too.

        Replaces one of its id. Raises NotFound, SnapshotInvalid, Conflict while it is captured here, ..
        """
        region = self.region()
        stored = region.read(snapshot_id)
        self._require_sealed(stored, "in the region")
        job = self.job(progress, cancelled)
        self.take_over(stored, job)
        fetched_bytes = self.files.prefetch(stored.manifest.content, job) if content else 0
        return {"id": snapshot_id, "bytes": fetched_bytes}

    def take_over(self, stored: StoredManifest, job: Job, *, is_wanted_now: bool = False) -> Snapshot:
        """Make what the region has known here. Raises Conflict while it is captured here, NotFound .."""
        content, objects = stored.manifest.content, self.region().objects
        return self.snapshots.adopt(
            stored, lambda: self.files.pull(content, objects, job, is_wanted_now=is_wanted_now)
        )

    def in_region(self) -> list[SnapshotView]:
        """What the region has. Of these, ``here_bytes`` are on this node."""
        region = self.region()
        found = [(snapshot_id, region.look(snapshot_id)) for snapshot_id in region.ids()]
        views = [self._view(snapshot_id, stored) for snapshot_id, stored in found if stored is not None]
        return sorted(views, key=lambda view: -view.created_at)

    def remove_from_region(self, snapshot_id: str) -> None:
        """Let no other node find it; those that know it keep what they have of it.

        Raises NotFound, SnapshotInvalid, Conflict while somebody pushes.
        """
        region = self.region()
        content = region.remove(snapshot_id)
        if content is not None and content not in region.contents():
            with suppress(NotFound):
                self.files.remove_from_region(content, self.job(lambda _text, _fraction: None))

    def collect_in_region(
        self, progress: Progress, cancelled: threading.Event, *, grace_s: float
    ) -> dict[str, Any]:
        """``{"removed", "waiting"}``: contents that no snapshot there has referred to for ``grace_s`` go.

        Raises Conflict while somebody pushes, SnapshotInvalid if a snapshot does not tell what it needs.
        """
        region = self.region()
        return asdict(self.files.collect_in_region(region.contents, self.job(progress, cancelled), grace_s))

    def bring(self, key: SnapshotKey) -> Snapshot | None:
        """Make the region's snapshot of exactly this key known here; None if it has none.

        Raises SnapshotInvalid, Conflict while one is captured here, and what the region raises.
        """
        region = self.region()
        job = Job(lambda _text, _fraction: None, self.clock, self.clock.monotonic() + BRING_TIMEOUT_S)
        try:
            stored = region.read(key.id, BRING_TIMEOUT_S)
        except NotFound:
            return None
        if stored.manifest.key != dict(key.fields):  # another key with the same id: 64 bits of a hash
            return None
        self._require_sealed(stored, "in the region")
        return self.take_over(stored, job, is_wanted_now=True)

    def job(self, progress: Progress, cancelled: threading.Event | None = None) -> Job:
        """For what may take long: a day at most."""
        deadline_s = self.clock.monotonic() + MOVE_TIMEOUT_S
        return Job(progress, self.clock, deadline_s, cancelled or threading.Event())

    def _require_sealed(self, stored: StoredManifest, where: str) -> None:
        if self.snapshots.manifests.keys is None or stored.sealed_with is not None:
            return
        raise InvalidInput(
            f"Snapshot {stored.manifest.id} {where} is not sealed, and this node has snapshot keys: "
            "it gives and takes sealed ones only.",
            remedy="`glowplug snapshot reseal` seals what is plain, here and in the region.",
            snapshot_id=stored.manifest.id,
        )

    def _view(self, snapshot_id: str, found: StoredManifest | KeyMissing) -> SnapshotView:
        if isinstance(found, KeyMissing):
            return unreadable_view(snapshot_id, found).model_copy(update={"is_in_region": True})
        manifest = found.manifest
        return SnapshotView(
            id=manifest.id,
            app=manifest.app,
            server=manifest.server,
            status=SnapshotStatus.GOOD,
            bytes=manifest.total_bytes,
            content=manifest.content,
            sealed_with=found.sealed_with,
            here_bytes=self.files.usage(manifest.content).here_bytes,
            is_in_region=True,
            created_at=manifest.created_at,
            key=manifest.snapshot_key.digest,
            key_fields=dict(manifest.key),
            gpus=manifest.gpu_views,
        )
