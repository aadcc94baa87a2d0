"""The node agent: owns every replica on this machine, and outlives neither of their lives nor hinders it.

Replicas are not the agent's children in any way that matters: killed, it leaves them running, and its
successor adopts them from what was written down. What was half-made when it died is removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from dataclasses import dataclass, field

from glowplug.image.mount import Mounter
from glowplug.node import failures, logs
from glowplug.node.capacity import Capacity
from glowplug.node.capture import Captures
from glowplug.node.container import Container, remove_leftovers
from glowplug.node.record import ReplicaFolder, is_running
from glowplug.node.replica import Replica
from glowplug.node.starter import Starter
from glowplug.node.table import ReplicaTable
from glowplug.observe.metrics import Metrics
from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.runtime.port import Runtime
from glowplug.snapshot.key import MachineIdentity
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, ReplicaFailed
from glowplug.types.paths import StateDir
from glowplug.types.replica import (
    ErrorInfo,
    NodeView,
    Purpose,
    ReplicaState,
    ReplicaView,
    SnapshotView,
    StartReplica,
)

HOUSEKEEPING_S = 5.0
DEFAULT_GRACE_S = 10.0
_STOP_ALL_DEADLINE_S = 60.0

logger = logging.getLogger(__name__)


@dataclass
class Agent:
    """Everything on this machine, and the only one who changes it. Lives on one event loop."""

    state: StateDir
    runtime: Runtime
    images: Mounter
    snapshots: SnapshotStore
    metrics: Metrics
    clock: Clock
    capacity: Capacity = field(default_factory=Capacity.read)
    version: str = ""
    table: ReplicaTable = field(default_factory=ReplicaTable)
    _replicas: dict[str, Replica] = field(default_factory=dict)
    _lives: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.starter = Starter(
            self.runtime, self.images, self.snapshots, self.metrics, MachineIdentity.read()
        )
        self.captures = Captures(
            self.starter,
            self.images,
            self.snapshots,
            self.capacity,
            self.metrics,
            self.clock,
            self._new_replica,
        )

    async def open(self) -> None:
        """Take over what a predecessor left: adopt what lives, clean up what does not."""
        self.state.create()
        await self.starter.in_thread(self.snapshots.sweep)
        for folder in sorted(self.state.replicas.iterdir()):
            await self._adopt(folder.name)
        self._spawn(self._housekeeping())

    async def close(self, *, stop_replicas: bool) -> None:
        """Leave. Replicas keep running for a successor unless ``stop_replicas``."""
        await self.captures.close()
        for replica in list(self._replicas.values()):
            if stop_replicas or replica.view.state is ReplicaState.STARTING:
                self.stop(replica.id, grace_s=DEFAULT_GRACE_S)
        leaving = [
            self._lives[replica.id] for replica in self._replicas.values() if replica.stop_requested.is_set()
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=_STOP_ALL_DEADLINE_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self._replicas.values():
            replica.stop_watching()
        self.table.end_watches()
        self.starter.close()

    def start(self, request: StartReplica) -> ReplicaView:
        """Begin starting a replica; the same id twice is one start. Raises Unavailable if it does not fit."""
        existing = self._replicas.get(request.replica_id)
        if existing is not None:
            return existing.view
        self.capacity.reserve(request.replica_id, request.server.resources)
        try:
            replica = self._new_replica(request, Purpose.SERVE)
        except GlowplugError:
            self.capacity.release(request.replica_id)
            raise
        self._replicas[replica.id] = replica
        self._lives[replica.id] = self._spawn(self._live(replica))
        return replica.view

    def stop(self, replica_id: str, grace_s: float) -> ReplicaView:
        """Begin stopping: SIGTERM, ``grace_s`` seconds, then SIGKILL. Raises NotFound, Conflict."""
        view = self.table.get(replica_id)
        replica = self._replicas.get(replica_id)
        if replica is None:
            if view.state.is_final:
                return view
            raise Conflict(
                f"{replica_id} is being captured; it ends by itself.",
                remedy="Wait for the capture to finish: `glowplug snapshot ls` shows it.",
                replica_id=replica_id,
            )
        if replica.stop_requested.is_set():
            return replica.view
        replica.stop_requested.set()
        if replica.view.state is ReplicaState.READY:
            replica.change(state=ReplicaState.DRAINING)
            self._spawn(self._terminate(replica, grace_s))
        return replica.view

    def capture(self, request: StartReplica) -> SnapshotView:
        """Capture a snapshot now. Raises Conflict or Unavailable."""
        return self.captures.begin(self.starter.key(request), request)

    def view(self) -> NodeView:
        """This machine."""
        return NodeView(
            name=os.uname().nodename,
            agent_pid=os.getpid(),
            version=self.version,
            cpus=self.capacity.cpus,
            cpus_used=self.capacity.cpus_used,
            memory_bytes=self.capacity.memory_bytes,
            memory_used_bytes=self.capacity.memory_used_bytes,
            gpus=self.capacity.gpus,
            gpus_used=self.capacity.gpus_used,
            runtime=f"{self.runtime.identity().name} {self.runtime.identity().version}",
            replicas=len(self._replicas),
        )

    def images_in_use(self) -> set[str]:
        """Images that a replica stands on."""
        return {replica.request.image_id for replica in self._replicas.values()}

    def memory_bytes(self, replica_id: str) -> int | None:
        """Memory charged to a replica, or None when it is gone."""
        return ReplicaCgroup(replica_id).memory_bytes()

    def exec_argv(self, replica_id: str, command: list[str], *, tty: bool) -> list[str]:
        """The host command that runs ``command`` in a living, serving replica. Raises NotFound, Conflict."""
        view = self.table.get(replica_id)
        replica = self._replicas.get(replica_id)
        if replica is None or view.state.is_final:
            raise Conflict(
                f"{replica_id} is {view.state.value} ({view.purpose.value}); nothing can be run in it.",
                remedy="`glowplug ps` lists running replicas.",
                replica_id=replica_id,
            )
        return self.runtime.exec_argv(replica_id, command, tty=tty)

    def _new_replica(self, request: StartReplica, purpose: Purpose) -> Replica:
        container = Container(self.state, self.runtime, request.replica_id, request.server)
        container.folder.create()
        return Replica(self.state, self.table, request, container, purpose, self.clock.wall())

    async def _live(self, replica: Replica) -> None:
        """A replica's whole life, from start to the removal of its last trace."""
        try:
            await self.starter.bring_up(replica)
        except asyncio.CancelledError:
            await self._end(replica, ReplicaState.STOPPED, None)
            raise
        except GlowplugError as error:
            if replica.stop_requested.is_set():
                await self._end(replica, ReplicaState.STOPPED, None)
            else:
                await self._end(replica, ReplicaState.FAILED, error)
            return
        except Exception as error:  # a bug of ours must not leave a replica nobody owns
            logger.exception("starting %s failed", replica.id)
            await self._end(
                replica, ReplicaState.FAILED, GlowplugError(f"Starting {replica.id} failed: {error!r}")
            )
            return
        if replica.stop_requested.is_set():
            await self._end(replica, ReplicaState.STOPPED, None)
            return
        replica.change(state=ReplicaState.READY, ready_at=self.clock.wall(), stage=None)
        logger.info("%s is ready (%s)", replica.id, replica.view.path.value)
        if replica.view.snapshot_id is None:
            await self.captures.wanted(replica.request)
        await self._until_its_end(replica)

    async def _until_its_end(self, replica: Replica) -> None:
        """Wait for the sandbox to end, find out why, clean up."""
        watch = replica.exit_watch
        if watch is None:
            return
        await watch.wait()
        code = await watch.exit_code()
        if replica.stop_requested.is_set():
            await self._end(replica, ReplicaState.STOPPED, None, code)
            return
        container = replica.container
        error = failures.exited(
            replica.id, replica.request.server, container.folder.log, code, container.cgroup.oom_kills()
        )
        await self._end(replica, ReplicaState.FAILED, error, code)

    async def _end(
        self, replica: Replica, state: ReplicaState, error: GlowplugError | None, code: int | None = None
    ) -> None:
        """Remove every trace but the log, then tell."""
        replica.stop_watching()
        try:
            await self.starter.in_thread(replica.container.destroy)
        except GlowplugError as problem:
            logger.error("cleaning up %s: %s", replica.id, problem)
        self._replicas.pop(replica.id, None)
        self._lives.pop(replica.id, None)
        self.capacity.release(replica.id)
        if error is not None:
            logger.warning("%s failed: %s", replica.id, error.message)
        replica.change(
            state=state,
            ended_at=self.clock.wall(),
            exit_code=code if code is not None else _exit_code_of(error),
            error=ErrorInfo.model_validate(error.to_dict()) if error else None,
            pid=None,
            endpoint=None,
        )
        await self.captures.room_was_made()

    async def _terminate(self, replica: Replica, grace_s: float) -> None:
        """SIGTERM, wait, remove. The task that watches the replica does the rest."""
        watch = replica.exit_watch
        if watch is None or watch.has_ended:
            return
        try:
            if grace_s > 0:
                await self.starter.in_thread(replica.container.signal, "SIGTERM")
                await asyncio.wait_for(watch.wait(), grace_s)
            else:
                await self.starter.in_thread(replica.container.stop_sandbox)
        except (TimeoutError, GlowplugError):
            await self.starter.in_thread(replica.container.stop_sandbox)

    async def _adopt(self, replica_id: str) -> None:
        """Take over one replica of a predecessor, or remove what is left of it."""
        record = ReplicaFolder(self.state, replica_id).load()
        if record is None or record.view.purpose is Purpose.CAPTURE:
            await self._sweep(replica_id)
            return
        request = StartReplica(
            replica_id=replica_id,
            app=record.view.app,
            deployment_id=record.view.deployment_id,
            server=record.server,
            image_id=record.image_id,
        )
        container = Container(self.state, self.runtime, replica_id, record.server)
        replica = Replica(self.state, self.table, request, container, Purpose.SERVE, record.view.created_at)
        replica.file = record
        alive = is_running(record.view.pid, record.pid_started_ticks)
        self._replicas[replica_id] = replica
        if alive and record.view.state in (ReplicaState.READY, ReplicaState.DRAINING):
            self.capacity.hold(replica_id, record.server.resources)
            replica.watch_process(record.view.pid or 0)
            replica.change(state=ReplicaState.READY)
            self._lives[replica_id] = self._spawn(self._until_its_end(replica))
            if record.view.state is ReplicaState.DRAINING:
                self.stop(replica_id, DEFAULT_GRACE_S)
            logger.info("adopted %s", replica_id)
            return
        why = (
            "was still starting when the node agent died"
            if alive
            else "ended while no node agent was running"
        )
        error = ReplicaFailed(
            f"{replica_id} {why}.", remedy="It is started again when needed.", replica_id=replica_id
        )
        await self._end(replica, ReplicaState.FAILED, error)

    async def _sweep(self, replica_id: str) -> None:
        """Remove what is left of a capture, or of a replica about which nothing sound was written."""
        try:
            await self.starter.in_thread(remove_leftovers, self.state, self.runtime, replica_id)
        except GlowplugError as problem:
            logger.error("cleaning up %s: %s", replica_id, problem)

    async def _housekeeping(self) -> None:
        """Keep logs small."""
        while True:
            for log in list(self.state.replica_logs.glob("*.log")):
                await self.starter.in_thread(logs.rotate, log)
            await self.starter.in_thread(logs.prune, self.state.replica_logs, set(self._replicas))
            await asyncio.sleep(HOUSEKEEPING_S)

    def _has_unfinished(self, stop_replicas: bool) -> bool:
        return any(
            stop_replicas or replica.view.state is ReplicaState.STARTING
            for replica in self._replicas.values()
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _exit_code_of(error: GlowplugError | None) -> int | None:
    code = error.details.get("exit_code") if error is not None else None
    return code if isinstance(code, int) else None
