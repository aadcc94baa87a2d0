"""What can be captured with several ranks, and what is refused by name before anything is released.

Sources: NVIDIA's cuda-checkpoint (what no driver can suspend), PyTorch's ``Backend::suspend`` ("require NCCL
2.29.7+ at runtime"), and NVIDIA/nccl issue 2337: a live multicast object makes
``cuCheckpointProcessCheckpoint`` hang, and ``ncclCommSuspend`` does not release it.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from glowplug.types.errors import SystemUnfit

GLOO, NCCL = "gloo", "nccl"
BACKENDS = frozenset({GLOO, NCCL})
NCCL_SUSPENDS = (2, 29, 7)
_MPS_CONTROL = Path("/tmp/nvidia-mps/control")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


def unsupported_here(backends: Collection[str], environment: Mapping[str, str]) -> list[str]:
    """What stands in the way in this process, in words; empty if nothing does.

    What can be seen neither here nor by the protocol is refused by the driver when it is to suspend the
    process: managed memory (``CUDA_ERROR_NOT_SUPPORTED``).
    """
    found = [f"the backend {name!r} (known are {GLOO} and {NCCL})" for name in sorted({*backends} - BACKENDS)]
    if environment.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        found.append("TORCH_DISTRIBUTED_DEBUG=DETAIL, which wraps communicators")
    if NCCL not in backends:
        return found
    if environment.get("NCCL_NVLS_ENABLE") != "0":
        found.append("NVLS (multicast memory over NVLink): set NCCL_NVLS_ENABLE=0 for every rank")
    if any("MIG-" in environment.get(name, "") for name in _VISIBLE):
        found.append("MIG slices")
    if "CUDA_MPS_PIPE_DIRECTORY" in environment or _MPS_CONTROL.exists():
        found.append("MPS")
    return found


def refuse(found: Collection[str], rank: int) -> None:
    """Raises SystemUnfit that names everything, or returns if there is nothing."""
    if not found:
        return
    raise SystemUnfit(
        f"The communicators of rank {rank} cannot be captured: {'; '.join(found)}.",
        remedy="Turn that off, or leave glowplug.nccl out and deploy with snapshot=False.",
        rank=rank,
        unsupported=list(found),
    )


def suspends(backend: Any, nccl_version: tuple[int, ...]) -> bool:
    """Whether this NCCL backend can give back its memory and keep its communicators.

    PyTorch 2.12 and later have ``suspend`` and ``resume``, which call ``ncclCommSuspend`` for every
    communicator that the backend has; a pointer to one of them is not to be had from Python.
    """
    return hasattr(backend, "suspend") and hasattr(backend, "resume") and nccl_version >= NCCL_SUSPENDS


def place() -> str:
    """Where this process is, as far as loopback reaches: equal for ranks that can talk over 127.0.0.1."""
    return " ".join([_text("/proc/sys/kernel/random/boot_id"), socket.gethostname(), _network_namespace()])


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "-"


def _network_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return "-"
