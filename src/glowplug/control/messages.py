"""What the control API says that is not a word of the agent's: deployments, their progress, the status."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from glowplug.types.cluster import NodeState
from glowplug.types.replica import ErrorInfo, HeatView, Message, NodeView
from glowplug.types.spec import AppSpec


class DeployRequest(Message):
    """Deploy this app. ``secrets`` maps every secret name its servers ask for to the value."""

    app: AppSpec
    secrets: dict[str, str] = Field(default={}, repr=False)


class DeploymentView(Message):
    """One immutable version of an app. ``urls`` maps servers to their path on this port."""

    id: str
    app: str
    version: int
    active: bool
    created_at: float
    servers: list[str]
    urls: dict[str, str]
    spec_digest: str
    error: ErrorInfo | None = None


class DeployEvent(Message):
    """One line of a deployment's progress stream; the last one holds ``deployment`` or ``error``."""

    text: str = ""
    fraction: float | None = None
    deployment: DeploymentView | None = None
    error: ErrorInfo | None = None


class ServerStatus(Message):
    """One server right now. ``desired`` is what the autoscaler asked for last; ``heat``, where it was asked
    for and somebody could say, the rung of the ladder that it stands on."""

    name: str
    url: str
    ready: int
    starting: int
    parked: int = 0
    desired: int
    in_flight: int
    held: int
    heat: HeatView | None = None
    error: ErrorInfo | None = None


class AppStatus(Message):
    """One deployed app right now."""

    name: str
    deployment_id: str
    version: int
    servers: list[ServerStatus]


class RouterState(StrEnum):
    """What control knows of a node's router.

    ``following``: it is told of every change. ``away``: it cannot be reached, and may go on with what it was
    told last. ``absent``: the node says that none runs there.
    """

    FOLLOWING = "following"
    AWAY = "away"
    ABSENT = "absent"


class RouterStatus(Message):
    """A node's router. ``address`` is where it serves, ``table_age_s`` how long ago it spoke last.

    ``in_flight``: requests that it had at replicas then.
    """

    state: RouterState
    address: str | None = None
    table_age_s: float | None = None
    in_flight: int = 0


class NodeStatus(Message):
    """One node: ``view`` is None while its agent does not answer. ``why`` is the reason for its ``state``.

    ``address`` is where its gateway listens; the control plane's own node has none, and no ``router`` beside
    the control plane's.
    """

    name: str
    is_reachable: bool
    view: NodeView | None = None
    state: NodeState = NodeState.READY
    why: str = ""
    address: str | None = None
    labels: dict[str, str] = {}
    replicas: int = 0
    router: RouterStatus | None = None


class NodeScore(Message):
    """What became of one node when a replica was placed: parts of its score, or why it got nothing.

    ``refusal`` is what its agent said when it was asked.
    """

    node: str
    total: float
    parts: dict[str, float] = {}
    why_not: str | None = None
    refusal: str | None = None


class PlacementView(Message):
    """Why a replica is on its node: every node as it was then, best first."""

    replica_id: str
    node: str
    placed_at: float
    scores: list[NodeScore]


class Role(StrEnum):
    """A control plane's part among those of one database (``control/leadership.py``)."""

    LEADER = "leader"
    STANDBY = "standby"
    CUT_OFF = "cut_off"
    DEPOSED = "deposed"

    @property
    def serves(self) -> bool:
        """Whether requests to servers are answered here."""
        return self in (Role.LEADER, Role.CUT_OFF)


class LeadershipView(Message):
    """Who leads. ``leader`` is another one's address; ``is_shared``: there can be others."""

    role: Role
    term: int
    leader: str | None = None
    is_shared: bool = False


class Health(Message):
    """The process answers, and says what it is."""

    status: str = "ok"
    role: Role
    term: int
    leader: str | None = None


class StatusView(Message):
    """Everything at a glance. One that stands by knows neither nodes nor apps."""

    version: str
    uptime_s: float
    nodes: list[NodeStatus]
    apps: list[AppStatus]
    leadership: LeadershipView | None = None


class CaptureRequest(Message):
    """Capture a snapshot of the active version of a server now."""

    app: str
    server: str


class StopResult(Message):
    """Which replicas were asked to stop."""

    app: str
    replicas: list[str]
    is_removed: bool
