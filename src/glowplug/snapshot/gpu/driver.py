"""The CUDA driver's checkpoint calls, typed; imported by the helper only, because it loads libcuda.

A thin layer over ``cuda.bindings.driver`` that turns results into GpuFailed with the call, the process, its
state and what to do. The calls' rules are NVIDIA's:
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from glowplug.snapshot.gpu.words import CudaState, DeviceMap, DriverCall, uuid_bytes
from glowplug.types.errors import GpuFailed, SystemUnfit

_STATES = tuple(CudaState)
_REMEDIES = {
    "CUDA_ERROR_ILLEGAL_STATE": "Somebody else checkpoints this process (cuda-checkpoint, CRIU), or an "
    "earlier call on it failed: stop the replica.",
    "CUDA_ERROR_NOT_READY": "Work on the device did not end in time: drain the server, or allow it longer.",
    "CUDA_ERROR_NOT_SUPPORTED": "The process uses what this driver cannot checkpoint (managed memory, MIG, "
    "MPS, multicast over NVLink): docs/gpu.md lists it by driver version.",
    "CUDA_ERROR_OUT_OF_MEMORY": "Something else holds the device's memory: `glowplug gpu ls` shows how much.",
    "CUDA_ERROR_INVALID_VALUE": "The process has ended or uses no CUDA; or the device map leaves out a GPU, "
    "or names one of another chip.",
    "CUDA_ERROR_NOT_INITIALIZED": "Turn persistence mode on: `nvidia-smi -pm 1`.",
}
_OTHER_REMEDY = "Look for NVRM lines in `dmesg`; the replica is started cold."


class CheckpointDriver:
    """The driver of this machine, initialised (seconds, once). Calls may be made from several threads.

    Raises SystemUnfit when there is no driver, no device, or no ``glowplug[gpu]``.
    """

    def __init__(self) -> None:
        try:
            self._driver: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise SystemUnfit(
                f"The CUDA bindings cannot be loaded: {error}.", remedy="pip install 'glowplug[gpu]'"
            ) from error
        try:
            (result,) = self._driver.cuInit(0)
        except RuntimeError as error:  # the bindings' word for: libcuda.so.1 is not there
            raise SystemUnfit(
                f"There is no CUDA driver: {error}", remedy="Install NVIDIA's driver."
            ) from error
        if result != self._driver.CUresult.CUDA_SUCCESS:
            raise SystemUnfit(
                f"The CUDA driver does not start: {result.name}.", remedy="`nvidia-smi` must list a GPU."
            )

    def state(self, pid: int) -> CudaState:
        """The state of a CUDA process. Raises GpuFailed; a process without CUDA is one that has no state."""
        result, state = self._driver.cuCheckpointProcessGetState(pid)
        self._check(DriverCall.STATE, pid, result)
        return _STATES[int(state)]

    def lock(self, pid: int, timeout_s: float) -> None:
        """RUNNING to LOCKED, once the work that was submitted is done. Still RUNNING after ``timeout_s``.

        Raises GpuFailed.
        """
        arguments = self._driver.CUcheckpointLockArgs()
        arguments.timeoutMs = max(1, round(timeout_s * 1000))  # 0 would wait for ever
        self._check(DriverCall.LOCK, pid, *self._driver.cuCheckpointProcessLock(pid, arguments))

    def checkpoint(self, pid: int) -> None:
        """LOCKED to CHECKPOINTED: device memory moves to host memory of the process. Raises GpuFailed."""
        self._check(DriverCall.CHECKPOINT, pid, *self._driver.cuCheckpointProcessCheckpoint(pid, None))

    def restore(self, pid: int, device_map: DeviceMap) -> None:
        """CHECKPOINTED to LOCKED, on the devices of the map, or on the same ones if it is empty.

        Raises GpuFailed, or InvalidInput for what is no UUID.
        """
        arguments = None
        if device_map:
            arguments = self._driver.CUcheckpointRestoreArgs()
            arguments.gpuPairs = [self._pair(before, after) for before, after in device_map.items()]
            arguments.gpuPairsCount = len(device_map)
        self._check(DriverCall.RESTORE, pid, *self._driver.cuCheckpointProcessRestore(pid, arguments))

    def unlock(self, pid: int) -> None:
        """LOCKED to RUNNING. Raises GpuFailed."""
        self._check(DriverCall.UNLOCK, pid, *self._driver.cuCheckpointProcessUnlock(pid, None))

    def _pair(self, before: str, after: str) -> Any:
        pair = self._driver.CUcheckpointGpuPair()
        pair.oldUuid, pair.newUuid = self._uuid(before), self._uuid(after)
        return pair

    def _uuid(self, text: str) -> Any:
        made = self._driver.CUuuid()
        ctypes.memmove(made.getPtr(), uuid_bytes(text), 16)  # its bytes can be read only, from Python
        return made

    def _check(self, call: DriverCall, pid: int, result: Any) -> None:
        if result == self._driver.CUresult.CUDA_SUCCESS:
            return
        _, state = self._driver.cuCheckpointProcessGetState(pid)
        known = _STATES[int(state)].value if state is not None else "unknown"
        raise GpuFailed(
            f"The driver refuses to {call} process {pid} ({known}): {result.name}.",
            remedy=_REMEDIES.get(result.name, _OTHER_REMEDY),
            call=call.value,
            pid=pid,
            state=known,
            result=result.name,
        )
