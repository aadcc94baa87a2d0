"""What this machine has, and who holds how much of it.

Memory and GPUs are promised once: a replica that would not fit is refused with the numbers. What is promised
is what the cgroup allows: the replica's own memory and what its sandbox may take on top. Processors are
shared: the kernel divides them, and an idle replica uses none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from glowplug.runtime.bundle import SANDBOX_OVERHEAD_BYTES
from glowplug.types.errors import Unavailable
from glowplug.types.spec import Resources

_RESERVED_MEMORY_BYTES = 1 << 30
_GIB = 1 << 30


@dataclass
class Capacity:
    """A ledger of resources by replica id. :meth:`read` measures the machine."""

    cpus: float
    memory_bytes: int
    gpus: list[str] = field(default_factory=list)
    _held: dict[str, Resources] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Capacity:
        """This machine, less a GiB for the system and ourselves."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpus=float(len(os.sched_getaffinity(0))),
            memory_bytes=max(total - _RESERVED_MEMORY_BYTES, total // 2),
            gpus=_gpu_names(Path("/proc/driver/nvidia/gpus")),
        )

    @property
    def memory_used_bytes(self) -> int:
        """Promised so far."""
        return sum(_memory_bytes(held) for held in list(self._held.values()))

    @property
    def cpus_used(self) -> float:
        """Asked for so far; may exceed what there is."""
        return sum(held.cpus for held in self._held.values())

    @property
    def gpus_used(self) -> int:
        """Promised so far."""
        return sum(held.gpu_count for held in self._held.values())

    def reserve(self, replica_id: str, wanted: Resources) -> None:
        """Promise ``wanted`` to a replica. Raises Unavailable, with the numbers, if it does not fit."""
        free_bytes = self.memory_bytes - self.memory_used_bytes
        if _memory_bytes(wanted) > free_bytes:
            raise Unavailable(
                f"No room for {replica_id}: it may use {_memory_bytes(wanted) / _GIB:.1f} GiB of memory "
                f"({SANDBOX_OVERHEAD_BYTES / _GIB:.1f} of it for its sandbox), and "
                f"{max(free_bytes, 0) / _GIB:.1f} of {self.memory_bytes / _GIB:.1f} GiB are free.",
                remedy="Stop something (`glowplug ps`), or lower memory= or max_replicas=.",
                resource="memory",
            )
        free_gpus = len(self.gpus) - self.gpus_used
        if wanted.gpu_count > free_gpus:
            raise Unavailable(
                f"No room for {replica_id}: it needs {wanted.gpu_count} GPU(s) ({wanted.gpu}), and "
                f"{max(free_gpus, 0)} of {len(self.gpus)} are free.",
                remedy="Leave out gpu= to run on the processor, or run where there is one.",
                resource="gpu",
            )
        self._held[replica_id] = wanted

    def hold(self, replica_id: str, held: Resources) -> None:
        """Note what an adopted replica holds already, whether or not it still fits."""
        self._held[replica_id] = held

    def release(self, replica_id: str) -> None:
        """Take back what a replica held; nothing if it held nothing."""
        self._held.pop(replica_id, None)


def _memory_bytes(resources: Resources) -> int:
    return resources.memory_bytes + SANDBOX_OVERHEAD_BYTES


def _gpu_names(directory: Path) -> list[str]:
    names = []
    for information in sorted(directory.glob("*/information")):
        for line in information.read_text().splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names
