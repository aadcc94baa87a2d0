"""Suspending and resuming real processes through a real guard and the unmodified bindings."""

from __future__ import annotations

import asyncio
import os
import subprocess
from itertools import groupby
from pathlib import Path

import pytest

from glowplug.snapshot.gpu import trial_process
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.inventory import read_inventory
from glowplug.snapshot.gpu.protocol import Deadlines
from glowplug.snapshot.gpu.words import CudaState
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    GpuFailed,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    SystemUnfit,
    Unavailable,
)

from .conftest import MakeMachine
from .machine import H100, IS_REAL, CudaProcess, Machine, expect_whole, running

needs_fake = pytest.mark.skipif(IS_REAL, reason="needs the fake driver")


async def used_bytes(index: int) -> int:
    inventory = await asyncio.to_thread(read_inventory)
    assert inventory is not None
    return inventory.devices[index].memory_bytes - inventory.devices[index].free_bytes


async def test_device_memory_moves_to_the_host_and_back(machine: Machine, guard: GpuGuard) -> None:
    before = await used_bytes(0)
    with running(machine, 2) as processes:
        pids = [process.pid for process in processes]
        assert await guard.find(pids) == dict.fromkeys(pids, CudaState.RUNNING)
        held = await used_bytes(0)
        suspended = await guard.suspend(pids)
        assert suspended.pids == pids
        assert set(suspended.seconds) == {"lock_s", "checkpoint_s"}
        assert await guard.find(pids) == dict.fromkeys(pids, CudaState.CHECKPOINTED)
        assert held - await used_bytes(0) >= 2 << 20
        assert await used_bytes(0) <= max(before, held - (2 << 20))
        await guard.resume(pids)
        assert await guard.find(pids) == dict.fromkeys(pids, CudaState.RUNNING)
        await expect_whole(processes)


@needs_fake
async def test_nobody_is_checkpointed_before_all_are_locked_and_cuinit_is_paid_once(
    machine: Machine, guard: GpuGuard
) -> None:
    with running(machine, 4) as processes:
        pids = [process.pid for process in processes]
        for _ in range(2):
            await guard.suspend(pids)
            await guard.resume(pids)
    calls = [(call, pid) for call, pid, _ in machine.calls() if call != "init" or pid not in pids]
    assert [(call, len(list(group))) for call, group in groupby(calls, key=lambda made: made[0])] == [
        ("init", 1),
        *[(call, 4) for call in ("lock", "checkpoint", "restore", "unlock")] * 2,
    ]
    assert await guard.counts() == {"lock": 8, "checkpoint": 8, "restore": 8, "unlock": 8}


def start_tree(machine: Machine) -> subprocess.Popen[bytes]:
    """A shell, a shell below it, and below that two CUDA processes."""
    command = " ".join(trial_process.command(0, 1 << 20))
    return subprocess.Popen(
        ["sh", "-c", f"({command} <&3 & {command} <&3 & wait) 3<&0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=machine.environment,
    )


async def test_every_cuda_process_of_the_tree_is_found_and_no_other(
    machine: Machine, guard: GpuGuard
) -> None:
    shell = start_tree(machine)
    assert shell.stdout is not None
    try:
        for _ in range(2):
            await asyncio.to_thread(shell.stdout.readline)
        found = await guard.find([shell.pid])
        assert list(found.values()) == [CudaState.RUNNING] * 2
        assert shell.pid not in found
    finally:
        shell.communicate()


async def test_who_leaves_something_suspended_has_it_resumed(machine: Machine, tmp_path: Path) -> None:
    with running(machine, 2) as processes:
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.suspend([process.pid for process in processes])
        await expect_whole(processes)


async def test_what_is_kept_stays_suspended_whoever_ends_until_it_is_resumed(
    machine: Machine, tmp_path: Path
) -> None:
    with running(machine, 2) as processes:
        pids = [process.pid for process in processes]
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.suspend(pids, is_kept=True)
        async with GpuGuard(tmp_path / "guard") as successor:
            assert await successor.find(pids) == dict.fromkeys(pids, CudaState.CHECKPOINTED)
            await successor.resume(pids)
        await expect_whole(processes)


async def test_a_guard_that_was_closed_is_not_started_again(machine: Machine, guard: GpuGuard) -> None:
    await guard.close()
    with pytest.raises(Unavailable, match="was closed"):
        await guard.inventory()


async def test_the_helper_lists_the_gpus_without_starting_cuda(machine: Machine, guard: GpuGuard) -> None:
    listed = await guard.inventory()
    assert listed == await asyncio.to_thread(read_inventory)
    if not IS_REAL:
        assert machine.calls() == []


@needs_fake
async def test_a_helper_that_dies_does_not_keep_the_gpus_from_being_listed(
    machine: Machine, guard: GpuGuard
) -> None:
    assert await guard.inventory() is not None
    with running(machine, 1) as processes:
        machine.fail("lock", "caller_dies")
        with pytest.raises(Unavailable):
            await guard.suspend([processes[0].pid])
        found = await guard.inventory()
        assert found is not None
        assert found.devices[0].processes == {processes[0].pid: 1 << 20}


@needs_fake
async def test_a_device_that_is_lost_later_is_noticed_by_the_library_that_is_loaded(
    machine: Machine, guard: GpuGuard
) -> None:
    before = await guard.inventory()
    assert before is not None
    (machine.folder / "health" / "0").write_text("lost 1\n")
    after = await guard.inventory()
    assert after is not None
    assert [device.is_fit for device in before.devices] == [True, True]
    assert [device.is_fit for device in after.devices] == [False, True]


async def test_processes_without_cuda_are_not_found(guard: GpuGuard, machine: Machine) -> None:
    with pytest.raises(NotFound, match="uses CUDA"):
        await guard.suspend([os.getpid()])


async def test_what_is_suspended_is_not_suspended_again(machine: Machine, guard: GpuGuard) -> None:
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        with pytest.raises(Conflict, match="not checkpointed"):
            await guard.resume([pid])
        await guard.suspend([pid])
        with pytest.raises(Conflict, match="not running"):
            await guard.suspend([pid])
        assert await guard.find([pid]) == {pid: CudaState.CHECKPOINTED}
        outcomes = await asyncio.gather(guard.resume([pid]), guard.resume([pid]), return_exceptions=True)
        assert sorted(isinstance(outcome, Conflict) for outcome in outcomes) == [False, True]
        await expect_whole(processes)


async def test_one_guard_at_a_time_works_in_a_folder(
    machine: Machine, guard: GpuGuard, tmp_path: Path
) -> None:
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        await guard.suspend([pid])
        async with GpuGuard(tmp_path / "guard") as second:
            with pytest.raises(Conflict, match="Another GPU guard"):
                await second.find([pid])
        assert await guard.find([pid]) == {pid: CudaState.CHECKPOINTED}


async def test_memory_can_come_back_on_another_gpu_of_the_same_chip(
    machine: Machine, guard: GpuGuard
) -> None:
    inventory = await asyncio.to_thread(read_inventory)
    assert inventory is not None
    uuids = [device.uuid for device in inventory.devices]
    if len({device.chip for device in inventory.devices}) != 1 or len(uuids) < 2:
        pytest.skip("needs two GPUs of one chip")
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        await guard.suspend([pid])
        with pytest.raises(GpuFailed) as raised:
            await guard.resume([pid], {uuids[0]: uuids[1]})  # a map must name every GPU
        assert raised.value.details["left"] == "suspended"
        before = await used_bytes(1)
        await guard.resume([pid], dict(zip(uuids, [*uuids[1:], uuids[0]], strict=True)))
        assert await used_bytes(1) >= before + (1 << 20)
        await expect_whole(processes)


async def test_another_chip_is_refused_and_nothing_is_lost(make_machine: MakeMachine, tmp_path: Path) -> None:
    machine = make_machine(H100, "NVIDIA L4")
    first, second = machine.uuids
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.suspend([pid])
            with pytest.raises(GpuFailed, match="CUDA_ERROR_INVALID_VALUE") as raised:
                await guard.resume([pid], {first: second, second: first})
            details = {"call": "restore", "pid": pid, "state": "checkpointed", "left": "suspended"}
            assert details.items() <= raised.value.details.items()
            with pytest.raises(InvalidInput, match="not a GPU's UUID"):
                await guard.resume([pid], {first: "GPU-nonsense"})
        await expect_whole(processes)


async def test_too_little_device_memory_can_be_waited_for(make_machine: MakeMachine, tmp_path: Path) -> None:
    machine = make_machine(H100, memory_bytes=3 << 20)
    with running(machine, 1, size_bytes=2 << 20) as processes:
        [pid] = [process.pid for process in processes]
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.suspend([pid])
            with running(machine, 1, size_bytes=2 << 20):
                with pytest.raises(GpuFailed, match="CUDA_ERROR_OUT_OF_MEMORY") as raised:
                    await guard.resume([pid])
                assert "gpu ls" in raised.value.remedy
                assert raised.value.details["left"] == "suspended"
            await guard.resume([pid])
        await expect_whole(processes)


@needs_fake
async def test_a_process_that_begins_to_use_cuda_meanwhile_stops_the_suspension(
    machine: Machine, tmp_path: Path
) -> None:
    patient = Deadlines(lock_s=30, checkpoint_s=30)
    with running(machine, 1) as processes:
        async with GpuGuard(tmp_path / "guard", patient) as guard:
            roots = [processes[0].pid, os.getpid()]  # whatever else we start belongs to it too
            await guard.find(roots)
            with machine.held_at("lock"):
                suspending = asyncio.create_task(guard.suspend(roots))
                await machine.await_strike()
                late = CudaProcess(machine)
                await asyncio.to_thread(late.await_ready)
            try:
                with pytest.raises(Conflict, match="began to use CUDA") as raised:
                    await suspending
                assert raised.value.details["left"] == "running"
                await expect_whole([*processes, late])
            finally:
                late.end()


@needs_fake
async def test_a_machine_without_a_driver_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    async with GpuGuard(tmp_path / "guard") as guard:
        with pytest.raises(SystemUnfit, match="no CUDA driver"):
            await guard.find([os.getpid()])


@needs_fake
async def test_a_journal_that_cannot_be_written_is_told_before_anything_is_locked(
    machine: Machine, guard: GpuGuard, tmp_path: Path
) -> None:
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        await guard.find([pid])
        (tmp_path / "guard" / "journal.new").mkdir()
        with pytest.raises(ResourceExhausted, match="cannot write its journal"):
            await guard.suspend([pid])
        assert [call for call, _, _ in machine.calls() if call != "init"] == []
        (tmp_path / "guard" / "journal.new").rmdir()
        await guard.suspend([pid])


@needs_fake
async def test_a_damaged_journal_is_put_aside(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "journal.json").write_text('{"operations": 5}')
    with running(machine, 1) as processes:
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.suspend([process.pid for process in processes])
        await expect_whole(processes)
    assert (tmp_path / "guard" / "journal.damaged").exists()


@needs_fake
async def test_a_driver_that_does_not_even_tell_a_state_is_not_waited_for(
    machine: Machine, tmp_path: Path
) -> None:
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        async with GpuGuard(tmp_path / "guard", Deadlines(state_s=5)) as guard:
            await guard.find([pid])
            machine.fail("state", "hang", pid)
            with pytest.raises(DeadlineExceeded) as raised:
                await guard.suspend([pid])
            assert raised.value.details["stage"] == "gpu state"
            assert [call for call, _, _ in machine.calls() if call != "init"] == []
            await guard.suspend([pid])
            assert await guard.counts() == {"state hung": 1, "lock": 1, "checkpoint": 1}
        helpers = [caller for call, caller, _ in machine.calls() if call == "init" and caller != pid]
        assert len(helpers) == 2, "the one that hangs is ended, and another started"


@needs_fake
async def test_a_call_that_is_made_after_its_caller_died_is_undone_as_well(
    machine: Machine, tmp_path: Path
) -> None:
    with running(machine, 1) as processes:
        [pid] = [process.pid for process in processes]
        async with GpuGuard(tmp_path / "guard") as guard:
            await guard.find([pid])
            machine.fail("lock", "caller_dies_asking", pid)
            with pytest.raises(Unavailable) as raised:
                await guard.suspend([pid])
            assert raised.value.details["left"] == "running"
            await asyncio.sleep(2)  # the fake makes it after 1.5 s
            await expect_whole(processes)
