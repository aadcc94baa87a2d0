"""What is asked of Ray: a port as narrow as can be, so that tests have a Ray of their own in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.types.errors import GlowplugError


@dataclass(frozen=True)
class RayNode:
    """A machine as Ray lists it. ``why`` is the reason of its death. Ids are new at every ``ray start``."""

    id: str
    name: str
    address: str
    is_alive: bool
    why: str = ""
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_chip: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class RayCluster(Protocol):
    """A Ray cluster. Calls block, have deadlines, may be repeated; all raise Unavailable when Ray is away."""

    @property
    def stuck_s(self) -> float:
        """How long a call that was given up has been under way."""
        ...

    def own_node(self) -> str:
        """The id of the Ray node on this machine."""
        ...

    def nodes(self) -> list[RayNode]:
        """All that Ray tells of, dead ones too."""
        ...

    def reports(self, wanted: Mapping[str, AgentSettings]) -> dict[str, AgentReport | GlowplugError]:
        """What the actors on these nodes say; those that are missing are made, with these settings."""
        ...

    def join(self, node_id: str, order: JoinOrder) -> None:
        """Have the actor join. Returns when it knows, not when it has."""
        ...

    def stop_agents(self, node_ids: Sequence[str], timeout_s: float) -> dict[str, GlowplugError | None]:
        """End these agents, all at once; what kept some from ending. Actors stay."""
        ...

    def kill_actor(self, node_id: str) -> None:
        """Let the actor end, for good. What it started goes on. Quiet where there is none."""
        ...

    def request(self, bundles: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> None:
        """All that the autoscaler is to have room for, from now on; each on a node with these labels."""
        ...

    def drain(self, node_id: str, why: str) -> None:
        """The node is about to leave: Ray puts nothing new there. It cannot be taken back."""
        ...
