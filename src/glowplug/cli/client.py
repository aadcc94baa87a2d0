"""The control API as methods that take and give the models of the contract."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from glowplug.cli.transport import bearer, open_transport
from glowplug.control.messages import (
    DeployEvent,
    DeploymentView,
    NodeStatus,
    PlacementView,
    StatusView,
    StopResult,
)
from glowplug.types.cluster import JoinTokenView
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import Unavailable
from glowplug.types.image import ImageTask, IndexView, TaskEvent
from glowplug.types.replica import BuildEvent, ImageView, ReplicaView, SnapshotView
from glowplug.types.usage import UsageSpan

M = TypeVar("M", bound=BaseModel)

ANSWER_TIMEOUT_S = 30.0
VERIFY_TIMEOUT_S = 900.0
STREAM_SILENCE_S = 1800.0
"""How long a build may say nothing: compiling one package can take many minutes."""


class ApiClient:
    """One connection pool to one control plane. Close it, or use it in a ``with``."""

    def __init__(self, url: str, token: str | None, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.url = url
        self.headers = bearer(token)
        """What identifies us."""
        self._transport = open_transport(url, token, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def status(self, *, heat: bool = False) -> StatusView:
        """Version, uptime, nodes, apps; with ``heat``, the rung of the ladder each server stands on."""
        return self._one(StatusView, "GET", "/api/v1/status", heat="true" if heat else None)

    def deploy(self, app: dict[str, Any], secrets: dict[str, str]) -> Generator[DeployEvent, None, None]:
        """Deploy an app; its events, the last of which holds ``deployment`` or ``error``."""
        return self._events(DeployEvent, "/api/v1/deployments", {"app": app, "secrets": secrets})

    def deployments(self, app: str | None = None) -> list[DeploymentView]:
        """Versions, newest first."""
        return self._many(DeploymentView, "/api/v1/deployments", app=app)

    def rollback(self, app: str, version: int | None) -> DeploymentView:
        """Make an older version the active one: ``version``, or the one before."""
        return self._one(DeploymentView, "POST", f"/api/v1/apps/{_part(app)}/rollback", version=version)

    def stop_app(self, app: str, server: str | None, *, remove: bool) -> StopResult:
        """Stop an app's (or one server's) replicas, or undeploy it."""
        path = f"/api/v1/apps/{_part(app)}/stop"
        return self._one(StopResult, "POST", path, server=server, remove="true" if remove else None)

    def replicas(self) -> list[ReplicaView]:
        """All replicas the nodes know, ended ones for a while too."""
        return self._many(ReplicaView, "/api/v1/replicas")

    def stop_replica(self, replica_id: str) -> ReplicaView:
        """Stop one replica."""
        return self._one(ReplicaView, "POST", f"/api/v1/replicas/{_part(replica_id)}/stop")

    @contextmanager
    def logs(self, replica_id: str, *, tail: int | None, follow: bool) -> Iterator[Iterator[bytes]]:
        """The log of a replica in chunks; with ``follow`` until the replica ends or the caller has enough."""
        # Following waits for a server to say something, which may take days: the user ends it.
        silence_s = None if follow else ANSWER_TIMEOUT_S
        parameters = {"tail": tail, "follow": "true" if follow else None}
        path = f"/api/v1/replicas/{_part(replica_id)}/logs"
        with self._transport.stream("GET", path, parameters, silence_s=silence_s) as answer:
            yield answer.iter_bytes()

    def cold_starts(
        self, app: str | None = None, *, since_s: float | None = None, limit: int | None = None
    ) -> list[ColdStartRecord]:
        """Records of cold starts, newest first."""
        return self._many(ColdStartRecord, "/api/v1/coldstarts", app=app, since_s=since_s, limit=limit)

    def usage(self, app: str | None = None, *, since_s: float | None = None) -> list[UsageSpan]:
        """What replicas did, in spans of five minutes, oldest first."""
        return self._many(UsageSpan, "/api/v1/usage", app=app, since_s=since_s)

    def images(self) -> list[ImageView]:
        """Images the nodes hold."""
        return self._many(ImageView, "/api/v1/images")

    def image(self, image_id: str) -> ImageView:
        """One image."""
        return self._one(ImageView, "GET", f"/api/v1/images/{_part(image_id)}")

    def build(self, image: dict[str, Any]) -> Generator[BuildEvent, None, None]:
        """Make an image ready; its events, the last of which holds ``image`` or ``error``."""
        return self._events(BuildEvent, "/api/v1/images", {"image": image})

    def remove_image(self, image_id: str) -> None:
        """Delete an image that nothing uses."""
        self._transport.request("DELETE", f"/api/v1/images/{_part(image_id)}")

    def indexes(self) -> list[IndexView]:
        """Image indexes the nodes hold."""
        return self._many(IndexView, "/api/v1/indexes")

    def index(self, image: str) -> IndexView:
        """One image index, by name or digest."""
        return self._one(IndexView, "GET", f"/api/v1/indexes/{_part(image)}")

    def image_task(self, task: ImageTask) -> Generator[TaskEvent, None, None]:
        """Do an image task; its events, the last of which holds ``result`` or ``error``."""
        return self._events(TaskEvent, "/api/v1/image-tasks", {"task": task.model_dump(mode="json")})

    def snapshots(self, *, region: bool = False) -> list[SnapshotView]:
        """Snapshots the nodes hold, or the region."""
        return self._many(SnapshotView, "/api/v1/snapshots", region=region or None)

    def snapshot(self, snapshot_id: str) -> SnapshotView:
        """One snapshot."""
        return self._one(SnapshotView, "GET", f"/api/v1/snapshots/{_part(snapshot_id)}")

    def verify_snapshot(self, snapshot_id: str) -> SnapshotView:
        """Hash everything again; the view afterwards."""
        path = f"/api/v1/snapshots/{_part(snapshot_id)}/verify"
        return self._one(SnapshotView, "POST", path, timeout_s=VERIFY_TIMEOUT_S)

    def push_snapshot(self, snapshot_id: str) -> Generator[TaskEvent, None, None]:
        """Bring it to the region; the last event holds ``result`` or ``error``."""
        return self._events(TaskEvent, f"/api/v1/snapshots/{_part(snapshot_id)}/push", {})

    def pull_snapshot(self, snapshot_id: str, *, content: bool) -> Generator[TaskEvent, None, None]:
        """Fetch it from the region; the last event holds ``result`` or ``error``."""
        path = f"/api/v1/snapshots/{_part(snapshot_id)}/pull"
        return self._events(TaskEvent, path, {}, {"content": content})

    def collect_snapshots(self, *, grace_s: float) -> Generator[TaskEvent, None, None]:
        """Remove what no snapshot in the region needs; the last event holds ``result`` or ``error``."""
        return self._events(TaskEvent, "/api/v1/snapshots/gc", {}, {"grace_s": grace_s})

    def reseal_snapshots(self) -> Generator[TaskEvent, None, None]:
        """Seal all snapshots with the nodes' first key, theirs and the region's."""
        return self._events(TaskEvent, "/api/v1/snapshots/reseal", {})

    def create_snapshot(self, app: str, server: str) -> SnapshotView:
        """Start a capture of the active version of a server."""
        body = {"app": app, "server": server}
        return self._one(SnapshotView, "POST", "/api/v1/snapshots", body=body)

    def remove_snapshot(self, snapshot_id: str, *, region: bool = False) -> None:
        """Delete a snapshot that nothing uses, or what the region has of it."""
        path = f"/api/v1/snapshots/{_part(snapshot_id)}"
        self._transport.request("DELETE", path, {"region": region or None})

    def placement(self, replica_id: str) -> PlacementView:
        """Why a replica is on its node."""
        return self._one(PlacementView, "GET", f"/api/v1/replicas/{_part(replica_id)}/placement")

    def nodes(self) -> list[NodeStatus]:
        """The machines, and what they may be used for."""
        return self._many(NodeStatus, "/api/v1/nodes")

    def drain_node(self, name: str, *, undo: bool) -> NodeStatus:
        """Place nothing new there and move what runs there, or use it again."""
        verb = "undrain" if undo else "drain"
        return self._one(NodeStatus, "POST", f"/api/v1/nodes/{_part(name)}/{verb}")

    def remove_node(self, name: str, *, force: bool) -> None:
        """Take it out of the cluster."""
        parameters = {"force": "true" if force else None}
        self._transport.request("DELETE", f"/api/v1/nodes/{_part(name)}", parameters)

    def new_join_token(self, ttl_s: float) -> JoinTokenView:
        """A token to join with."""
        return self._one(JoinTokenView, "POST", "/api/v1/join-tokens", ttl_s=ttl_s)

    def join_tokens(self) -> list[JoinTokenView]:
        """Tokens that can still be used, without their secrets."""
        return self._many(JoinTokenView, "/api/v1/join-tokens")

    def revoke_join_token(self, token_id: str) -> None:
        """Let nobody join with it any more."""
        self._transport.request("DELETE", f"/api/v1/join-tokens/{_part(token_id)}")

    def exec_url(self, replica_id: str, query: str) -> str:
        """The address of a replica's exec socket."""
        return f"ws{self.url.removeprefix('http')}/api/v1/replicas/{_part(replica_id)}/exec?{query}"

    def _one(
        self,
        model: type[M],
        method: str,
        path: str,
        *,
        body: Any = None,
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> M:
        content = self._transport.request(method, path, parameters, body=body, timeout_s=timeout_s)
        with _misunderstandings_explained():
            return model.model_validate_json(content)

    def _many(self, model: type[M], path: str, **parameters: Any) -> list[M]:
        content = self._transport.request("GET", path, parameters)
        with _misunderstandings_explained():
            items = TypeAdapter(list[dict[str, Any]]).validate_json(content)
            return [model.model_validate(item) for item in items]

    def _events(
        self, model: type[M], path: str, body: dict[str, Any], parameters: dict[str, Any] | None = None
    ) -> Generator[M, None, None]:
        with self._transport.stream(
            "POST", path, parameters or {}, body=body, silence_s=STREAM_SILENCE_S
        ) as answer:
            for line in _lines(answer.iter_bytes()):
                if line:
                    with _misunderstandings_explained():
                        event = model.model_validate_json(line)
                    yield event


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Line feeds alone end one: JSON may hold every other character at which text is commonly split."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


@contextmanager
def _misunderstandings_explained() -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise Unavailable(
            "The control plane's answer cannot be understood.",
            remedy="Are command line and control plane of the same version? `glowplug status` tells.",
            reason=str(error.errors(include_url=False, include_input=False)[:3]),
        ) from error


def _part(name: str) -> str:
    """A name from the command line as one part of a path, whatever is in it."""
    return quote(name, safe="")
