"""Each call of the driver, each way in which it can go wrong, on replicas of one, two and four processes.

Whatever happens: afterwards every process of the replica is RUNNING and its device memory is what it wrote,
or every one is dead, or all of them are suspended as before a resume that was refused. None is left locked,
and no device memory is lost. ``GLOWPLUG_FAULTS=all`` runs all of it; otherwise a sample.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.journal import Journal
from glowplug.snapshot.gpu.protocol import Deadlines
from glowplug.snapshot.gpu.words import CudaState
from glowplug.types.errors import DeadlineExceeded, GlowplugError, GpuFailed, Unavailable

from .machine import H100, IS_REAL, Crew, CudaProcess, Machine, build_driver, expect_whole

pytestmark = pytest.mark.skipif(IS_REAL, reason="a real driver does not fail on request")

HASTY = Deadlines(lock_s=2, checkpoint_s=2, restore_s=2, unlock_s=2)
CALLS = ("lock", "checkpoint", "restore", "unlock")
REFUSALS = ("illegal_state", "out_of_memory", "timeout", "wrong_chip")
ALL = [
    (call, fault, count)
    for count in (1, 2, 4)
    for call in CALLS
    for fault in (
        *REFUSALS,
        "failed",
        "hang",
        "caller_dies",
        "caller_dies_asking",
        "caller_dies_done",
        "target_dies",
    )
]
SAMPLE = [
    (call, fault, count)
    for call, fault, count in ALL
    if (count == 2 and fault in ("illegal_state", "failed", "hang", "caller_dies_done", "target_dies"))
    or (count == 4 and fault in ("out_of_memory", "timeout") and call in ("lock", "restore"))
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One for all cases, as its guard and its processes are: a case replaces what it ends."""
    libraries = build_driver(tmp_path_factory.getbasetemp().parent)
    return Machine(tmp_path_factory.mktemp("faults") / "gpus", libraries, (H100,), 1 << 30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guards(machine: Machine) -> AsyncIterator[tuple[GpuGuard, GpuGuard]]:
    """One with the deadlines that users have, and one that does not wait for what hangs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
            patch.setenv(name, machine.environment[name])
        async with GpuGuard(machine.folder / "0") as patient, GpuGuard(machine.folder / "1", HASTY) as hasty:
            yield patient, hasty


@pytest.fixture(scope="module")
def crew(machine: Machine) -> Iterator[Crew]:
    with Crew.of(machine) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("call", "fault", "count"), ALL if os.environ.get("GLOWPLUG_FAULTS") == "all" else SAMPLE
)
async def test_the_replica_runs_as_before_or_is_dead(
    machine: Machine, guards: tuple[GpuGuard, GpuGuard], crew: Crew, call: str, fault: str, count: int
) -> None:
    machine.heal()
    guard = guards[fault == "hang"]
    processes = crew.manned(count)
    pids = [process.pid for process in processes]
    if call in ("restore", "unlock"):
        await guard.suspend(pids)
    action = fault.removesuffix("_done")
    machine.fail(call if fault == action else f"{call}_done", action, pids[-1])
    with pytest.raises((GpuFailed, DeadlineExceeded, Unavailable)) as raised:
        await (guard.suspend(pids) if call in ("lock", "checkpoint") else guard.resume(pids))
    await check_outcome(guard, processes, raised.value, call, fault)
    assert [Journal(machine.folder / name).read() for name in "01"] == [[], []]
    assert machine.device_bytes() == crew.held_bytes()


async def check_outcome(
    guard: GpuGuard, processes: list[CudaProcess], error: GlowplugError, call: str, fault: str
) -> None:
    """The three ways to end, and which faults may end how."""
    pids = [process.pid for process in processes]
    left = error.details["left"]
    if left == "suspended":
        assert call == "restore"
        assert len(pids) == 1
        await guard.resume(pids)
        left = "running"
    if fault in ("failed", "target_dies"):
        assert left == "killed"
    elif fault in REFUSALS:
        assert left == "running"
        assert error.details["pid"] == pids[-1]
        assert error.details["call"] == call
    if left == "killed":
        assert all([await asyncio.to_thread(process.wait) != 0 for process in processes])
    else:
        assert await guard.find(pids) == dict.fromkeys(pids, CudaState.RUNNING)
        await expect_whole(processes)
