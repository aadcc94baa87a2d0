"""The node agent: owns every replica on this machine, and outlives neither of their lives nor hinders it.

Replicas are not the agent's children in any way that matters: killed, it leaves them running, and its
successor adopts them from what was written down. What was half-made when it died is removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from dataclasses import dataclass, field

from glowplug.image.mount import Mounter
from glowplug.kernel.processes import is_running
from glowplug.node import failures, logs
from glowplug.node.admission import check_request
from glowplug.node.capacity import Capacity
from glowplug.node.capture import Captures
from glowplug.node.container import Container, exec_pid
from glowplug.node.exits import read_exit_code
from glowplug.node.gpu_parking import GpuParking
from glowplug.node.gpu_snapshots import GpuSnapshots
from glowplug.node.gpus import Gpus
from glowplug.node.large_pages import LargePages
from glowplug.node.leftovers import Leftovers
from glowplug.node.lives import Lives
from glowplug.node.memory import MemoryReadings
from glowplug.node.memory_pressure import watch_memory
from glowplug.node.next_start import next_start
from glowplug.node.page_merging import PageMerging
from glowplug.node.parking import Parking
from glowplug.node.probation import NodeProbation
from glowplug.node.record import ReplicaFolder
from glowplug.node.replica import Replica
from glowplug.node.restore_watch import RestoreWatches
from glowplug.node.runtimes import Runtimes
from glowplug.node.snapshot_publishing import SnapshotPublishing
from glowplug.node.snapshot_search import SnapshotSearch
from glowplug.node.start_times import StartTimes
from glowplug.node.starter import Starter
from glowplug.node.table import ReplicaTable
from glowplug.node.terminal import ExecCommand
from glowplug.observe.metrics import Metrics
from glowplug.runtime.network import SpareNetworks
from glowplug.runtime.port import ContainerEdits
from glowplug.snapshot.expiry import Expiry
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.key import MachineIdentity
from glowplug.snapshot.per_server import KEPT, PerServer
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, GlowplugError, InvalidInput, ReplicaFailed, StartInterrupted
from glowplug.types.paths import StateDir
from glowplug.types.replica import (
    HeatView,
    NodeView,
    Purpose,
    ReplicaState,
    ReplicaView,
    SnapshotView,
    StartReplica,
)
from glowplug.types.spec import ServerSpec

HOUSEKEEPING_S = 5.0
OLD_SNAPSHOTS_EVERY_S = 60.0
DEFAULT_GRACE_S = 10.0

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
    gpus: Gpus
    capacity: Capacity = field(init=False)
    version: str = ""
    search: SnapshotSearch | None = None
    publishing: SnapshotPublishing | None = None
    snapshot_ttl_s: float | None = None
    snapshots_per_server: int = KEPT
    table: ReplicaTable = field(default_factory=ReplicaTable)

    def __post_init__(self) -> None:
        self.capacity = Capacity.read(self.gpus.fit)
        self.start_times = StartTimes(self.state.start_times)
        self.probation = NodeProbation(self.state.probation, self.clock)
        self.large_pages = LargePages(self.state.large_pages)
        guard = GpuGuard(self.state.gpu_guard)
        self.devices = GpuSnapshots(self.gpus, self.capacity, guard, self.metrics.registry)
        self.machine = MachineIdentity.read(gpus=self.gpus.usable)
        self.starter = Starter(
            self.runtimes,
            self.images,
            self.snapshots,
            self.metrics,
            self.machine,
            self.start_times,
            self.probation,
            RestoreWatches(self.start_times, self.clock),
            self.large_pages,
            self.devices,
            self.search,
        )
        self.networks = SpareNetworks()
        self.memory = MemoryReadings(self.clock, self.gpus)
        self.merging = PageMerging(self.state.page_merging, self.clock)
        self.leftovers = Leftovers(self.state, self.runtimes, self.starter.in_thread)
        self.captures = Captures(
            self.starter,
            self.images,
            self.snapshots,
            self.start_times,
            self.probation,
            self.capacity,
            self.metrics,
            self.clock,
            self.leftovers,
            self._new_replica,
            self._publish,
        )
        self.metrics.show_trust(
            is_quarantined=lambda: self.probation.quarantine is not None,
            opted_out=self.start_times.opted_out_keys,
        )
        self.lives = Lives(
            self.starter, self.captures, self.merging, self.leftovers, self.capacity, self.clock
        )
        self.parking = Parking(
            self.lives.replicas,
            self.table,
            self.starter,
            self.capacity,
            GpuParking(self.devices, self.starter, self.capacity),
            self.clock,
            spawn=self.lives.spawn,
            captures=self.captures,
        )

    async def open(self) -> None:
        """Take over what a predecessor left: adopt what lives, clean up what does not. Raises SystemUnfit."""
        self.state.create()
        self.devices.open()
        await self.starter.in_thread(self.runtimes.open)
        await self.starter.in_thread(self.snapshots.sweep)
        await self.starter.in_thread(self.merging.put_back)
        await self.starter.in_thread(self.large_pages.put_back)
        names = [folder.name for folder in self.state.replicas.iterdir()]
        for name, problem in zip(
            names, await asyncio.gather(*map(self._adopt, names), return_exceptions=True), strict=True
        ):
            if problem is not None:  # the others are served all the same
                logger.error("could not take over %s", name, exc_info=problem)
        self.lives.spawn(self._housekeeping())
        self.lives.spawn(watch_memory(self.table))
        self.lives.spawn(self._remove_old_snapshots())

    async def close(self, *, stop_replicas: bool) -> None:
        """Leave. Replicas keep running for a successor unless ``stop_replicas``."""
        await self.captures.close()
        await self.lives.close(DEFAULT_GRACE_S, stop_replicas=stop_replicas)
        await self.devices.close()
        self.table.end_watches()
        if self.search is not None:
            self.search.close()
        if self.publishing is not None:
            await self.starter.in_thread(self.publishing.close)
        await self.starter.in_thread(self.merging.put_back)
        self.networks.close()
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
        with self.captures.giving_way():
            self.capacity.reserve(request.replica_id, request.server.resources)
        try:
            replica = self._new_replica(request, Purpose.SERVE)
        except OSError as error:
            self.capacity.release(request.replica_id)
            raise failures.from_system(f"{request.replica_id} could not start", error) from error
        except GlowplugError:
            self.capacity.release(request.replica_id)
            raise
        self.lives.begin(replica)
        return replica.view

    def stop(self, replica_id: str, grace_s: float) -> ReplicaView:
        """Begin stopping: SIGTERM, ``grace_s`` seconds, then SIGKILL. Raises NotFound, Conflict.

        One that is still starting has nothing to finish: it is killed at once.
        """
        view = self.table.get(replica_id)
        replica = self.lives.replicas.get(replica_id)
        if replica is None:
            if view.state.is_final:
                return view
            raise Conflict(
                f"{replica_id} is being captured; it ends by itself.",
                remedy="Wait for the capture to finish: `glowplug snapshot ls` shows it.",
                replica_id=replica_id,
            )
        self.lives.stop(replica, grace_s)
        return replica.view

    def capture(self, request: StartReplica) -> SnapshotView:
        """Capture a snapshot now. Raises InvalidInput, Conflict or Unavailable."""
        check_request(request)
        if request.server.snapshot.enabled and (why := request.server.why_no_snapshot):
            raise InvalidInput(f"{request.app}/{request.server.name}: {why}.", remedy="docs/gpu.md says how.")
        key = self.starter.key(request)
        self.start_times.forget(key.id)
        return self.captures.begin(key, request)

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
            gpus=[device.chip for device in self.capacity.gpus],
            gpus_used=self.capacity.gpus_used,
            runtime=self.runtimes.describe(),
            replicas=len(self.lives.replicas),
            quarantine=self.probation.quarantine,
        )

    def next_start(self, request: StartReplica) -> HeatView:
        """What a start would find here now. Raises InvalidInput. May be called in any thread."""
        check_request(request)
        return next_start(request, self.starter, self.snapshots, self.start_times, self.probation)

    def images_in_use(self) -> set[str]:
        """Images that a replica stands on. May be called in any thread."""
        serving = {replica.request.image_id for replica in list(self.lives.replicas.values())}
        return serving | self.captures.images_in_use()

    def exec_command(self, replica_id: str, command: list[str], *, tty: bool) -> ExecCommand:
        """How to run ``command`` in a living, serving replica. Raises NotFound, Conflict."""
        view = self.table.get(replica_id)
        replica = self.lives.replicas.get(replica_id)
        if replica is None or view.state.is_final or view.state is ReplicaState.PARKED:
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

    def _publish(self, snapshot_id: str) -> None:
        if self.publishing is not None:
            self.publishing.offer(snapshot_id)

    def _new_replica(self, request: StartReplica, purpose: Purpose) -> Replica:
        runtime = self.runtimes.choose(request.server)
        gpus = self.capacity.gpus_of(request.replica_id)
        edits = self.gpus.edits(runtime, gpus)
        container = self._container(runtime, request.replica_id, request.server, edits)
        container.folder.create()
        return Replica(self.state, self.table, request, container, purpose, self.clock.wall(), gpus)

    def _container(
        self, runtime: str, replica_id: str, server: ServerSpec, edits: ContainerEdits | None = None
    ) -> Container:
        return Container(self.state, self.runtimes, runtime, replica_id, server, self.networks, edits)

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
        container = self._container(record.view.runtime, replica_id, record.server)
        replica = Replica(self.state, self.table, request, container, Purpose.SERVE, record.view.created_at)
        replica.file = record
        alive = is_running(record.view.pid, record.pid_started_ticks)
        was_draining = record.view.state is ReplicaState.DRAINING
        self.lives.replicas[replica_id] = replica
        # Device memory that is away is brought back by nobody but who wakes what is parked.
        is_lost = record.is_moving or (record.away is not None and not container.cgroup.is_frozen)
        if alive and record.view.state is not ReplicaState.STARTING and not is_lost:
            self.capacity.hold(replica_id, record.server.resources, record.view.gpus)
            replica.watch_process(record.view.pid or 0)
            if container.cgroup.is_frozen:
                self.parking.adopt(replica)
            else:
                replica.change(state=ReplicaState.READY, parked_at=None, is_pushed_out=False)
                await self.starter.in_thread(replica.container.end_execs)
            self.lives.take_over(replica)
            if was_draining:
                self.stop(replica_id, DEFAULT_GRACE_S)
            logger.info("adopted %s", replica_id)
            return
        error = _why_not_adopted(record.view, is_lost=is_lost and alive)
        code = read_exit_code(self.state.exits, record.view.pid, record.view.created_at)
        await self.lives.end(replica, ReplicaState.FAILED, error, code)

    async def _housekeeping(self) -> None:
        """Keep logs small, remove what is left over, merge pages while it pays, keep networks in stock."""
        while True:
            try:
                await self.starter.in_thread(self._keep_logs_small)
                await self.leftovers.retry()
                await self.starter.in_thread(self.snapshots.sweep_again)
                await self.starter.in_thread(self.merging.step)
                await self.parking.release_killed()
                await self.starter.in_thread(self.networks.fill)
                await self.starter.in_thread(self.gpus.refresh)
                self.capacity.gpus = self.gpus.fit
            except Exception:  # the next round may fare better
                logger.exception("housekeeping failed")
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _remove_old_snapshots(self) -> None:
        """Those that nobody uses any more, where an operator wants that, and those that are too many."""
        too_many = PerServer(self.snapshots, self.snapshots_per_server, self.metrics.count_superseded)
        expiry = None
        if self.snapshot_ttl_s is not None:
            expiry = Expiry(self.snapshots, self.snapshot_ttl_s, self.clock, self.metrics.count_expired)
        while True:
            requests = [replica.request for replica in self.lives.replicas.values()]
            living = {f"{request.app}/{request.server.name}" for request in requests}
            try:
                await self.starter.in_thread(too_many.run)
                if expiry is not None:
                    await self.starter.in_thread(expiry.run, living)
            except (GlowplugError, OSError):
                logger.exception("removing old snapshots failed")
            await asyncio.sleep(OLD_SNAPSHOTS_EVERY_S)

    def _keep_logs_small(self) -> None:
        for log in self.state.replica_logs.glob("*.log"):
            logs.rotate(log)
        logs.prune(self.state.replica_logs, set(self.lives.replicas.copy()))


def _why_not_adopted(view: ReplicaView, *, is_lost: bool) -> GlowplugError:
    """Who was starting was interrupted by us: no fault of its server. Who served has ended by itself."""
    remedy = "It is started again when needed."
    if is_lost:
        why = f"The device memory of {view.id} was being moved when the node agent died."
        return StartInterrupted(why, remedy=remedy, replica_id=view.id)
    if view.state is ReplicaState.STARTING:
        why = f"{view.id} was still starting when the node agent died."
        return StartInterrupted(why, remedy=remedy, replica_id=view.id)
    why = f"{view.id} ended while no node agent was running."
    return ReplicaFailed(why, remedy=remedy, replica_id=view.id)
