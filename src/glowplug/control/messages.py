"""What the control API says that is not a word of the agent's: deployments, their progress, the status."""

from __future__ import annotations

from pydantic import Field

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


class NodeStatus(Message):
    """One node: ``view`` is None while its agent does not answer."""

    name: str
    is_reachable: bool
    view: NodeView | None = None


class StatusView(Message):
    """Everything at a glance."""

    version: str
    uptime_s: float
    nodes: list[NodeStatus]
    apps: list[AppStatus]


class CaptureRequest(Message):
    """Capture a snapshot of the active version of a server now."""

    app: str
    server: str


class StopResult(Message):
    """Which replicas were asked to stop."""

    app: str
    replicas: list[str]
    is_removed: bool
