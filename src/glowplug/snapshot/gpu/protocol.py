"""Suspending and resuming all CUDA processes of a replica together, and what is done when a call fails.

Suspend: lock all, then checkpoint all. Resume: restore all, then unlock all. Nothing goes on before all are
there, and every call has a deadline. :func:`settle` is the one way out of anything else: afterwards every
process of the operation is RUNNING, or every one is dead. It may be called at any time, twice, and by
somebody who does not know what was under way: it asks the driver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

from glowplug.snapshot.gpu.journal import Operation, Target
from glowplug.snapshot.gpu.words import CudaState, DeviceMap, DriverCall
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError, GpuFailed, Unavailable
from glowplug.types.spec import Spec

_ATTEMPTS = 5
_PAUSE_S = 0.05
_AROUND_S = 30.0
_SLOWEST_BYTES_PER_S = 1e9
T = TypeVar("T")


class Left(StrEnum):
    """How an operation that failed left its processes. STUCK: killed, but in the kernel, and not gone yet."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    KILLED = "killed"
    STUCK = "stuck"


class Deadlines(Spec):
    """How long each call on one process may take, in seconds."""

    lock_s: float = 10.0
    checkpoint_s: float = 120.0
    restore_s: float = 120.0
    unlock_s: float = 10.0
    state_s: float = 10.0

    def of(self, call: DriverCall) -> float:
        """That of one call."""
        return float(getattr(self, f"{call}_s"))

    @classmethod
    def for_bytes(cls, device_bytes: int) -> Deadlines:
        """For a process with so much device memory: a second a GB, and half a minute for the rest of it.

        Published: contexts rebuilt in 27 s, 62 GiB of host memory pinned in 9 s (both at their slowest).
        """
        moving_s = _AROUND_S + device_bytes / _SLOWEST_BYTES_PER_S
        return cls(checkpoint_s=moving_s, restore_s=moving_s)


class Driver(Protocol):
    """Makes one call on one process.

    Duties of both: raise GpuFailed when the driver refuses, DeadlineExceeded when it did not answer in time
    (the call may still happen), Unavailable when whoever was asked died (the same).
    """

    async def state(self, pid: int, deadline_s: float) -> CudaState:
        """Ask for its state."""
        ...

    async def call(self, call: DriverCall, pid: int, deadline_s: float, device_map: DeviceMap) -> None:
        """Change its state; the map is for RESTORE."""
        ...


@dataclass
class Moves:
    """The calls on the processes of one operation, and how long each phase took."""

    driver: Driver
    deadlines: Deadlines
    device_map: DeviceMap = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    async def state(self, target: Target) -> CudaState:
        """What the driver says. Raises as :meth:`make`."""
        _check_alive(DriverCall.STATE, target)
        return await self.driver.state(target.pid, self.deadlines.state_s)

    async def make(self, call: DriverCall, target: Target) -> None:
        """One call. Raises as :class:`Driver`; GpuFailed if the process is gone."""
        _check_alive(call, target)
        await self.driver.call(call, target.pid, self.deadlines.of(call), self.device_map)

    async def phase(self, call: DriverCall, targets: Sequence[Target]) -> None:
        """One call on all processes at once; ends when all have ended. Raises the first error."""
        began = time.monotonic()
        await _all_ended([self.make(call, target) for target in targets])
        self.seconds[f"{call}_s"] = self.seconds.get(f"{call}_s", 0.0) + time.monotonic() - began


async def demand(moves: Moves, targets: Sequence[Target], wanted: CudaState) -> None:
    """Before anything is begun. Raises Conflict, with what it is, if a process is not in the wanted state."""
    for target in targets:
        state = await moves.state(target)
        if state is not wanted:
            raise Conflict(
                f"Process {target.pid} is {state}, not {wanted}.",
                remedy="Somebody else suspends this replica, or an earlier attempt failed: stop it.",
                pid=target.pid,
                state=state.value,
            )


async def suspend(moves: Moves, targets: list[Target], find: Callable[[], Awaitable[list[Target]]]) -> None:
    """Lock all, then checkpoint all, unless ``find`` finds that there are more meanwhile.

    Raises Conflict then; else as :class:`Driver`.
    """
    await moves.phase(DriverCall.LOCK, targets)
    known = {target.pid for target in targets}
    if any(target.pid not in known for target in await find()):
        raise Conflict(
            "A process began to use CUDA while its replica was being suspended.",
            remedy="Suspend a replica when it is ready, not while it starts.",
        )
    await moves.phase(DriverCall.CHECKPOINT, targets)


async def resume(moves: Moves, targets: list[Target]) -> None:
    """Restore all, then unlock all. Raises as :class:`Driver`."""
    await moves.phase(DriverCall.RESTORE, targets)
    await moves.phase(DriverCall.UNLOCK, targets)


async def is_all_suspended(moves: Moves, targets: Sequence[Target]) -> bool:
    """Whether every process is CHECKPOINTED, so that nothing was begun: it may be resumed later."""
    try:
        return all([await moves.state(target) is CudaState.CHECKPOINTED for target in targets])
    except GlowplugError:
        return False


async def settle(moves: Moves, operation: Operation) -> Left:
    """Make every process of the operation RUNNING, with its memory, or end them all."""
    try:
        await _all_ended([_settle_one(moves, target, CudaState.LOCKED) for target in operation.targets])
        await _all_ended([_settle_one(moves, target, CudaState.RUNNING) for target in operation.targets])
    except GlowplugError:
        gone = await _all_ended([asyncio.to_thread(target.kill) for target in operation.targets])
        return Left.KILLED if all(gone) else Left.STUCK
    return Left.RUNNING


async def _settle_one(moves: Moves, target: Target, wanted: CudaState) -> None:
    """First everybody to LOCKED (one that never was locked may be RUNNING), then everybody to RUNNING.

    A RUNNING process is asked to lock once. The driver serves one caller of a process after the other, so
    once it has answered, a call whose end nobody saw is over too. Raises GpuFailed when there is no way.
    """
    is_sure = wanted is CudaState.RUNNING
    last: GlowplugError | None = None
    for _ in range(_ATTEMPTS):
        try:
            state = await moves.state(target)
            if state is wanted is CudaState.LOCKED or (state is CudaState.RUNNING and is_sure):
                return
            if state is CudaState.FAILED:
                break
            if state in (CudaState.CHECKPOINTING, CudaState.RESTORING):
                await asyncio.sleep(_PAUSE_S)
                continue
            is_sure = is_sure or state is CudaState.RUNNING
            await moves.make(_NEXT[state], target)
        except (GpuFailed, DeadlineExceeded, Unavailable) as error:
            is_sure = is_sure and isinstance(error, GpuFailed)  # only an answer makes sure
            last = error
            if not target.is_alive:
                break
    raise last or GpuFailed(f"Process {target.pid} cannot be made to run again.", pid=target.pid)


_NEXT = {
    CudaState.RUNNING: DriverCall.LOCK,
    CudaState.LOCKED: DriverCall.UNLOCK,
    CudaState.CHECKPOINTED: DriverCall.RESTORE,
}


def _check_alive(call: DriverCall, target: Target) -> None:
    if not target.is_alive:
        raise GpuFailed(
            f"Process {target.pid} ended before the driver could be asked for its {call}.",
            remedy="Its log tells why.",
            call=call.value,
            pid=target.pid,
            state="ended",
        )


async def _all_ended(work: Sequence[Awaitable[T]]) -> list[T]:
    """Wait for all, whatever comes of each; then raise the first error, or return what they returned."""
    results = []
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results
