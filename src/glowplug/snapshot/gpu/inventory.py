"""The GPUs of this machine, as NVIDIA's management library (NVML) tells of them.

Never asked in the process that wants to know: NVML hangs when a GPU has fallen off its bus. The command line
has a process made for it (:func:`read_inventory`); the node's helper, which is resident, asks again and again
(:class:`Nvml`), and initialises the library once.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from glowplug.types.errors import DeadlineExceeded, GpuFailed, SystemUnfit
from glowplug.types.spec import Spec

DRIVER = Path("/proc/driver/nvidia/version")  # there when its kernel module is loaded
STAGE = "gpu inventory"
READ_S = 30.0  # NVML wakes a driver without persistence mode first: seconds a GPU
_RECOVERY_ACTIONS = {
    1: "it must be reset (`nvidia-smi --gpu-reset`)",
    2: "the machine must be rebooted",
    3: "peer-to-peer work must be drained",
    4: "work must be drained and the GPU reset",
}
_NOT_NAMED = "it needs attention (NVML recovery action {})"
_NO_DRIVER = 3
_NO_BINDINGS = 4


class Device(Spec):
    """One GPU. ``problem`` says why nothing should run on it; empty if nothing speaks against it.

    ``processes`` are those that hold some of its memory, by the host's pid, and how many bytes.
    """

    index: int
    uuid: str
    chip: str
    memory_bytes: int
    free_bytes: int
    is_persistent: bool
    is_mig: bool
    problem: str = ""
    processes: dict[int, int] = {}

    @property
    def is_fit(self) -> bool:
        """Whether replicas may run on it, and be suspended."""
        return not self.problem and not self.is_mig

    @property
    def state(self) -> str:
        """In a few words, for people."""
        if self.problem:
            return self.problem
        if self.is_mig:
            return "MIG is on: it cannot be suspended"
        return "ok" if self.is_persistent else "ok, persistence mode off: first use takes seconds"


class Inventory(Spec):
    """The driver, and the GPUs that it sees."""

    driver: str
    cuda: str
    devices: list[Device]


def read_inventory(timeout_s: float = READ_S) -> Inventory | None:
    """The inventory; None on a machine without NVIDIA's driver.

    Raises DeadlineExceeded, SystemUnfit without ``glowplug[gpu]``, or GpuFailed with NVML's words.
    """
    reader = subprocess.Popen(
        [sys.executable, "-P", "-m", "glowplug.snapshot.gpu.inventory"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        listed, said = reader.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        reader.kill()  # and not waited for: what hangs in the kernel does not even die
        raise DeadlineExceeded(
            f"NVIDIA's management library did not answer within {timeout_s:g} s.",
            remedy="Look for NVRM lines in `dmesg`: the GPU may need a reset, or the machine a reboot.",
            stage=STAGE,
        ) from error
    if reader.returncode == _NO_DRIVER:
        return None
    if reader.returncode == _NO_BINDINGS:
        if not DRIVER.exists():
            return None
        raise _no_bindings()
    try:
        return Inventory.model_validate_json(listed)
    except ValidationError as error:
        last = (said.strip().splitlines() or ["it says nothing"])[-1]
        raise _unlisted(last) from error


class Nvml:
    """The library in this process; initialised by the first reading, and again after one that failed."""

    def __init__(self) -> None:
        """Raises SystemUnfit without ``glowplug[gpu]``."""
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise _no_bindings() from error
        self._is_open = False

    def read(self) -> Inventory | None:
        """The inventory; None without a driver. May hang. Raises GpuFailed with NVML's words."""
        nvml = self._nvml
        try:
            if not self._is_open:
                nvml.nvmlInit()
                self._is_open = True
            return _inventory(nvml)
        except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded):
            return None
        except nvml.NVMLError as error:
            self._is_open = False
            raise _unlisted(str(error)) from error


def _no_bindings() -> SystemUnfit:
    return SystemUnfit("nvidia-ml-py is not installed.", remedy="pip install 'glowplug[gpu]'")


def _unlisted(why: str) -> GpuFailed:
    return GpuFailed(
        f"The GPUs of this machine cannot be listed: {why}",
        remedy="`nvidia-smi` must list them.",
        call="nvml",
    )


def main() -> None:
    """Print the inventory as JSON. For the exit codes see :func:`read_inventory`."""
    try:
        nvml = Nvml()
    except SystemUnfit:
        sys.exit(_NO_BINDINGS)
    inventory = nvml.read()
    if inventory is None:
        sys.exit(_NO_DRIVER)
    print(inventory.model_dump_json())


def _inventory(nvml: Any) -> Inventory:
    version = nvml.nvmlSystemGetCudaDriverVersion_v2()
    return Inventory(
        driver=nvml.nvmlSystemGetDriverVersion(),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        devices=[_device_or_problem(nvml, index) for index in range(nvml.nvmlDeviceGetCount())],
    )


def _device_or_problem(nvml: Any, index: int) -> Device:
    """One GPU that has fallen off its bus does not hide the others."""
    try:
        return _device(nvml, index)
    except nvml.NVMLError as error:
        return Device(
            index=index,
            uuid="",
            chip="unknown",
            memory_bytes=0,
            free_bytes=0,
            is_persistent=False,
            is_mig=False,
            problem=f"it does not answer: {error}",
        )


def _device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        chip=nvml.nvmlDeviceGetName(handle),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        is_persistent=bool(_asked(nvml, nvml.nvmlDeviceGetPersistenceMode, handle, otherwise=False)),
        is_mig=bool(_asked(nvml, nvml.nvmlDeviceGetMigMode, handle, otherwise=[0])[0]),
        problem=_problem(nvml, handle),
        processes=_processes(nvml, handle),
    )


def _processes(nvml: Any, handle: Any) -> dict[int, int]:
    """Bytes by pid; NVML does not tell them in every case (nvml.h: NVML_VALUE_NOT_AVAILABLE)."""
    found = _asked(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle, otherwise=[])
    return {process.pid: process.usedGpuMemory or 0 for process in found}


def _problem(nvml: Any, handle: Any) -> str:
    """After an Xid error the driver says what must be done before the GPU is used again."""
    fields = _asked(
        nvml,
        lambda of: nvml.nvmlDeviceGetFieldValues(of, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]),
        handle,
        otherwise=[],
    )
    action = fields[0].value.uiVal if fields and fields[0].nvmlReturn == nvml.NVML_SUCCESS else 0
    return _RECOVERY_ACTIONS.get(action, _NOT_NAMED.format(action)) if action else ""


def _asked(nvml: Any, question: Any, handle: Any, *, otherwise: Any) -> Any:
    """What older drivers and smaller GPUs do not answer is ``otherwise``."""
    try:
        return question(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return otherwise


if __name__ == "__main__":
    main()
