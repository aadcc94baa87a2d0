"""The control plane as the operator needs it: a part of what the command line's client can do."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from glowplug.control.messages import DeployEvent, DeploymentView, NodeStatus, StatusView, StopResult
from glowplug.types.cluster import JoinTokenView
from glowplug.types.replica import ReplicaView


class Control(Protocol):
    """Calls block, have deadlines, raise a GlowplugError. Several threads may call at once."""

    def status(self, *, heat: bool = False) -> StatusView:
        """Nodes and apps at a glance."""
        ...

    def deploy(self, app: dict[str, Any], secrets: dict[str, str]) -> Generator[DeployEvent, None, None]:
        """Deploy; the last event holds ``deployment`` or ``error``."""
        ...

    def deployments(self, app: str | None = None) -> list[DeploymentView]:
        """Versions, newest first; one of each app may be active."""
        ...

    def stop_app(self, app: str, server: str | None, *, remove: bool) -> StopResult:
        """Stop an app, or undeploy it. NotFound if it is not deployed."""
        ...

    def replicas(self) -> list[ReplicaView]:
        """All replicas, ended ones for a while too."""
        ...

    def nodes(self) -> list[NodeStatus]:
        """The machines."""
        ...

    def drain_node(self, name: str, *, undo: bool) -> NodeStatus:
        """Place nothing new there and move what runs there, or use it again."""
        ...

    def remove_node(self, name: str, *, force: bool) -> None:
        """Take it out of the cluster."""
        ...

    def new_join_token(self, ttl_s: float) -> JoinTokenView:
        """A token to join with."""
        ...

    def join_tokens(self) -> list[JoinTokenView]:
        """Those that can still be used, without their secrets."""
        ...
