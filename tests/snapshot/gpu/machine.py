"""Machines with GPUs: fake ones, whose driver is built here and can be told to fail, or the real one.

``GLOWPLUG_TEST_GPU=real`` (``make test-gpu``) runs the tests on this machine's own driver; those that need a
fault, or more devices than there are, are skipped then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import select
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.snapshot.gpu import trial_process

SOURCES = Path(__file__).parent / "fake_driver"
LIBRARIES = {"libcuda.so.1": "libcuda.cpp", "libnvidia-ml.so.1": "libnvidia_ml.cpp"}
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
INSIDE_DRIVER, INSIDE_GPUS = "/run/fake-driver", "/run/fake-gpus"
"""Where containers find the fake driver and its machine."""
H100 = "NVIDIA H100 80GB HBM3"
IS_REAL = os.environ.get("GLOWPLUG_TEST_GPU") == "real"
WAIT_S = 60.0


def build_driver(folder: Path) -> Path:
    """The fake libraries, in a folder named by their sources: built once, whoever asks."""
    sources = b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))
    made = folder / f"fake-driver-{hashlib.sha256(sources).hexdigest()[:16]}"
    made.mkdir(parents=True, exist_ok=True)
    for name, source in LIBRARIES.items():
        if not (made / name).exists():
            fresh = made / f"{name}.{os.getpid()}"
            subprocess.run(["g++", *FLAGS, "-o", fresh, SOURCES / source], check=True)
            fresh.replace(made / name)
    return made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - of other processes, which set no event
            await asyncio.sleep(0.005)


class Machine:
    """What tests see of the GPUs: the environment in which programs find them, and ways to spoil them."""

    def __init__(self, folder: Path, libraries: Path | None, chips: Sequence[str], memory_bytes: int) -> None:
        self.folder = folder
        self.uuids: list[str] = []
        self.environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # NVML's order
        if libraries is None:
            return
        for name in ("faults", "health", "memory"):
            (folder / name).mkdir(parents=True)
        self.become(chips, memory_bytes)
        self.environment |= {"FAKE_GPU_DIR": str(folder), "LD_LIBRARY_PATH": str(libraries)}

    def become(self, chips: Sequence[str], memory_bytes: int, driver: str = "580.82.07") -> None:
        """Have these GPUs, as another machine has, or another driver. Nothing may use the old ones."""
        self.uuids = [f"GPU-{uuid.uuid4()}" for _ in chips]
        lines = [f"{name} {memory_bytes} {chip}" for name, chip in zip(self.uuids, chips, strict=True)]
        (self.folder / "machine").write_text("\n".join([f"driver {driver} 13000", *lines, ""]))
        (self.folder / "state").unlink(missing_ok=True)

    def fail(self, call: str, action: str, pid: int = 0, *, always: bool = False) -> None:
        """Have the next such call (on ``pid``, or any) go wrong, once or always. Actions: libcuda.cpp."""
        (self.folder / "faults" / f"{call}.{'always' if always else 'once'}-{uuid.uuid4().hex}").write_text(
            f"{action} {pid}\n"
        )

    @contextmanager
    def held_at(self, call: str) -> Iterator[None]:
        """The next such call waits until the block has ended; ``CALL_done``: it has been made, unanswered."""
        hold = self.folder / "hold"
        hold.touch()
        self.fail(call, "hold")
        try:
            yield
        finally:
            hold.unlink()

    async def await_strike(self) -> None:
        """Until the fault that was asked for has been met."""
        await until(lambda: not any((self.folder / "faults").iterdir()))

    def heal(self) -> None:
        """Take back what was not used up."""
        for fault in (self.folder / "faults").iterdir():
            fault.unlink(missing_ok=True)

    def calls(self) -> list[tuple[str, int, str]]:
        """What was asked of the driver: call, process, result."""
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(call, int(pid), result) for _, call, pid, result in map(str.split, lines)]

    def device_bytes(self) -> int:
        """How much device memory is in use, by whoever lives, in whatever pid namespace."""
        alive = {one for one in map(_identity, Path("/proc").iterdir()) if one}
        files = [(path.name.partition("-")[0].partition(".")[2], path) for path in self._memory_files()]
        return sum(_size_bytes(path) for owner, path in files if owner in alive)

    def describe_to_containers(self, libraries: Path) -> Path:
        """The folder of a CDI file by which containers get these GPUs, like one of NVIDIA's toolkit."""
        mounts = [
            {"hostPath": str(libraries), "containerPath": INSIDE_DRIVER, "options": ["ro", "bind"]},
            {"hostPath": str(self.folder), "containerPath": INSIDE_GPUS, "options": ["rw", "bind"]},
        ]
        env = [f"FAKE_GPU_DIR={INSIDE_GPUS}", f"LD_LIBRARY_PATH={INSIDE_DRIVER}"]
        spec = {
            "cdiVersion": "0.5.0",
            "kind": "nvidia.com/gpu",
            "devices": [{"name": "all", "containerEdits": {}}],
            "containerEdits": {"env": env, "mounts": mounts},
        }
        folder = self.folder.with_name(f"{self.folder.name}-cdi")
        folder.mkdir(exist_ok=True)
        (folder / "nvidia.json").write_text(json.dumps(spec))
        return folder

    def _memory_files(self) -> list[Path]:
        return list((self.folder / "memory").iterdir())


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was freed just now
        return 0


def _identity(process: Path) -> str:
    """As the fake names whom a file of device memory belongs to: pid namespace and pid in it, or ""."""
    if not process.name.isdigit():
        return ""
    try:
        status = (process / "status").read_text()
        namespace = (process / "ns" / "pid").stat().st_ino
    except OSError:  # it ended
        return ""
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return f"{namespace}.{numbers.split()[-1]}"


class CudaProcess:
    """A process that holds device memory full of noise, and can say whether it still does."""

    def __init__(self, machine: Machine, device: int = 0, size_bytes: int = 1 << 20) -> None:
        self._process = subprocess.Popen(
            trial_process.command(device, size_bytes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=machine.environment,
        )
        self.pid = self._process.pid

    def await_ready(self) -> CudaProcess:
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["ready"]
        return self

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_whole(self) -> bool:
        """Whether its device memory holds what it wrote there. Blocks while it is locked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("verify\n")
        self._process.stdin.flush()
        answers, _, _ = select.select([self._process.stdout], [], [], WAIT_S)
        assert answers, f"process {self.pid} is locked, or its memory is away"
        return bool(json.loads(self._process.stdout.readline())["whole"])

    def wait(self) -> int:
        return self._process.wait(WAIT_S)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


async def expect_whole(processes: Sequence[CudaProcess]) -> None:
    """All run (a locked one would not answer), and hold what they wrote."""
    assert all(await asyncio.gather(*(asyncio.to_thread(process.is_whole) for process in processes)))


@dataclass
class Crew:
    """Processes that serve one test after the other; those that a test ends are replaced."""

    machine: Machine
    size_bytes: int = 256 << 10
    processes: list[CudaProcess] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, machine: Machine) -> Iterator[Crew]:
        crew = cls(machine)
        try:
            yield crew
        finally:
            for process in crew.processes:
                process.end()

    def manned(self, count: int) -> list[CudaProcess]:
        """So many that live and are ready."""
        for process in [process for process in self.processes if not process.is_alive]:
            process.end()
            self.processes.remove(process)
        missing = count - len(self.processes)
        started = [CudaProcess(self.machine, size_bytes=self.size_bytes) for _ in range(missing)]
        self.processes += started
        for process in started:
            process.await_ready()
        return self.processes[:count]

    def held_bytes(self) -> int:
        """Device memory of those that live."""
        return self.size_bytes * sum(process.is_alive for process in self.processes)


@contextmanager
def running(machine: Machine, count: int, **options: int) -> Iterator[list[CudaProcess]]:
    """So many processes, ready; they end with the block."""
    processes = [CudaProcess(machine, **options) for _ in range(count)]
    try:
        yield [process.await_ready() for process in processes]
    finally:
        for process in processes:
            process.end()
