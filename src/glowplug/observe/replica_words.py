"""A replica in words: one place, so that ``glowplug ps`` and ``kubectl get`` say the same."""

from __future__ import annotations

from dataclasses import dataclass

from glowplug.observe.durations import format_seconds
from glowplug.observe.waterfall import format_bytes
from glowplug.types.replica import Purpose, ReplicaState, ReplicaView, StartPath


@dataclass(frozen=True)
class ReplicaWords:
    """The columns of a listing that are more than a field of the view; empty where there is nothing."""

    server: str
    state: str
    start: str
    memory: str
    share: str
    device: str
    error: str


def replica_words(replica: ReplicaView) -> ReplicaWords:
    """All of them."""
    return ReplicaWords(
        server=f"{replica.app}/{replica.server}"
        + ("" if replica.purpose is Purpose.SERVE else f" ({replica.purpose.value})"),
        state=_state(replica),
        start=_start(replica),
        memory=_bytes(replica.memory_bytes),
        share=_bytes(replica.proportional_bytes),
        device=_device_memory(replica),
        error=replica.error.message if replica.error else (replica.fallback_reason or ""),
    )


def _state(replica: ReplicaView) -> str:
    if replica.state is ReplicaState.STARTING and replica.stage is not None:
        return f"{replica.state.value} ({replica.stage.value})"
    if replica.state is ReplicaState.PARKED and replica.is_pushed_out:
        return f"{replica.state.value} (in swap)"
    return replica.state.value


def _start(replica: ReplicaView) -> str:
    """How long it took to come to life, the last time it did: a parked replica does so again and again."""
    if replica.path is StartPath.PARKED:
        return format_seconds(sum(replica.stages_s.values()))
    return format_seconds(replica.ready_at - replica.created_at) if replica.ready_at else ""


def _device_memory(replica: ReplicaView) -> str:
    """What is on its GPUs; of a parked one, also what of it lies on the host, and is part of its memory."""
    on_host = f", {_bytes(replica.suspended_bytes)} on host" if replica.suspended_bytes is not None else ""
    return f"{_bytes(replica.device_bytes)}{on_host}"


def _bytes(count: int | None) -> str:
    return "" if count is None else format_bytes(count)
