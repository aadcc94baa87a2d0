"""Trying a GPU: a small process is suspended and resumed; its device memory must hold what it wrote.

What ``glowplug gpu check`` does, and what proves the way through guard, helper and driver on a real GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from glowplug.snapshot.gpu import trial_process
from glowplug.snapshot.gpu.client import GpuGuard
from glowplug.snapshot.gpu.inventory import Device, read_inventory
from glowplug.types.errors import DeadlineExceeded, GpuFailed
from glowplug.types.spec import Spec

_START_S = 120.0  # cuInit, and noise for the device at some 500 MB/s


class Trial(Spec):
    """What was found. Seconds of each phase, as the guard measured them; bytes as NVML saw them come free."""

    device: Device
    size_bytes: int
    seconds: dict[str, float]
    freed_bytes: int


async def try_device(guard: GpuGuard, device: Device, size_bytes: int) -> Trial:
    """Move ``size_bytes`` of device memory to the host and back.

    Raises GpuFailed, also if the memory came back changed or was not freed; DeadlineExceeded, Unavailable.
    """
    async with _process(device, size_bytes) as process:
        held = await _free_bytes(device)
        suspended = await guard.suspend([process.pid])
        freed = await _free_bytes(device) - held
        resumed = await guard.resume([process.pid])
        answer = await _ask(process, "verify")
    if not answer["whole"]:
        raise GpuFailed(
            f"Device memory of GPU {device.index} came back changed.", remedy="Do not use GPU snapshots here."
        )
    if freed < size_bytes:
        raise GpuFailed(
            f"GPU {device.index} got back {freed} of {size_bytes} bytes while the process was suspended.",
            remedy="Try again when nothing else runs on it; else report the driver's version.",
        )
    return Trial(
        device=device,
        size_bytes=size_bytes,
        seconds={**suspended.seconds, **resumed.seconds},
        freed_bytes=freed,
    )


@asynccontextmanager
async def _process(device: Device, size_bytes: int) -> AsyncIterator[Process]:
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # NVML's order
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    process = await asyncio.create_subprocess_exec(
        *trial_process.command(device.index, size_bytes),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=environment,
    )
    try:
        ready = await _read(process)
        if not ready["ready"]:
            raise GpuFailed(
                f"No CUDA program can use GPU {device.index}: {ready['reason']}.",
                remedy="Something else may hold its memory: `glowplug gpu ls`.",
            )
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ask(process: Process, question: str) -> dict[str, Any]:
    assert process.stdin is not None  # noqa: S101 - asked for above
    process.stdin.write(f"{question}\n".encode())
    return await _read(process)


async def _read(process: Process) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"A CUDA program did nothing for {_START_S:g} s.",
            remedy="Look for NVRM lines in `dmesg`.",
            stage="gpu",
        ) from error
    if not line:
        raise GpuFailed("The CUDA program that was tried ended by itself.", remedy="Look into `dmesg`.")
    answer: dict[str, Any] = json.loads(line)
    return answer


async def _free_bytes(device: Device) -> int:
    inventory = await asyncio.to_thread(read_inventory)
    found = (
        [other.free_bytes for other in inventory.devices if other.uuid == device.uuid] if inventory else []
    )
    return found[0] if found else 0
