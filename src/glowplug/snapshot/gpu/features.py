"""What NVIDIA's drivers can do about checkpoints, by version: the table of docs/gpu.md.

Sources: https://github.com/NVIDIA/cuda-checkpoint (README, "Features" by version), the release notes of the
drivers, and the "CUDA Checkpointing" section of the CUDA Driver API.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """Something a driver can do from a branch on. ``words`` complete "this driver can .."."""

    branch: int
    name: str
    words: str


FEATURES = (
    Feature(570, "checkpoint", "suspend and resume a process (lock with a time limit, process trees)"),
    Feature(580, "device_map", "resume on other GPUs of the same chip"),
    Feature(610, "legacy_ipc", "suspend processes that share device memory by cuIpcGetMemHandle"),
)

UNSUPPORTED = (
    "managed memory (cudaMallocManaged)",
    "MIG slices",
    "MPS clients",
    "multicast memory over NVLink (NVLS)",
    "memory exported by cuMemExportToShareableHandle, or by fabric handle",
)
"""What no driver can suspend."""


def branch_of(driver_version: str) -> int:
    """580 of ``580.82.07``; 0 of what is no version."""
    found = re.match(r"\d+", driver_version)
    return int(found.group()) if found else 0


def features_of(driver_version: str) -> list[Feature]:
    """What a driver can do."""
    return [feature for feature in FEATURES if branch_of(driver_version) >= feature.branch]


def can(driver_version: str, name: str) -> bool:
    """Whether it can do one thing."""
    return any(feature.name == name for feature in features_of(driver_version))
