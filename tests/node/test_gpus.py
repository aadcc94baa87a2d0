"""Which GPUs a node gives to replicas, as its fake driver tells of them; no container is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.node.gpu_node import two_h100
from tests.snapshot.gpu.machine import INSIDE_DRIVER, INSIDE_GPUS, CudaProcess, Machine

from glowplug.node.capacity import Capacity
from glowplug.node.gpu_snapshots import GpuSnapshots
from glowplug.node.gpus import FRESH_S, Gpus
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.manifest import CapturedGpu
from glowplug.types.clock import ManualClock
from glowplug.types.errors import GpuFailed, SystemUnfit, Unavailable
from glowplug.types.spec import Resources


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def machine(tmp_path: Path, fake_driver: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = two_h100(tmp_path / "gpus", fake_driver)
    for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, machine.environment[name])
    monkeypatch.setenv("GLOWPLUG_CDI", str(machine.describe_to_containers(fake_driver)))
    return machine


@pytest.fixture
def gpus(machine: Machine, clock: ManualClock) -> Gpus:
    return Gpus(CollectorRegistry(), clock)


def test_containers_see_all_and_are_told_their_own(gpus: Gpus, machine: Machine, fake_driver: Path) -> None:
    edits = gpus.edits("runc", machine.uuids[1:])
    assert edits is not None
    assert edits.env == {
        "FAKE_GPU_DIR": INSIDE_GPUS,
        "LD_LIBRARY_PATH": INSIDE_DRIVER,
        "CUDA_VISIBLE_DEVICES": machine.uuids[1],
    }
    assert [mount.source for mount in edits.mounts] == [fake_driver, machine.folder]
    assert gpus.edits("runsc", []) is None


def test_gvisor_and_a_node_that_describes_no_gpus_give_none(
    gpus: Gpus, machine: Machine, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    with pytest.raises(SystemUnfit, match="runsc is given no GPU"):
        gpus.edits("runsc", machine.uuids)
    monkeypatch.setenv("GLOWPLUG_CDI", str(machine.folder / "health"))
    undescribed = Gpus(CollectorRegistry(), clock, driver=machine.folder)
    assert len(undescribed.fit) == 2
    with pytest.raises(SystemUnfit, match="describes this node's GPUs"):
        undescribed.edits("runc", machine.uuids)


def test_what_a_replica_holds_is_what_its_processes_hold(
    gpus: Gpus, machine: Machine, clock: ManualClock
) -> None:
    process = CudaProcess(machine, device=1, size_bytes=3 << 20)
    try:
        process.await_ready()
        gpus.refresh(FRESH_S)
        assert gpus.held_bytes([process.pid]) == 0, "as last read"
        clock.advance(FRESH_S)
        gpus.refresh(FRESH_S)
        assert gpus.held_bytes([process.pid, os.getpid()]) == 3 << 20
        assert gpus.inventory.devices[1].processes == {process.pid: 3 << 20}
    finally:
        process.end()


async def test_a_promised_gpu_that_failed_since_is_noticed_before_a_start(
    gpus: Gpus, machine: Machine, clock: ManualClock, tmp_path: Path
) -> None:
    capacity = Capacity.read(gpus.fit)
    capacity.reserve("a", Resources(memory_bytes=1 << 30, gpu="H100"))
    snapshots = GpuSnapshots(gpus, capacity, GpuGuard(tmp_path / "guard"), CollectorRegistry())
    snapshots.check("a")
    snapshots.check("never heard of")
    captured = [
        CapturedGpu(uuid=device.uuid, chip=device.chip, memory_bytes=device.memory_bytes, is_given=not index)
        for index, device in enumerate(gpus.inventory.devices)
    ]
    snapshots.check_fit("a", captured)
    with pytest.raises(GpuFailed, match="had 2 GPU"):
        snapshots.check_fit("a", [gpu.model_copy(update={"is_given": True}) for gpu in captured])
    (machine.folder / "health" / "0").write_text("recovery 1\n")
    clock.advance(FRESH_S)
    for check in (lambda: snapshots.check("a"), lambda: snapshots.check_fit("a", captured)):
        with pytest.raises(Unavailable, match=r"a cannot use its GPU: GPU 0 .* it must be reset"):
            check()
    await snapshots.close()
