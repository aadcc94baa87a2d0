"""A control plane in memory, as the operator asks it. It can be away, refuse, and be told things by hand."""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any

from glowplug.control.messages import (
    AppStatus,
    DeployEvent,
    DeploymentView,
    NodeStatus,
    ServerStatus,
    StatusView,
    StopResult,
)
from glowplug.types.cluster import JoinTokenView, NodeState
from glowplug.types.errors import GlowplugError, NotFound
from glowplug.types.replica import ErrorInfo, ReplicaState, ReplicaView
from glowplug.types.spec import AppSpec


class FakeControl:
    """``away`` is raised by every call, ``refusal`` ends a deployment; ``gate`` closed holds one up."""

    def __init__(self) -> None:
        self.away: GlowplugError | None = None
        self.refusal: GlowplugError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.versions: dict[str, list[DeploymentView]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.removed: list[str] = []
        self.replica_views: list[ReplicaView] = []
        self.members: list[NodeStatus] = []
        self.drains: list[tuple[str, bool]] = []
        self.tokens: list[JoinTokenView] = []

    def status(self, *, heat: bool = False) -> StatusView:
        self._check()
        apps = [
            AppStatus(
                name=one.app,
                deployment_id=one.id,
                version=one.version,
                servers=[
                    ServerStatus(
                        name=name, url=url, ready=1, starting=0, parked=2, desired=1, in_flight=0, held=0
                    )
                    for name, url in one.urls.items()
                ],
            )
            for one in self.active()
        ]
        return StatusView(version="1", uptime_s=1.0, nodes=self.members, apps=apps)

    def deploy(self, app: dict[str, Any], secrets: dict[str, str]) -> Generator[DeployEvent, None, None]:
        self._check()
        yield DeployEvent(text="image of web", fraction=0.5)
        assert self.gate.wait(60.0)
        if self.refusal is not None:
            yield DeployEvent(text="failed", error=ErrorInfo(**self.refusal.to_dict()))
            return
        self.secrets[app["name"]] = secrets
        yield DeployEvent(text="active", deployment=self.activate(app))

    def deployments(self, app: str | None = None) -> list[DeploymentView]:
        self._check()
        return [
            one
            for name, versions in self.versions.items()
            if app in (None, name)
            for one in reversed(versions)
        ]

    def stop_app(self, app: str, server: str | None, *, remove: bool) -> StopResult:
        self._check()
        if app not in {one.app for one in self.active()}:
            raise NotFound(f"No app {app!r} is deployed.")
        self.removed.append(app)
        self._deactivate(app)
        return StopResult(app=app, replicas=[], is_removed=remove)

    def replicas(self) -> list[ReplicaView]:
        self._check()
        return list(self.replica_views)

    def nodes(self) -> list[NodeStatus]:
        self._check()
        return list(self.members)

    def drain_node(self, name: str, *, undo: bool) -> NodeStatus:
        self._check()
        self.drains.append((name, undo))
        state = NodeState.READY if undo else NodeState.DRAINING
        self.members = [
            one.model_copy(update={"state": state}) if one.name == name else one for one in self.members
        ]
        return next(one for one in self.members if one.name == name)

    def remove_node(self, name: str, *, force: bool) -> None:
        self._check()
        self.members = [one for one in self.members if one.name != name]

    def new_join_token(self, ttl_s: float) -> JoinTokenView:
        self._check()
        text = f"gpj1.{'a' * 64}.{str(len(self.tokens)) * 43}"
        from glowplug.identity.tokens import JoinToken

        made = JoinTokenView(id=JoinToken.parse(text).id, created_at=0.0, expires_at=self.now_s + ttl_s)
        self.tokens.append(made)
        return made.model_copy(update={"token": text})

    def join_tokens(self) -> list[JoinTokenView]:
        self._check()
        return list(self.tokens)

    # -- for tests -------------------------------------------------------------------------------------------

    now_s = 1_000_000.0

    def activate(self, app: dict[str, Any]) -> DeploymentView:
        """As a deployment does, whoever made it."""
        spec = AppSpec.model_validate(app)
        self._deactivate(spec.name)
        versions = self.versions[spec.name]
        made = DeploymentView(
            id=f"{spec.name}-v{len(versions) + 1}",
            app=spec.name,
            version=len(versions) + 1,
            active=True,
            created_at=self.now_s,
            servers=[server.name for server in spec.servers],
            urls={server.name: f"/{spec.name}/{server.name}" for server in spec.servers},
            spec_digest=spec.digest(),
        )
        versions.append(made)
        return made

    def active(self) -> list[DeploymentView]:
        return [one for versions in self.versions.values() for one in versions if one.active]

    def change_active(self, app: str, **fields: Any) -> None:
        self.versions[app] = [
            one.model_copy(update=fields) if one.active else one for one in self.versions[app]
        ]

    def _deactivate(self, app: str) -> None:
        self.versions[app] = [one.model_copy(update={"active": False}) for one in self.versions.get(app, [])]

    def _check(self) -> None:
        if self.away is not None:
            raise self.away


def replica(name: str = "shop-web-000001", **fields: Any) -> ReplicaView:
    """A replica that serves."""
    given: dict[str, Any] = {
        "id": name, "app": "shop", "server": "web", "deployment_id": "shop-v1", "state": ReplicaState.READY,
        "created_at": 1_000_000.0, "ready_at": 1_000_000.5, "memory_bytes": 1_960_000_000, **fields,
    }  # fmt: skip
    return ReplicaView(**given)


def member(name: str = "n1", state: NodeState = NodeState.READY, **fields: Any) -> NodeStatus:
    """A node that joined from a DaemonSet."""
    given = {"is_reachable": True, "labels": {"engine": "kubernetes"}, **fields}
    return NodeStatus(name=name, state=state, **given)
