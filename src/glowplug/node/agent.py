"""The node agent: owns every replica on this machine, and outlives neither of their lives nor hinders it.

Replicas are not the agent's children in any way that matters: killed, it leaves them running, and its
successor adopts them from what was written down. What was half-made when it died is removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass, field

from glowplug.image.mount import Mounter
from glowplug.node import failures, logs
from glowplug.node.admission import check_request
from glowplug.node.capacity import Capacity
from glowplug.node.capture import Captures
from glowplug.node.container import Container, exec_pid
from glowplug.node.exits import read_exit_code
from glowplug.node.leftovers import Leftovers
from glowplug.node.race import Interrupted, before
from glowplug.node.record import ReplicaFolder, is_running
from glowplug.node.replica import Replica
from glowplug.node.runtimes import Runtimes
from glowplug.node.starter import Starter
from glowplug.node.table import ReplicaTable
from glowplug.node.terminal import ExecCommand
from glowplug.observe.metrics import Metrics
from glowplug.runtime.cgroup import ReplicaCgroup
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
_KILL_AGAIN_S = 0.05
_STOP_ALL_DEADLINE_S = 60.0

logger = logging.getLogger(__name__)


@dataclass
class Agent:
    """Everything on this machine, and the only one who changes it. Lives on one event loop."""

    state: StateDir
    runtimes: Runtimes
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
            self.runtimes, self.images, self.snapshots, self.metrics, MachineIdentity.read()
        )
        self.leftovers = Leftovers(self.state, self.runtimes, self.starter.in_thread)
        self.captures = Captures(
            self.starter,
            self.images,
            self.snapshots,
            self.capacity,
            self.metrics,
            self.clock,
            self.leftovers,
            self._new_replica,
        )

    async def open(self) -> None:
        """Take over what a predecessor left: adopt what lives, clean up what does not. Raises SystemUnfit."""
        self.state.create()
        await self.starter.in_thread(self.runtimes.open)
        await self.starter.in_thread(self.snapshots.sweep)
        names = [folder.name for folder in self.state.replicas.iterdir()]
        for name, problem in zip(
            names, await asyncio.gather(*map(self._adopt, names), return_exceptions=True), strict=True
        ):
            if problem is not None:  # the others are served all the same
                logger.error("could not take over %s", name, exc_info=problem)
        self._spawn(self._housekeeping())

    async def close(self, *, stop_replicas: bool) -> None:
        """Leave. Replicas keep running for a successor unless ``stop_replicas``."""
        await self.captures.close()
        for replica in list(self._replicas.values()):
            if stop_replicas or replica.view.state is ReplicaState.STARTING:
                self.stop(replica.id, grace_s=DEFAULT_GRACE_S)
        leaving = [
            self._lives[replica.id]
            for replica in self._replicas.values()
            if replica.stop_requested.is_set() and replica.id in self._lives
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
        """Begin starting a replica; the same id twice is one start, however the first one went.

        Raises InvalidInput, Unavailable if it does not fit, or SystemUnfit if this node lacks its runtime.
        """
        check_request(request)
        existing = self.table.find(request.replica_id)
        if existing is not None:
            return existing
        self.runtimes.choose(request.server)
        self.capacity.reserve(request.replica_id, request.server.resources)
        try:
            replica = self._new_replica(request, Purpose.SERVE)
        except OSError as error:
            self.capacity.release(request.replica_id)
            raise failures.from_system(f"{request.replica_id} could not start", error) from error
        self._replicas[replica.id] = replica
        self._lives[replica.id] = self._spawn(self._live(replica))
        return replica.view

    def stop(self, replica_id: str, grace_s: float) -> ReplicaView:
        """Begin stopping: SIGTERM, ``grace_s`` seconds, then SIGKILL. Raises NotFound, Conflict.

        One that is still starting has nothing to finish: it is killed at once.
        """
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
        was_ready = replica.view.state is ReplicaState.READY
        replica.change(state=ReplicaState.DRAINING)
        self._spawn(self._terminate(replica, grace_s) if was_ready else self._kill(replica))
        return replica.view

    def capture(self, request: StartReplica) -> SnapshotView:
        """Capture a snapshot now. Raises InvalidInput, Conflict or Unavailable."""
        check_request(request)
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
            runtime=self.runtimes.describe(),
            replicas=len(self._replicas),
        )

    def images_in_use(self) -> set[str]:
        """Images that a replica stands on. May be called in any thread."""
        serving = {replica.request.image_id for replica in list(self._replicas.values())}
        return serving | self.captures.images_in_use()

    def memory_bytes(self, replica_id: str) -> int | None:
        """Memory charged to a replica, or None when it is gone."""
        return ReplicaCgroup(replica_id).memory_bytes()

    def exec_command(self, replica_id: str, command: list[str], *, tty: bool) -> ExecCommand:
        """How to run ``command`` in a living, serving replica. Raises NotFound, Conflict."""
        view = self.table.get(replica_id)
        replica = self._replicas.get(replica_id)
        if replica is None or view.state.is_final:
            raise Conflict(
                f"{replica_id} is {view.state.value} ({view.purpose.value}); nothing can be run in it.",
                remedy="`glowplug ps` lists running replicas.",
                replica_id=replica_id,
            )
        pid_file = replica.container.folder.execs / secrets.token_hex(8)
        container = replica.container
        return ExecCommand(
            container.exec_argv(command, tty=tty, pid_file=pid_file),
            has_begun=lambda: exec_pid(pid_file) is not None,
            end_inside=lambda: container.end_exec(pid_file),
        )

    def _new_replica(self, request: StartReplica, purpose: Purpose) -> Replica:
        runtime = self.runtimes.choose(request.server)
        container = Container(self.state, self.runtimes, runtime, request.replica_id, request.server)
        container.folder.create()
        return Replica(self.state, self.table, request, container, purpose, self.clock.wall())

    async def _live(self, replica: Replica) -> None:
        """A replica's whole life, from start to the removal of its last trace."""
        try:
            await before(replica.stop_requested.wait(), self.starter.bring_up(replica))
        except asyncio.CancelledError:
            await self._end(replica, ReplicaState.STOPPED, None)
            raise
        except Interrupted:
            pass
        except GlowplugError as error:
            await self._end_of_start(replica, error)
            return
        except Exception as error:  # a bug of ours must not leave a replica nobody owns
            logger.exception("starting %s failed", replica.id)
            await self._end_of_start(replica, GlowplugError(f"Starting {replica.id} failed: {error!r}"))
            return
        if replica.stop_requested.is_set():
            await self._end(replica, ReplicaState.STOPPED, None)
            return
        replica.change(state=ReplicaState.READY, ready_at=self.clock.wall(), stage=None)
        logger.info("%s is ready (%s)", replica.id, replica.view.path.value)
        if replica.view.snapshot_id is None:
            await self.starter.keep_trace(replica)
            await self.captures.wanted(replica.request)
        await self._until_its_end(replica)

    async def _end_of_start(self, replica: Replica, error: GlowplugError) -> None:
        """It did not come up: because somebody stopped it, or by itself."""
        if replica.stop_requested.is_set():
            await self._end(replica, ReplicaState.STOPPED, None)
        else:
            await self._end(replica, ReplicaState.FAILED, error)

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
        await self.leftovers.remove(replica.id)
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
        if grace_s > 0:
            try:
                await self.starter.in_thread(replica.container.signal, "SIGTERM")
                await asyncio.wait_for(watch.wait(), grace_s)
            except TimeoutError:
                logger.info("%s did not end within %g s of SIGTERM", replica.id, grace_s)
            except GlowplugError as error:
                logger.info("%s is killed, as it cannot be asked to end: %s", replica.id, error)
        if not watch.has_ended:
            await self._kill(replica)

    async def _kill(self, replica: Replica) -> None:
        """SIGKILL the sandbox until it has ended, or somebody cleaned up after it."""
        while replica.id in self._replicas:
            await self.starter.in_thread(replica.container.kill)
            if replica.exit_watch is None or replica.exit_watch.has_ended:
                return
            await asyncio.sleep(_KILL_AGAIN_S)

    async def _adopt(self, replica_id: str) -> None:
        """Take over one replica of a predecessor, or remove what is left of it."""
        record = ReplicaFolder(self.state, replica_id).load()
        if record is None or record.view.purpose is Purpose.CAPTURE or record.view.id != replica_id:
            await self.leftovers.remove(replica_id)
            return
        request = StartReplica(
            replica_id=replica_id,
            app=record.view.app,
            deployment_id=record.view.deployment_id,
            server=record.server,
            image_id=record.image_id,
        )
        container = Container(self.state, self.runtimes, record.view.runtime, replica_id, record.server)
        replica = Replica(self.state, self.table, request, container, Purpose.SERVE, record.view.created_at)
        replica.file = record
        alive = is_running(record.view.pid, record.pid_started_ticks)
        was_draining = record.view.state is ReplicaState.DRAINING
        self._replicas[replica_id] = replica
        if alive and (was_draining or record.view.state is ReplicaState.READY):
            self.capacity.hold(replica_id, record.server.resources)
            replica.watch_process(record.view.pid or 0)
            replica.change(state=ReplicaState.READY)
            await self.starter.in_thread(replica.container.end_execs)
            self._lives[replica_id] = self._spawn(self._until_its_end(replica))
            if was_draining:
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
        code = read_exit_code(self.state.exits, record.view.pid, record.view.created_at)
        await self._end(replica, ReplicaState.FAILED, error, code)

    async def _housekeeping(self) -> None:
        """Keep logs small, and remove what could not be removed at once."""
        while True:
            try:
                await self.starter.in_thread(self._keep_logs_small)
                await self.leftovers.retry()
            except Exception:  # the next round may fare better
                logger.exception("housekeeping failed")
            await asyncio.sleep(HOUSEKEEPING_S)

    def _keep_logs_small(self) -> None:
        for log in self.state.replica_logs.glob("*.log"):
            logs.rotate(log)
        logs.prune(self.state.replica_logs, set(self._replicas.copy()))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _exit_code_of(error: GlowplugError | None) -> int | None:
    code = error.details.get("exit_code") if error is not None else None
    return code if isinstance(code, int) else None
