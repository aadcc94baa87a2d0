"""What the next start of a server would find on this node: how hot it is while nothing of it runs."""

from __future__ import annotations

from glowplug.node.probation import NodeProbation
from glowplug.node.start_times import StartTimes
from glowplug.node.starter import Starter
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import Heat, HeatView, StartReplica


def next_start(
    request: StartReplica,
    starter: Starter,
    snapshots: SnapshotStore,
    start_times: StartTimes,
    probation: NodeProbation,
) -> HeatView:
    """Nothing is changed by asking, and the region is not asked. May be called in any thread."""
    reason = request.server.why_no_snapshot
    try:
        key = None if reason else starter.key(request)
        snapshot = None if key is None else snapshots.find(key)
    except GlowplugError as error:
        return _cold(error.message)
    if key is None:
        return _cold(reason)
    if snapshot is None:
        nearest = snapshots.nearest(key, request.app, request.server.name)
        return _cold(nearest.reason if nearest else "no snapshot was captured yet")
    if why := start_times.opted_out(key.id) or probation.quarantine:
        return _cold(why)
    heat = Heat.REGION if snapshot.missing_bytes() else Heat.SNAPSHOT
    return HeatView(heat=heat, snapshot_id=snapshot.id)


def _cold(reason: str | None) -> HeatView:
    return HeatView(heat=Heat.IMAGE, reason=reason)
