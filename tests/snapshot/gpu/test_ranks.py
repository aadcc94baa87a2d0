"""Several ranks with device memory: both protocols, one inside the other, as a capture of GPUs will go.

    prepare all ranks -> lock all, checkpoint all -> ... -> restore all, unlock all -> resume all ranks

The ranks are stand-ins without NCCL, and the driver is the fake one unless ``make test-gpu`` runs it: what is
shown is the order, and that a failure of the driver leaves ranks that go on, or that are dead.
"""

from __future__ import annotations

import asyncio

import pytest
from tests.nccl.ranks import Rank, three_ranks

from glowplug.nccl.coordinator import Coordinator
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.types.errors import GpuFailed, ReplicaFailed

from .machine import IS_REAL, Machine

DEVICE = {rank: {"device": "0"} for rank in range(3)}
needs_fake = pytest.mark.skipif(IS_REAL, reason="needs the fake driver")


async def prepared(coordinator: Coordinator, ranks: list[Rank]) -> list[int]:
    """Releases all; the processes to suspend."""
    await asyncio.to_thread(coordinator.prepare)
    return [rank.process.pid for rank in ranks]


def is_whole(rank: Rank) -> bool:
    """Whether its device memory holds what it wrote."""
    return bool(rank.ask("look")["whole"])


async def test_ranks_release_before_the_driver_locks_and_rebuild_after_it_unlocked(
    machine: Machine, guard: GpuGuard
) -> None:
    with three_ranks(DEVICE) as (ranks, coordinator):
        for _ in range(2):
            pids = await prepared(coordinator, ranks)
            assert {rank.gate() for rank in ranks} == {"waiting"}
            await guard.suspend(pids)
            await guard.resume(pids)
            await asyncio.to_thread(coordinator.resume)
        assert all(map(is_whole, ranks))
        assert {rank.gate() for rank in ranks} == {"open"}


@needs_fake
@pytest.mark.parametrize("call", ["lock", "checkpoint"])
async def test_ranks_that_the_driver_cannot_suspend_go_on(
    machine: Machine, guard: GpuGuard, call: str
) -> None:
    with three_ranks(DEVICE) as (ranks, coordinator):
        pids = await prepared(coordinator, ranks)
        machine.fail(call, "illegal_state", pids[1])
        with pytest.raises(GpuFailed) as caught:
            await guard.suspend(pids)
        assert caught.value.details["left"] == "running"
        await asyncio.to_thread(coordinator.resume)
        assert all(map(is_whole, ranks))
        assert {rank.gate() for rank in ranks} == {"open"}


@needs_fake
async def test_ranks_that_the_driver_loses_are_dead_and_nobody_waits_for_them(
    machine: Machine, guard: GpuGuard
) -> None:
    with three_ranks(DEVICE) as (ranks, coordinator):
        pids = await prepared(coordinator, ranks)
        await guard.suspend(pids)
        machine.fail("restore", "failed", pids[2])
        with pytest.raises(GpuFailed) as caught:
            await guard.resume(pids)
        assert caught.value.details["left"] == "killed"
        with pytest.raises(ReplicaFailed) as ended:
            await asyncio.to_thread(coordinator.resume)
        assert ended.value.details["left"] == "failed"
        assert [rank.gate_within("dead") for rank in ranks] == ["dead"] * 3
