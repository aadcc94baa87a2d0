"""What this machine has, and who holds how much of it.

Memory and GPUs are promised once, GPUs one by one: a replica that would not fit is refused with the numbers.
What is promised of memory is what the cgroup allows: the replica's own and what its sandbox may take on top.
Processors are shared: the kernel divides them, and an idle replica uses none. A parked replica cannot grow:
it counts with what it holds until it is woken, when it needs its promise again. One whose device memory is on
the host holds no GPU either: replicas take turns on one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from glowplug.runtime.bundle import SANDBOX_OVERHEAD_BYTES
from glowplug.snapshot.gpu.inventory import Device
from glowplug.types.chips import is_called
from glowplug.types.errors import Unavailable
from glowplug.types.spec import Resources

_RESERVED_MEMORY_BYTES = 1 << 30
_GIB = 1 << 30


@dataclass(frozen=True)
class _Held:
    """What one replica takes of the machine."""

    cpus: float
    memory_bytes: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def promised(cls, resources: Resources, gpus: Sequence[str] = ()) -> _Held:
        return cls(resources.cpus, resources.memory_bytes + SANDBOX_OVERHEAD_BYTES, tuple(gpus))


@dataclass
class Capacity:
    """A ledger of resources by replica id. :meth:`read` measures the machine."""

    cpus: float
    memory_bytes: int
    gpus: Sequence[Device] = ()
    _held: dict[str, _Held] = field(default_factory=dict)

    @classmethod
    def read(cls, gpus: Sequence[Device] = ()) -> Capacity:
        """This machine with these GPUs, less a GiB for the system and ourselves."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            cpus=float(len(os.sched_getaffinity(0))),
            memory_bytes=max(total - _RESERVED_MEMORY_BYTES, total // 2),
            gpus=gpus,
        )

    @property
    def memory_used_bytes(self) -> int:
        """Promised so far."""
        return sum(held.memory_bytes for held in list(self._held.values()))

    @property
    def cpus_used(self) -> float:
        """Asked for so far; may exceed what there is."""
        return sum(held.cpus for held in self._held.values())

    @property
    def gpus_used(self) -> int:
        """Promised so far."""
        return sum(len(held.gpus) for held in self._held.values())

    def reserve(
        self, replica_id: str, wanted: Resources, before: Sequence[str] = (), *, can_move: bool = True
    ) -> None:
        """Promise ``wanted`` to a replica, instead of what it holds if it is parked.

        ``before`` are the GPUs that its device memory was on: it gets those if they are free, and no others
        unless it ``can_move``. Raises Unavailable, with the numbers, if it does not fit; what it held it
        still holds then.
        """
        promise = _Held.promised(wanted)
        held = self._held.get(replica_id, _Held(0.0, 0))
        free_bytes = self.memory_bytes - self.memory_used_bytes + held.memory_bytes
        if promise.memory_bytes > free_bytes:
            raise Unavailable(
                f"No room for {replica_id}: it may use {promise.memory_bytes / _GIB:.1f} GiB of memory "
                f"({SANDBOX_OVERHEAD_BYTES / _GIB:.1f} of it for its sandbox), and "
                f"{max(free_bytes, 0) / _GIB:.1f} of {self.memory_bytes / _GIB:.1f} GiB are free.",
                remedy="Stop something (`glowplug ps`), or lower memory= or max_replicas=.",
                resource="memory",
            )
        gpus = self._gpus_for(replica_id, wanted, held, before, can_move)
        self._held[replica_id] = replace(promise, gpus=gpus)

    def park(self, replica_id: str, memory_bytes: int, *, keeps_gpus: bool = True) -> None:
        """A parked replica runs on no processor, and takes the memory that it holds."""
        held = self._held.get(replica_id)
        if held is not None:
            self._held[replica_id] = _Held(0.0, memory_bytes, held.gpus if keeps_gpus else ())

    def hold(self, replica_id: str, held: Resources, gpus: Sequence[str]) -> None:
        """Note what an adopted replica holds already, whether or not it still fits."""
        self._held[replica_id] = _Held.promised(held, gpus)

    def release(self, replica_id: str) -> None:
        """Take back what a replica held; nothing if it held nothing."""
        self._held.pop(replica_id, None)

    def gpus_of(self, replica_id: str) -> tuple[str, ...]:
        """The UUIDs of those that a replica was promised."""
        held = self._held.get(replica_id)
        return held.gpus if held is not None else ()

    def hand_over(self, replica_id: str, successor_id: str) -> None:
        """What the first held is the other's: it takes its place."""
        held = self._held.pop(replica_id, None)
        if held is not None:
            self._held[successor_id] = held

    def _gpus_for(
        self, replica_id: str, wanted: Resources, held: _Held, before: Sequence[str], can_move: bool
    ) -> tuple[str, ...]:
        """Raises Unavailable."""
        if len(held.gpus) == wanted.gpu_count:
            return held.gpus
        taken = {uuid for other, one in self._held.items() if other != replica_id for uuid in one.gpus}
        wanted_kind = [
            device.uuid
            for device in self.gpus
            if is_called(device.chip, wanted.gpu_chip) and (can_move or device.uuid in before)
        ]
        free = [uuid for uuid in wanted_kind if uuid not in taken]
        free.sort(key=lambda uuid: uuid not in before)
        if len(free) < wanted.gpu_count:
            raise Unavailable(
                f"No room for {replica_id}: it needs {wanted.gpu_count} GPU(s) ({wanted.gpu}), and "
                f"{len(free)} of {len(wanted_kind)} are free.",
                remedy="Leave out gpu= to run on the processor, or run where there is one.",
                resource="gpu",
            )
        return tuple(free[: wanted.gpu_count])
