"""kill -9 of whoever takes part, at every step: afterwards no process is locked, and none lost its memory.

``GLOWPLUG_FAULTS=all`` runs every step with every victim; otherwise a sample.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glowplug.kernel.processes import pid_start_ticks, process_tree
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.words import CudaState

from .machine import H100, IS_REAL, WAIT_S, Crew, Machine, build_driver, expect_whole, until

pytestmark = pytest.mark.skipif(IS_REAL, reason="a real driver cannot be held in the middle of a call")

CLIENT = """
import asyncio, sys
from pathlib import Path
from glowplug.snapshot.gpu.client import GpuGuard

async def main():
    pids = [int(pid) for pid in sys.argv[2:]]
    async with GpuGuard(Path(sys.argv[1])) as guard:
        await guard.suspend(pids)
        await guard.resume(pids)

asyncio.run(main())
"""
STEPS = [f"{call}{done}" for call in ("lock", "checkpoint", "restore", "unlock") for done in ("", "_done")]
VICTIMS = ("guard", "client", "guard client", "guard client helper")
ALL = list(itertools.product(STEPS, VICTIMS))
SAMPLE = [
    ("lock_done", "guard"),
    ("checkpoint", "guard client"),
    ("checkpoint_done", "client"),
    ("restore_done", "guard client helper"),
    ("unlock", "guard client helper"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    libraries = build_driver(tmp_path_factory.getbasetemp().parent)
    return Machine(tmp_path_factory.mktemp("deaths") / "gpus", libraries, (H100,), 1 << 30)


@pytest.fixture(scope="module")
def crew(machine: Machine) -> Iterator[Crew]:
    with Crew.of(machine) as made:
        yield made


def start_client(machine: Machine, folder: Path, pids: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CLIENT, str(folder), *map(str, pids)],
        env=machine.environment,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(("step", "victims"), ALL if os.environ.get("GLOWPLUG_FAULTS") == "all" else SAMPLE)
async def test_a_death_leaves_no_process_locked(
    machine: Machine, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, victims: str
) -> None:
    processes = crew.manned(2)
    pids = [process.pid for process in processes]
    client = start_client(machine, tmp_path / "guard", pids)
    with machine.held_at(step):
        await machine.await_strike()
        roles = dict(zip(("client", "guard", "helper"), process_tree([client.pid]), strict=True))
        made = len(machine.calls())
        for victim in victims.split():
            os.kill(roles[victim], signal.SIGKILL)
        await asyncio.sleep(0.2)
        since = {call for call, _, _ in machine.calls()[made:]}
        assert since <= {step.removesuffix("_done")}, "who settles waits for the phase that is under way"
    if "helper" in victims:  # nobody is left: the next guard settles
        for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
            monkeypatch.setenv(name, machine.environment[name])
        await until(lambda: all(pid_start_ticks(roles[victim]) is None for victim in victims.split()))
        async with GpuGuard(tmp_path / "guard") as guard:
            assert await guard.find(pids) == dict.fromkeys(pids, CudaState.RUNNING)
    await expect_whole(processes)
    client.wait(WAIT_S)
    await until(lambda: pid_start_ticks(roles["helper"]) is None)  # else it might meet the next test's fault
    assert machine.device_bytes() == crew.held_bytes()
