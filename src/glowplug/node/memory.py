"""How much memory replicas really take, without spending more on asking than it is worth."""

from __future__ import annotations

from collections.abc import Iterable

from glowplug.node.gpus import Gpus
from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.types.clock import Clock
from glowplug.types.replica import ReplicaState, ReplicaView

# The kernel walks a replica's page tables to answer (16 ms per GB); lists are asked for many times a second.
_MAX_AGE_S = 5.0


class MemoryReadings:
    """Adds memory to views. What takes long to ask is at most some seconds old. Call it in any thread."""

    def __init__(self, clock: Clock, gpus: Gpus) -> None:
        self._clock = clock
        self._gpus = gpus
        self._readings: dict[str, tuple[float, int]] = {}

    def added(self, views: Iterable[ReplicaView]) -> list[ReplicaView]:
        """The views, those of living replicas with their memory."""
        return [view if view.state.is_final else self._with_memory(view) for view in views]

    def _with_memory(self, view: ReplicaView) -> ReplicaView:
        cgroup = ReplicaCgroup(view.id)
        memory = {"memory_bytes": cgroup.memory_bytes(), "swapped_bytes": cgroup.swapped_bytes()}
        if view.gpus or view.suspended_bytes is not None:
            memory["device_bytes"] = self._gpus.held_bytes(cgroup.pids())
        if view.state is not ReplicaState.STARTING:
            memory["proportional_bytes"] = self._proportional_bytes(view.id)
        return view.model_copy(update=memory)

    def _proportional_bytes(self, replica_id: str) -> int:
        now_s = self._clock.monotonic()
        kept = self._readings.get(replica_id)
        if kept is not None and now_s - kept[0] < _MAX_AGE_S:
            return kept[1]
        reading = (now_s, ReplicaCgroup(replica_id).proportional_bytes())
        fresh = {name: old for name, old in self._readings.copy().items() if now_s - old[0] < _MAX_AGE_S}
        self._readings = {**fresh, replica_id: reading}
        return reading[1]
