"""One replica as the control plane sees it: the agent's view plus what only the router knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from glowplug.control.channel import ReplicaChannel
from glowplug.control.cold_start_log import OpenColdStart
from glowplug.types.replica import ReplicaState, ReplicaView
from glowplug.types.spec import Resources


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
    begun_at_s: float | None = None
    """When it was asked for. By our clock, as all here: those of other machines may be hours off."""
    ready_at_s: float | None = None
    parked_at_s: float | None = None
    resources: Resources | None = None
    """What it is asked for with; None for one that was found running."""
    drain: Drain | None = None
    is_leaving: bool = False
    """Its node is being drained: it serves until a successor elsewhere does, as one of an older version."""
    is_parking: bool = False
    """The agent is being asked to freeze it: it gets no requests."""
    is_waking: bool = False
    """The agent is being asked to let it run on: it counts as starting."""
    is_spare: bool = False
    """One more than there should be, and busy: it gets requests only while no other has room, falls idle by
    that, and goes then.
    """
    is_push_out_asked: bool = False
    """Its memory is, or cannot be, where it frees most: the next step down is the stop."""
    wake_again_at_s: float = 0.0
    waits_for_gpu: bool = False
    """Somebody else on its node has the GPU, and it is woken when that one has given it up."""
    cold_start: OpenColdStart | None = None
    elsewhere: int = 0
    """Requests that other routers have there, as far as this one was told."""
    is_router: bool = False
    """It is no replica but another router, which wants paths as the caller wrote them."""

    @property
    def id(self) -> str:
        """The replica's id."""
        return self.view.id

    @property
    def is_serving(self) -> bool:
        """May be given requests."""
        return self._is_up and self.channel is not None

    @property
    def is_starting(self) -> bool:
        """On its way to ready, and wanted."""
        return (self.view.state is ReplicaState.STARTING or self.is_waking) and self.drain is None

    @property
    def is_live(self) -> bool:
        """Counts as one of the replicas that there should be."""
        return self.is_starting or self._is_up

    def parked_for_s(self, now_s: float) -> float:
        """How long it has been parked."""
        return 0.0 if self.parked_at_s is None else now_s - self.parked_at_s

    @property
    def is_parked(self) -> bool:
        """Frozen, and to be had."""
        return self.view.state is ReplicaState.PARKED and self.drain is None and not self.is_waking

    @property
    def _is_up(self) -> bool:
        return self.view.state is ReplicaState.READY and self.drain is None and not self.is_parking

    def addressed(self, prefix: str, path: str) -> tuple[str, str]:
        """What was taken off a request's path, and what is left of it, for who gets it."""
        return ("", prefix + path) if self.is_router else (prefix, path)

    def interrupt_all(self, reason: Exception) -> None:
        """Tell every request in flight that the replica will not answer."""
        for request in tuple(self.in_flight):
            request.interrupt(reason)
