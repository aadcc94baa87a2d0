"""The control plane's way to one node agent: its HTTP API as typed calls, over a Unix socket or through the
gateway of another machine.

Every call has a deadline. An agent that cannot be reached, does not answer in time, or answers what is no
message of ours raises Unavailable; an error that the agent reports is raised here as the same typed error
with the same words.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from pydantic import TypeAdapter
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus

from glowplug.node.address import LocalNode, NodeAddress, RemoteNode
from glowplug.node.answers import (
    MAX_ERROR_BYTES,
    NoAnswer,
    NotConnected,
    content_of,
    error_from,
    lines_of,
    parse,
)
from glowplug.types.errors import GlowplugError, NotLeader
from glowplug.types.image import ImageTask, IndexView, TaskEvent, TaskRequest
from glowplug.types.leader import TERM_HEADER, Authority, ByHand
from glowplug.types.replica import (
    BuildEvent,
    BuildRequest,
    HeatView,
    ImageView,
    Message,
    NodeHoldings,
    NodeView,
    ReplicaEvent,
    ReplicaView,
    SnapshotView,
    StartReplica,
)
from glowplug.types.spec import ImageSpec

WATCH_SILENCE_LIMIT_S = 5.0
"""The agent sends a heartbeat each second: five missing ones mean that it hangs."""
_CONNECT_TIMEOUT_S = 2.0
# Longer than nodes are left alone, so that a look needs no handshake; shorter than agents keep a connection,
# so that no order meets one that is just being closed.
_KEEP_ALIVE_S = 30.0
_CALL_TIMEOUT_S = 15.0
_START_TIMEOUT_S = 30.0
# The agent has deadlines of its own, a second for each GB: this is beyond them.
_MOVE_TIMEOUT_S = 900.0
# A step of a build (a pip install of an engine) may say nothing for minutes.
_BUILD_SILENCE_LIMIT_S = 1800.0
# Re-hashing: 100 GB at 200 MB/s.
_VERIFY_TIMEOUT_S = 600.0
_REPLICAS = TypeAdapter(list[ReplicaView])
_IMAGES = TypeAdapter(list[ImageView])
_INDEXES = TypeAdapter(list[IndexView])
_SNAPSHOTS = TypeAdapter(list[SnapshotView])


class NodeClient:
    """Calls the agent of the node at ``address``. Owns a few connections: :meth:`close` them.

    What changes something raises NotLeader or Unavailable unless ``authority`` may act. Calls bear its term.
    """

    def __init__(self, address: NodeAddress, authority: Authority | None = None) -> None:
        self.address = address
        self._authority = authority or ByHand()
        limits = httpx.Limits(max_keepalive_connections=8, keepalive_expiry=_KEEP_ALIVE_S)
        self._extensions: dict[str, Any] = {}
        if isinstance(address, LocalNode):
            base_url = "http://agent"
            transport = httpx.AsyncHTTPTransport(uds=str(address.socket_path), limits=limits)
        else:
            base_url = _url(address)
            transport = httpx.AsyncHTTPTransport(verify=address.http, limits=limits)
            # The name that its certificate must have.
            self._extensions["sni_hostname"] = address.name
        self._held: tuple[bytes, NodeHoldings] | None = None
        self._http = httpx.AsyncClient(
            transport=transport, base_url=base_url, timeout=_timeout(_CALL_TIMEOUT_S)
        )

    async def close(self) -> None:
        """Drop all connections."""
        await self._http.aclose()

    async def node(self) -> NodeView:
        """What the machine has and runs."""
        return parse(NodeView.model_validate_json, await self._call("GET", "/v1/node"))

    async def holdings(self) -> NodeHoldings:
        """What it has that makes starts quicker: the same object as long as it says the same."""
        content = await self._call("GET", "/v1/holdings")
        if self._held is None or self._held[0] != content:
            self._held = content, parse(NodeHoldings.model_validate_json, content)
        return self._held[1]

    async def watch(self) -> AsyncGenerator[ReplicaEvent, None]:
        """Events as they happen, first what exists. Raises Unavailable when silent for 5 s, or at the end."""
        async for line in self._lines("GET", "/v1/watch", silence_limit_s=WATCH_SILENCE_LIMIT_S):
            yield parse(ReplicaEvent.model_validate_json, line)

    async def replicas(self) -> list[ReplicaView]:
        """All replicas of the node."""
        return parse(_REPLICAS.validate_json, await self._call("GET", "/v1/replicas"))

    async def replica(self, replica_id: str) -> ReplicaView:
        """One replica. Raises NotFound."""
        return parse(
            ReplicaView.model_validate_json, await self._call("GET", f"/v1/replicas/{_part(replica_id)}")
        )

    async def start_replica(self, order: StartReplica) -> ReplicaView:
        """Start a replica; repeats of one ``replica_id`` are one start."""
        answer = await self._call("POST", "/v1/replicas", order, timeout_s=_START_TIMEOUT_S)
        return parse(ReplicaView.model_validate_json, answer)

    async def stop_replica(self, replica_id: str, *, grace_s: float) -> ReplicaView:
        """Begin to stop it: SIGTERM, ``grace_s``, SIGKILL. Raises NotFound."""
        answer = await self._call("POST", f"/v1/replicas/{_part(replica_id)}/stop?grace_s={grace_s:g}")
        return parse(ReplicaView.model_validate_json, answer)

    async def park_replica(
        self, replica_id: str, *, push_out: bool, has_devices: bool = False
    ) -> ReplicaView:
        """Freeze it; with ``push_out`` its memory goes to swap after that. Raises NotFound, Conflict.

        ``has_devices``: its device memory moves to the host before, which may take minutes.
        """
        path = f"/v1/replicas/{_part(replica_id)}/park?push_out={str(push_out).lower()}"
        limit_s = _MOVE_TIMEOUT_S if has_devices else _CALL_TIMEOUT_S
        return parse(ReplicaView.model_validate_json, await self._call("POST", path, timeout_s=limit_s))

    async def unpark_replica(self, replica_id: str, *, has_devices: bool = False) -> ReplicaView:
        """Let it run on; it has answered. Raises NotFound, Conflict, Unavailable, ReplicaFailed."""
        path = f"/v1/replicas/{_part(replica_id)}/unpark"
        limit_s = _MOVE_TIMEOUT_S if has_devices else _CALL_TIMEOUT_S
        return parse(ReplicaView.model_validate_json, await self._call("POST", path, timeout_s=limit_s))

    async def logs(
        self, replica_id: str, *, tail: int | None = None, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The replica's output, in pieces. With ``follow`` it ends with the replica (or with the caller)."""
        query = {"follow": "1" if follow else "0"} | ({} if tail is None else {"tail": str(tail)})
        path = f"/v1/replicas/{_part(replica_id)}/logs?{urlencode(query)}"
        # A quiet server is not a dead agent: following has no limit on silence, the socket's end ends it.
        async with self._open("GET", path, silence_limit_s=None if follow else _CALL_TIMEOUT_S) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def build_image(self, image: ImageSpec) -> AsyncGenerator[BuildEvent, None]:
        """Make an image ready; the last event holds ``image`` or ``error``."""
        request = BuildRequest(image=image)
        async for line in self._lines("POST", "/v1/images", request, silence_limit_s=_BUILD_SILENCE_LIMIT_S):
            yield parse(BuildEvent.model_validate_json, line)

    async def images(self) -> list[ImageView]:
        """All images of the node."""
        return parse(_IMAGES.validate_json, await self._call("GET", "/v1/images"))

    async def image(self, image_id: str) -> ImageView:
        """One image. Raises NotFound."""
        return parse(ImageView.model_validate_json, await self._call("GET", f"/v1/images/{_part(image_id)}"))

    async def delete_image(self, image_id: str) -> None:
        """Remove an image nothing uses. Raises NotFound, Conflict."""
        await self._call("DELETE", f"/v1/images/{_part(image_id)}")

    async def indexes(self) -> list[IndexView]:
        """All image indexes of the node."""
        return parse(_INDEXES.validate_json, await self._call("GET", "/v1/indexes"))

    async def index(self, image: str) -> IndexView:
        """One image index, by name or digest. Raises NotFound."""
        return parse(IndexView.model_validate_json, await self._call("GET", f"/v1/indexes/{_part(image)}"))

    async def image_task(self, task: ImageTask) -> AsyncGenerator[TaskEvent, None]:
        """Do an image task; the last event holds ``result`` or ``error``."""
        request = TaskRequest(task=task)
        async for line in self._lines(
            "POST", "/v1/image-tasks", request, silence_limit_s=_BUILD_SILENCE_LIMIT_S
        ):
            yield parse(TaskEvent.model_validate_json, line)

    async def snapshots(self, *, region: bool = False) -> list[SnapshotView]:
        """All snapshots of the node, or of its region."""
        path = "/v1/snapshots?region=true" if region else "/v1/snapshots"
        return parse(_SNAPSHOTS.validate_json, await self._call("GET", path))

    async def snapshot(self, snapshot_id: str) -> SnapshotView:
        """One snapshot. Raises NotFound."""
        return parse(
            SnapshotView.model_validate_json, await self._call("GET", f"/v1/snapshots/{_part(snapshot_id)}")
        )

    async def delete_snapshot(self, snapshot_id: str, *, region: bool = False) -> None:
        """Remove a snapshot from the node, or from its region. Raises NotFound, Conflict."""
        query = "?region=true" if region else ""
        await self._call("DELETE", f"/v1/snapshots/{_part(snapshot_id)}{query}")

    async def verify_snapshot(self, snapshot_id: str) -> SnapshotView:
        """Re-hash everything. Raises NotFound."""
        path = f"/v1/snapshots/{_part(snapshot_id)}/verify"
        return parse(
            SnapshotView.model_validate_json, await self._call("POST", path, timeout_s=_VERIFY_TIMEOUT_S)
        )

    async def push_snapshot(self, snapshot_id: str) -> AsyncGenerator[TaskEvent, None]:
        """Bring it to the region; the last event holds ``result`` or ``error``."""
        async for event in self._move(f"/v1/snapshots/{_part(snapshot_id)}/push"):
            yield event

    async def pull_snapshot(self, snapshot_id: str, *, content: bool) -> AsyncGenerator[TaskEvent, None]:
        """Fetch it from the region; the last event holds ``result`` or ``error``."""
        query = "?content=true" if content else ""
        async for event in self._move(f"/v1/snapshots/{_part(snapshot_id)}/pull{query}"):
            yield event

    async def collect_snapshots(self, grace_s: float) -> AsyncGenerator[TaskEvent, None]:
        """Remove the region's garbage of snapshots; the last event holds ``result`` or ``error``."""
        async for event in self._move(f"/v1/snapshots/gc?grace_s={grace_s}"):
            yield event

    async def reseal_snapshots(self) -> AsyncGenerator[TaskEvent, None]:
        """Seal all with the first key, here and in the region; the last event is as that of a push."""
        async for event in self._move("/v1/snapshots/reseal"):
            yield event

    async def _move(self, path: str) -> AsyncGenerator[TaskEvent, None]:
        async for line in self._lines("POST", path, silence_limit_s=_BUILD_SILENCE_LIMIT_S):
            yield parse(TaskEvent.model_validate_json, line)

    async def next_start(self, order: StartReplica) -> HeatView:
        """What such a start would find there now."""
        return parse(HeatView.model_validate_json, await self._call("POST", "/v1/next-start", order))

    async def create_snapshot(self, order: StartReplica) -> SnapshotView:
        """Begin to capture now."""
        answer = await self._call("POST", "/v1/snapshots", order, timeout_s=_START_TIMEOUT_S)
        return parse(SnapshotView.model_validate_json, answer)

    @asynccontextmanager
    async def exec(
        self, replica_id: str, query: Sequence[tuple[str, str]]
    ) -> AsyncIterator[ClientConnection]:
        """The exec socket of a replica (frames as in docs/architecture.md), closed on leaving."""
        self._authority.check()
        path = f"/v1/replicas/{_part(replica_id)}/exec?{urlencode(query)}"
        try:
            connection = await self._connect(path)
        except InvalidStatus as error:
            raise self._refused(error.response.status_code, bytes(error.response.body or b"")) from error
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise self._unavailable(error) from error
        try:
            yield connection
        finally:
            await connection.close()

    # -- inside ------------------------------------------------------------------------------------------

    async def _connect(self, path: str) -> ClientConnection:
        options: dict[str, Any] = {
            "open_timeout": _CALL_TIMEOUT_S,
            "close_timeout": _CONNECT_TIMEOUT_S,
            "compression": None,
            "max_size": None,
            "additional_headers": self._term(),
        }
        address = self.address
        if isinstance(address, LocalNode):
            return await unix_connect(str(address.socket_path), f"ws://agent{path}", **options)
        return await connect(
            f"wss{_url(address).removeprefix('https')}{path}",
            ssl=address.http,
            server_hostname=address.name,
            proxy=None,
            **options,
        )

    async def _call(
        self, method: str, path: str, message: Message | None = None, *, timeout_s: float = _CALL_TIMEOUT_S
    ) -> bytes:
        try:
            # httpx bounds single reads; a sender of one byte a second would keep us for ever.
            async with (
                asyncio.timeout(timeout_s + _CONNECT_TIMEOUT_S),
                self._open(method, path, message, silence_limit_s=timeout_s) as response,
            ):
                return await content_of(response)
        except TimeoutError as error:
            raise self._unavailable(error) from error

    async def _lines(
        self, method: str, path: str, message: Message | None = None, *, silence_limit_s: float
    ) -> AsyncGenerator[bytes, None]:
        async with self._open(method, path, message, silence_limit_s=silence_limit_s) as response:
            async for line in lines_of(response.aiter_raw()):
                yield line

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, message: Message | None = None, *, silence_limit_s: float | None
    ) -> AsyncIterator[httpx.Response]:
        self._check(method)
        try:
            async with self._http.stream(
                method,
                path,
                json=_json(message),
                timeout=_timeout(silence_limit_s),
                headers=self._term(),
                extensions=self._extensions,
            ) as response:
                if response.status_code >= 400:
                    body = await content_of(response, MAX_ERROR_BYTES)
                    raise self._refused(response.status_code, body)
                yield response
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._unavailable(error) from error
        except RuntimeError as error:
            if not self._http.is_closed:
                raise
            raise self._unavailable(error) from error  # the node was removed meanwhile

    def _check(self, method: str) -> None:
        if method != "GET":
            self._authority.check()

    def _term(self) -> dict[str, str]:
        term = self._authority.term
        return {} if term is None else {TERM_HEADER: str(term)}

    def _refused(self, status: int, body: bytes) -> GlowplugError:
        error = error_from(status, body)
        if isinstance(error, NotLeader):
            self._authority.was_refused(error)
        return error

    def _unavailable(self, error: Exception) -> NoAnswer:
        cause = f"{type(error).__name__}: {error}"
        kind = NotConnected if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else NoAnswer
        if isinstance(self.address, LocalNode):
            return kind(
                "The node agent does not answer.",
                remedy="It is restarted by glowplug up; see logs/agent.log in the state directory.",
                socket=str(self.address.socket_path),
                cause=cause,
            )
        return kind(
            f"Node {self.address.name} does not answer.",
            remedy="`glowplug cluster status` says since when; see that the machine runs and can be reached.",
            address=f"{self.address.host}:{self.address.port}",
            cause=cause,
        )


def _url(address: RemoteNode) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"https://{host}:{address.port}"


def _timeout(read_s: float | None) -> httpx.Timeout:
    return httpx.Timeout(
        connect=_CONNECT_TIMEOUT_S, read=read_s, write=_CALL_TIMEOUT_S, pool=_CONNECT_TIMEOUT_S
    )


def _part(identifier: str) -> str:
    """An id as one part of a path, whatever it holds: also ``..`` must not climb."""
    return quote(identifier, safe="").replace(".", "%2E")


def _json(message: Message | None) -> Any:
    return None if message is None else message.model_dump(mode="json")
