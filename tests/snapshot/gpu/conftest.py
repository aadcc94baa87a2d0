"""One machine a test: a fake one, or with ``make test-gpu`` this one."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from glowplug.snapshot.gpu.client import GpuGuard

from .machine import H100, IS_REAL, Machine, build_driver

MakeMachine = Callable[..., Machine]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The fake driver; None for the real one. Skips where the real one is wanted and there is none."""
    if not IS_REAL:
        return build_driver(tmp_path_factory.getbasetemp().parent)
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        listed = ""
    if "GPU 0" not in listed:
        pytest.skip("no NVIDIA GPU here (nvidia-smi lists none): nothing was tested on a real driver")
    return None


@pytest.fixture
def make_machine(
    libraries: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Machine]:
    """Make a machine with these chips; whatever this test starts finds it."""

    def make(*chips: str, memory_bytes: int = 1 << 30) -> Machine:
        if libraries is None:
            pytest.skip("a real GPU cannot be made to fail, nor another chip")
        machine = Machine(tmp_path / "gpus", libraries, chips or (H100,), memory_bytes)
        for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
            monkeypatch.setenv(name, machine.environment[name])
        return machine

    return make


@pytest.fixture
def machine(libraries: Path | None, make_machine: MakeMachine, tmp_path: Path) -> Machine:
    """Two H100, or what is here."""
    return Machine(tmp_path, None, (), 0) if libraries is None else make_machine(H100, H100)


@pytest.fixture
async def guard(machine: Machine, tmp_path: Path) -> AsyncIterator[GpuGuard]:
    """A guard of the test's own, with the deadlines that users have."""
    async with GpuGuard(tmp_path / "guard") as started:
        yield started
