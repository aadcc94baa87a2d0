"""Which snapshot a start restores, or why it starts cold."""

from __future__ import annotations

from glowplug.node.gpu_snapshots import GpuSnapshots
from glowplug.node.probation import NodeProbation
from glowplug.node.restore_watch import RestoreWatches
from glowplug.node.snapshot_search import SnapshotSearch
from glowplug.node.start_times import StartTimes
from glowplug.snapshot.key import SnapshotKey
from glowplug.snapshot.store import SnapshotStore
from glowplug.snapshot.stored import Snapshot
from glowplug.types.replica import StartReplica


class SnapshotChoice:
    """Asks all who may be against a restore. Blocks; may be called in any thread."""

    def __init__(
        self,
        snapshots: SnapshotStore,
        search: SnapshotSearch | None,
        start_times: StartTimes,
        watches: RestoreWatches,
        devices: GpuSnapshots,
        probation: NodeProbation,
    ) -> None:
        self._snapshots = snapshots
        self._search = search
        self._start_times = start_times
        self._watches = watches
        self._devices = devices
        self._probation = probation

    def choose(self, key: SnapshotKey, request: StartReplica) -> Snapshot | str:
        """The snapshot to restore, or why not. Raises GlowplugError, whose message says why not, too."""
        if reason := self._start_times.why_cold(key.id):
            return reason
        snapshot = self._find(key)
        if snapshot is None:
            nearest = self._snapshots.nearest(key, request.app, request.server.name)
            return nearest.reason if nearest else "no snapshot was captured yet"
        if reason := self._watches.why_not_now(snapshot):
            return reason
        self._devices.check_fit(request.replica_id, snapshot.manifest.gpus, max_age_s=0.0)
        # Last: where nothing else is in the way, it may claim the trial of a node on probation.
        return self._probation.why_cold() or snapshot

    def _find(self, key: SnapshotKey) -> Snapshot | None:
        """Here, or in the region if there is none here, good or bad."""
        if self._search is not None and not self._snapshots.has(key.id):
            return self._search.find(key)
        return self._snapshots.find(key)
