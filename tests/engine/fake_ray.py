"""A Ray cluster and a control plane in memory: nodes that come and go, actors by name, who has joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from glowplug.control.messages import NodeStatus
from glowplug.engine.ray.agent import AgentReport, AgentSettings, JoinOrder
from glowplug.engine.ray.cluster import RayNode
from glowplug.types.cluster import JoinTokenView, NodeState
from glowplug.types.errors import Conflict, GlowplugError, NotFound, Unauthorized, Unavailable

OWN_ID = "00" * 28


def ray_node(number: int, **fields: object) -> RayNode:
    """The node number ``number``; its agent is called ``ray-10-0-0-NUMBER``."""
    address = f"10.0.0.{number}"
    node = RayNode(f"{number:02x}" * 28, address, address, True, cpus=4.0, memory_bytes=8 << 30)
    return replace(node, **fields)  # type: ignore[arg-type]


@dataclass
class FakeControlPlane:
    """As :class:`~glowplug.engine.control_api.ControlApi`. A name belongs to who joined with it."""

    is_away: bool = False
    members: dict[str, NodeStatus] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members["own"] = NodeStatus(name="own", is_reachable=True)

    def nodes(self) -> dict[str, NodeStatus]:
        self._answer()
        return dict(self.members)

    def new_join_token(self, ttl_s: float) -> JoinTokenView:
        self._answer()
        number = f"{len(self.tokens):012x}"
        self.tokens[number] = f"secret-{number}"
        return JoinTokenView(id=number, created_at=0.0, expires_at=ttl_s, token=self.tokens[number])

    def revoke_join_token(self, token_id: str) -> None:
        self._answer()
        if self.tokens.pop(token_id, None) is None:
            raise NotFound("No such token.")

    def drain(self, name: str) -> None:
        self._answer()
        self.set_state(name, NodeState.DRAINING)

    def remove(self, name: str, *, force: bool) -> None:
        self._answer()
        if self.members.pop(name, None) is None:
            raise NotFound(f"No node {name!r}.")
        self.owners.pop(name, None)

    def set_state(self, name: str, state: NodeState, why: str = "") -> None:
        if name not in self.members:
            raise NotFound(f"No node {name!r}.")
        self.members[name] = self.members[name].model_copy(update={"state": state, "why": why})

    def join(self, machine: str, name: str, token: str) -> None:
        if token not in self.tokens.values():
            raise Unauthorized("The join token is not known.")
        if self.owners.setdefault(name, machine) != machine:
            raise Conflict(f"Another machine is called {name!r} in this cluster.")
        self.members[name] = NodeStatus(name=name, is_reachable=True, address=f"{machine}:7443")

    @property
    def joined(self) -> dict[str, str]:
        """The nodes and their states, but for the control plane's own."""
        return {name: node.state.value for name, node in self.members.items() if name != "own"}

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("The control plane does not answer.", remedy="Wait.")


@dataclass
class FakeActor:
    """What the actor of a node knows."""

    settings: AgentSettings
    is_busy: bool = False
    problem: GlowplugError | None = None


@dataclass
class FakeRay:
    """Set ``listed``, ``is_away``, ``silent``; read the rest. ``agents`` are what outlives actors."""

    control: FakeControlPlane
    listed: list[RayNode]
    stuck_s: float = 0.0
    is_away: bool = False
    joins_are_held: bool = False
    silent: set[str] = field(default_factory=set)
    actors: dict[str, FakeActor] = field(default_factory=dict)
    agents: dict[str, AgentSettings] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    bundles: list[dict[str, float]] = field(default_factory=list)
    bundle_labels: dict[str, str] = field(default_factory=dict)
    drained: list[str] = field(default_factory=list)

    def own_node(self) -> str:
        self._answer()
        return OWN_ID

    def nodes(self) -> list[RayNode]:
        self._answer()
        return [*self.listed, ray_node(0, id=OWN_ID)]

    def reports(self, wanted: Mapping[str, AgentSettings]) -> dict[str, AgentReport | GlowplugError]:
        self._answer()
        return {node_id: self._report(node_id, settings) for node_id, settings in wanted.items()}

    def join(self, node_id: str, order: JoinOrder) -> None:
        self._answer()
        self.joined.append(node_id)
        self.actors[node_id].is_busy = True
        self.actors[node_id].problem = None
        if not self.joins_are_held:
            self.finish_join(node_id, order.token)

    def finish_join(self, node_id: str, token: str) -> None:
        actor = self.actors[node_id]
        actor.is_busy = False
        try:
            self.control.join(node_id, actor.settings.name, token)
        except GlowplugError as error:
            actor.problem = error
        else:
            self.agents[node_id] = actor.settings

    def stop_agents(self, node_ids: Sequence[str], timeout_s: float) -> dict[str, GlowplugError | None]:
        self._answer()
        for node_id in set(node_ids) - self.silent:
            self.agents.pop(node_id, None)
        silent = Unavailable("It does not answer.", remedy="Wait.")
        return {node_id: silent if node_id in self.silent else None for node_id in node_ids}

    def kill_actor(self, node_id: str) -> None:
        self._answer()
        self.actors.pop(node_id, None)

    def request(self, bundles: Sequence[Mapping[str, float]], labels: Mapping[str, str]) -> None:
        self._answer()
        self.bundles = [dict(bundle) for bundle in bundles]
        self.bundle_labels = dict(labels)

    def drain(self, node_id: str, why: str) -> None:
        self._answer()
        self.drained.append(node_id)

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("Ray: its head does not answer.", remedy="Is it up?")

    def _report(self, node_id: str, settings: AgentSettings) -> AgentReport | GlowplugError:
        if node_id in self.silent:
            return Unavailable("Ray: the actor does not answer.", remedy="Wait.")
        if node_id not in self.actors:
            self.made.append(node_id)
            self.actors[node_id] = FakeActor(settings)
        actor, agent = self.actors[node_id], self.agents.get(node_id)
        return AgentReport(
            settings=actor.settings,
            node=agent.name if agent else None,
            control_url=agent.control_url if agent else None,
            is_kept=agent is not None,
            is_busy=actor.is_busy,
            problem=actor.problem.to_dict() if actor.problem else None,
        )
