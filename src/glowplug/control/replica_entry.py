"""One replica as the control plane sees it: the agent's view plus what only the router knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from glowplug.control.channel import ReplicaChannel
from glowplug.control.cold_start_log import OpenColdStart
from glowplug.types.replica import ReplicaState, ReplicaView


class Interruptible(Protocol):
    """A request in flight. Duty: :meth:`interrupt` may be called at any time while it is registered."""

    def interrupt(self, reason: Exception) -> None:
        """Stop waiting for the replica and go on as if it had raised ``reason``."""
        ...


@dataclass
class Drain:
    """The replica gets no new requests; it is stopped when idle, or at ``deadline_s`` whatever it does."""

    deadline_s: float
    next_stop_at_s: float = 0.0


@dataclass(eq=False)
class Replica:
    """One copy. ``accepted_at_s`` is None until the agent has confirmed that it exists."""

    view: ReplicaView
    node: str
    accepted_at_s: float | None = None
    channel: ReplicaChannel | None = None
    in_flight: set[Interruptible] = field(default_factory=set)
    suspect_until_s: float = 0.0
    is_unreachable: bool = False
    ready_at_s: float | None = None
    drain: Drain | None = None
    cold_start: OpenColdStart | None = None

    @property
    def id(self) -> str:
        """The replica's id."""
        return self.view.id

    @property
    def is_serving(self) -> bool:
        """May be given requests."""
        return self.view.state is ReplicaState.READY and self.drain is None and self.channel is not None

    @property
    def is_starting(self) -> bool:
        """On its way to ready, and wanted."""
        return self.view.state is ReplicaState.STARTING and self.drain is None

    @property
    def is_live(self) -> bool:
        """Counts as one of the replicas that there should be."""
        return self.is_starting or (self.view.state is ReplicaState.READY and self.drain is None)

    def interrupt_all(self, reason: Exception) -> None:
        """Tell every request in flight that the replica will not answer."""
        for request in tuple(self.in_flight):
            request.interrupt(reason)
