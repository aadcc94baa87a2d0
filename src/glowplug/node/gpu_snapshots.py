"""Device memory in captures and restores: what is done to a replica's GPUs, in which order, what is counted.

::

    capture   quiesce -> lock -> checkpoint -> host_snapshot           (trial: as a restore)
    restore   host_restore -> restore -> unlock -> canary -> rotation

A captured replica sees no caller, so that nothing is to be kept out but our own requests: it is quiesced when
its hooks have run and no connection is left. The node's guard (:mod:`glowplug.snapshot.gpu.guard`) locks,
checkpoints, restores and unlocks all processes of a replica at once; the rest is the starter's and the
capture's. Whatever fails is counted with its stage and with how the processes were left, and ends in a cold
start. A replica that is to be captured, or was just restored, is killed then; one that the guard got to run
although a call failed goes on to its canary, which decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from glowplug.node.capacity import Capacity
from glowplug.node.gpus import FRESH_S, Gpus
from glowplug.node.race import Interrupted, before
from glowplug.node.replica import Replica
from glowplug.snapshot.gpu.client import GpuGuard, Moved
from glowplug.snapshot.gpu.inventory import Inventory
from glowplug.snapshot.gpu.placement import check_room, place
from glowplug.snapshot.gpu.protocol import Deadlines, Left
from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.errors import GlowplugError, ReplicaFailed, ResourceExhausted, Unavailable

# Small ones are moved in milliseconds, 140 GB in half a minute.
STAGE_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_EXPLAINED_S = 10.0
_MIB = 1 << 20

logger = logging.getLogger(__name__)


class GpuStage(StrEnum):
    """The arrows of the protocol."""

    QUIESCE = "quiesce"
    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    HOST_SNAPSHOT = "host_snapshot"
    HOST_RESTORE = "host_restore"
    RESTORE = "restore"
    UNLOCK = "unlock"
    CANARY = "canary"


class GpuSnapshots:
    """One for a node, with its guard, which is started when it is first needed. Lives on the event loop.

    Every method does nothing for a replica whose server wants no GPU memory captured.
    """

    def __init__(self, gpus: Gpus, capacity: Capacity, guard: GpuGuard, registry: CollectorRegistry) -> None:
        self._gpus = gpus
        self._capacity = capacity
        self._guard = guard
        self._seconds = Histogram(
            "glowplug_gpu_stage_seconds",
            "Stages of captures and restores of replicas with GPU memory.",
            ("stage",),
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._failures = Counter(
            "glowplug_gpu_failures",
            "Such stages that failed, and how the replica's processes were left.",
            ("stage", "left"),
            registry=registry,
        )
        self._moved_bytes = Counter(
            "glowplug_gpu_moved_bytes",
            "Device memory moved to the host by captures, and to devices by restores.",
            ("direction",),
            registry=registry,
        )

    async def close(self) -> None:
        """End the guard; what is suspended is resumed first."""
        await self._guard.close()

    def check(self, replica_id: str, max_age_s: float = FRESH_S) -> None:
        """Raise Unavailable if a GPU that was promised has failed since. Blocks; for any thread."""
        given = self._capacity.gpus_of(replica_id)
        if not given:
            return
        self._gpus.refresh(max_age_s)
        if why := self._gpus.why_unfit(given):
            raise Unavailable(
                f"{replica_id} cannot use its GPU: {why}.",
                remedy="`glowplug gpu ls` shows the others; it is started again on one of those.",
                resource="gpu",
            )

    def check_fit(self, replica_id: str, captured: Sequence[CapturedGpu], max_age_s: float = FRESH_S) -> None:
        """Before anything of a snapshot is read: whether its device memory fits on the replica's GPUs now.

        Raises GpuFailed (other GPUs), ResourceExhausted (too little free) or Unavailable (one has failed).
        Blocks; for any thread.
        """
        if captured:
            self.check(replica_id, max_age_s)
            here = self._gpus.inventory
            check_room(captured, here, place(captured, here, self._capacity.gpus_of(replica_id)))

    @contextmanager
    def stage(self, replica: Replica, stage: GpuStage) -> Iterator[None]:
        """Time a stage that somebody else does, and count it if it fails."""
        began_s = time.monotonic()
        try:
            yield
        except Exception:
            if replica.request.server.snapshot.gpu:
                self._failures.labels(stage.value, Left.KILLED.value).inc()  # by whoever did it
            raise
        if replica.request.server.snapshot.gpu:
            self._seconds.labels(stage.value).observe(time.monotonic() - began_s)

    async def suspend(self, replica: Replica) -> list[CapturedGpu]:
        """Move a quiet replica's device memory to the host; what a snapshot has to know about its GPUs.

        Raises GpuFailed, DeadlineExceeded, Unavailable, NotFound (it uses no GPU), ResourceExhausted (its
        memory limit has no room for it): it must be killed then.
        """
        if not replica.request.server.snapshot.gpu:
            return []
        before = await self._read()
        device_bytes = await asyncio.to_thread(self._fitting_bytes, replica)
        deadlines = Deadlines.for_bytes(device_bytes)
        moving = self._guard.suspend([_pid(replica)], deadlines)
        await self._counted(replica, moving, GpuStage.LOCK)
        after = {device.uuid: device for device in (await self._read()).devices}
        given = self._capacity.gpus_of(replica.id)
        captured = [
            CapturedGpu(
                uuid=device.uuid,
                chip=device.chip,
                memory_bytes=device.memory_bytes,
                is_given=device.uuid in given,
                held_bytes=max(after[device.uuid].free_bytes - device.free_bytes, 0)
                if device.uuid in given and device.uuid in after
                else 0,
            )
            for device in before.devices
            if device.uuid
        ]
        self._moved_bytes.labels("to_host").inc(sum(gpu.held_bytes for gpu in captured))
        return captured

    async def resume(self, replica: Replica, captured: Sequence[CapturedGpu]) -> None:
        """Bring the device memory of a replica, restored just now, back to the GPUs that it was given.

        Raises as :meth:`suspend`, and as :func:`place`.
        """
        if not captured:
            return
        placed = place(captured, self._gpus.inventory, self._capacity.gpus_of(replica.id))
        device_bytes = sum(gpu.held_bytes for gpu in captured)
        moving = self._guard.resume([_pid(replica)], placed, Deadlines.for_bytes(device_bytes))
        await self._counted(replica, moving, GpuStage.RESTORE)
        self._moved_bytes.labels("to_device").inc(device_bytes)

    async def _read(self) -> Inventory:
        return await asyncio.to_thread(self._gpus.refresh)

    async def _counted(self, replica: Replica, moving: Coroutine[Any, Any, Moved], first: GpuStage) -> None:
        try:
            moved = await _while_alive(replica, moving)
        except GlowplugError as error:
            left = str(error.details.get("left", ""))
            self._failures.labels(_failed_stage(error, first), left).inc()
            if left != Left.RUNNING or first is GpuStage.LOCK:
                raise
            logger.warning("a GPU call failed, and was made good: %s", error.message)
            return
        for stage in GpuStage:
            if f"{stage}_s" in moved.seconds:
                self._seconds.labels(stage.value).observe(moved.seconds[f"{stage}_s"])

    def _fitting_bytes(self, replica: Replica) -> int:
        """Its device memory, which has to fit into its own memory for a while."""
        cgroup, limit_bytes = replica.container.cgroup, replica.request.server.resources.memory_bytes
        device_bytes = self._gpus.held_bytes(cgroup.pids())
        host_bytes = cgroup.proportional_bytes()
        if host_bytes + device_bytes > limit_bytes:
            raise ResourceExhausted(
                f"{replica.id} holds {device_bytes / _MIB:.0f} MiB of device memory, which go to its own "
                f"memory while it is captured; with the {host_bytes / _MIB:.0f} MiB there that is more than "
                f"its limit of {limit_bytes / _MIB:.0f} MiB.",
                remedy="Raise memory= of the server, or free device memory in before_snapshot.",
                replica_id=replica.id,
            )
        return device_bytes


async def _while_alive(replica: Replica, moving: Coroutine[Any, Any, Moved]) -> Moved:
    """What the guard gives or raises: it ends processes that it cannot save, and says so a moment later."""
    watch = replica.exit_watch
    if watch is None:
        moving.close()
        raise ReplicaFailed(f"{replica.id} does not run.", replica_id=replica.id)

    async def has_ended_unexplained() -> None:
        await watch.wait()
        await asyncio.sleep(_EXPLAINED_S)

    try:
        return await before(has_ended_unexplained(), moving)
    except Interrupted:
        raise ReplicaFailed(
            f"{replica.id} ended while its device memory was moved.",
            remedy=f"Its last words: `glowplug logs {replica.id}`.",
            replica_id=replica.id,
        ) from None


def _failed_stage(error: GlowplugError, first: GpuStage) -> str:
    """Where an operation that begins with ``first`` stopped: the driver's call, as far as the error tells."""
    stage = str(error.details.get("call") or error.details.get("stage", "")).removeprefix("gpu ")
    return stage if stage in set(GpuStage) else first.value


def _pid(replica: Replica) -> int:
    if replica.view.pid is None:
        raise ReplicaFailed(f"{replica.id} does not run.", replica_id=replica.id)
    return replica.view.pid
