"""Moving a replica's device memory to the host and back: in which order, and what is counted.

::

    capture   quiesce -> lock -> checkpoint -> host_snapshot           (trial: as a restore)
    restore   host_restore -> restore -> unlock -> canary -> rotation
    park      quiesce -> lock -> checkpoint -> freeze                  (glowplug.node.gpu_parking)
    wake      thaw -> restore -> unlock -> ready call -> rotation

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
from glowplug.snapshot.gpu.features import can
from glowplug.snapshot.gpu.inventory import Inventory
from glowplug.snapshot.gpu.placement import check_room, place
from glowplug.snapshot.gpu.protocol import Deadlines, Left
from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.errors import (
    DeadlineExceeded,
    GlowplugError,
    ReplicaFailed,
    ResourceExhausted,
    Unavailable,
)

# Small ones are moved in milliseconds, 140 GB in half a minute.
STAGE_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_EXPLAINED_S = 10.0
_LISTED_WITHIN_S = 90.0  # beyond the guard's own deadlines
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
            "Stages of captures, restores, parking and waking of replicas with GPU memory.",
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
            "Device memory moved to the host by captures and parking, and to devices by restores and waking.",
            ("direction",),
            registry=registry,
        )
        self._needs: dict[tuple[str, str], list[int]] = {}

    @property
    def can_move(self) -> bool:
        """Whether the driver brings device memory back to other GPUs than those that it was on."""
        return can(self._gpus.inventory.driver, "device_map")

    def open(self) -> None:
        """Have the guard's helper list the GPUs from now on. On the event loop."""
        loop = asyncio.get_running_loop()

        def read() -> Inventory | None:
            asked = asyncio.run_coroutine_threadsafe(self._guard.inventory(), loop)
            try:
                return asked.result(_LISTED_WITHIN_S)
            except TimeoutError:  # the loop has ended, or nothing gets its turn there
                asked.cancel()
                raise DeadlineExceeded(
                    f"The GPU guard listed no GPUs within {_LISTED_WITHIN_S:g} s.",
                    remedy="The agent's log tells what keeps it.",
                    stage="gpu_guard",
                ) from None

        self._gpus.resident = read

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

    def check_start(self, replica: Replica) -> None:
        """As :meth:`check`, and that its GPUs have as much memory free as its server was measured to take.

        Measured when a replica of the same deployment was parked; one that never was is believed.
        """
        needs = self._needs.get(_kind(replica), [])
        self.check(replica.id, 0.0 if needs else FRESH_S)
        devices = {device.uuid: device for device in self._gpus.inventory.devices}
        for uuid, needed_bytes in zip(self._capacity.gpus_of(replica.id), needs, strict=False):
            device = devices.get(uuid)
            if device is not None and device.free_bytes < needed_bytes:
                raise Unavailable(
                    f"No room for {replica.id}: its server takes {needed_bytes / _MIB:.1f} MiB of device "
                    f"memory, and GPU {device.index} has {device.free_bytes / _MIB:.1f} MiB free.",
                    remedy="`glowplug gpu ls` shows what is free; something else holds the rest.",
                    resource="gpu",
                )

    def check_fit(
        self,
        replica_id: str,
        captured: Sequence[CapturedGpu],
        max_age_s: float = FRESH_S,
        what: str = "snapshot",
    ) -> None:
        """Before anything is moved: whether device memory fits on the replica's GPUs as they are now.

        Raises GpuFailed (other GPUs), ResourceExhausted (too little free) or Unavailable (one has failed).
        Blocks; for any thread. ``what`` it comes from, in a word.
        """
        if captured:
            self.check(replica_id, max_age_s)
            here = self._gpus.inventory
            check_room(captured, here, place(captured, here, self._capacity.gpus_of(replica_id)), what)

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

    async def suspend(self, replica: Replica, *, is_kept: bool = False) -> list[CapturedGpu]:
        """Move a quiet replica's device memory to the host; what has to be known about its GPUs.

        ``is_kept``: it stays there, whoever ends, until the replica is resumed. Raises GpuFailed,
        DeadlineExceeded, Unavailable, NotFound (it uses no GPU), ResourceExhausted (its memory limit has no
        room for it). It must be killed then, unless ``details["left"]`` is ``running``.
        """
        if not replica.request.server.snapshot.gpu:
            return []
        before = await self._read()
        pids, device_bytes = await asyncio.to_thread(self._fitting_bytes, replica)
        deadlines = Deadlines.for_bytes(device_bytes)
        moving = self._guard.suspend([_pid(replica)], deadlines, is_kept=is_kept)
        await self._counted(replica, moving, GpuStage.LOCK)
        given = self._capacity.gpus_of(replica.id)
        captured = _captured(before, await self._read(), given, pids)
        self._moved_bytes.labels("to_host").inc(sum(gpu.held_bytes for gpu in captured))
        if is_kept:
            held = {gpu.uuid: gpu.held_bytes for gpu in captured}
            self._needs[_kind(replica)] = [held.get(uuid, 0) for uuid in given]
        return captured

    async def resume(self, replica: Replica, captured: Sequence[CapturedGpu]) -> None:
        """Bring the device memory of a replica, restored or thawed just now, to the GPUs that it was given.

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

    def _fitting_bytes(self, replica: Replica) -> tuple[list[int], int]:
        """Its processes, and their device memory, which has to fit into its own memory for a while."""
        cgroup, limit_bytes = replica.container.cgroup, replica.request.server.resources.memory_bytes
        pids = cgroup.pids()
        device_bytes = self._gpus.held_bytes(pids)
        host_bytes = cgroup.proportional_bytes()
        if host_bytes + device_bytes > limit_bytes:
            raise ResourceExhausted(
                f"{replica.id} holds {device_bytes / _MIB:.0f} MiB of device memory, which go to its own "
                f"memory while it is captured or parked; with the {host_bytes / _MIB:.0f} MiB there that is "
                f"more than its limit of {limit_bytes / _MIB:.0f} MiB.",
                remedy="Raise memory= of the server, or free device memory in before_snapshot.",
                replica_id=replica.id,
                left=Left.RUNNING.value,
            )
        return pids, device_bytes


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


def _captured(
    before: Inventory, after: Inventory, given: Sequence[str], pids: Sequence[int]
) -> list[CapturedGpu]:
    """All GPUs of the machine, and what was held of those that were given.

    That is what came free by it, or what the driver said of these processes, if somebody else took some.
    """
    free_bytes = {device.uuid: device.free_bytes for device in after.devices}
    return [
        CapturedGpu(
            uuid=device.uuid,
            chip=device.chip,
            memory_bytes=device.memory_bytes,
            is_given=device.uuid in given,
            held_bytes=max(
                free_bytes.get(device.uuid, 0) - device.free_bytes,
                sum(device.processes.get(pid, 0) for pid in pids),
            )
            if device.uuid in given
            else 0,
        )
        for device in before.devices
        if device.uuid
    ]


def _kind(replica: Replica) -> tuple[str, str]:
    """Whose replicas take as much device memory as it does."""
    return replica.request.deployment_id, replica.request.server.name


def _failed_stage(error: GlowplugError, first: GpuStage) -> str:
    """Where an operation that begins with ``first`` stopped: the driver's call, as far as the error tells."""
    stage = str(error.details.get("call") or error.details.get("stage", "")).removeprefix("gpu ")
    return stage if stage in set(GpuStage) else first.value


def _pid(replica: Replica) -> int:
    if replica.view.pid is None:
        raise ReplicaFailed(f"{replica.id} does not run.", replica_id=replica.id)
    return replica.view.pid
