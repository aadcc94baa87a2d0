"""How many machines of which pool are wanted for a demand: plain arithmetic on what the Pool objects say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from glowplug.engine.kubernetes.objects import MachineObject, PoolObject
from glowplug.engine.port import Demand
from glowplug.types.errors import ResourceExhausted


@dataclass(frozen=True)
class Wanted:
    """``machines`` by pool; ``unmet`` are shares that no pool may grow for."""

    machines: Mapping[str, int]
    unmet: int = 0


@dataclass
class _Room:
    """What is left of one machine."""

    cpus: float
    memory_bytes: int
    gpus: int

    @classmethod
    def of(cls, machine: MachineObject) -> _Room:
        """All of it."""
        return cls(machine.cpus, machine.memory_bytes, machine.gpus)

    def take(self, share: Demand) -> bool:
        """Whether it fits; then it is taken."""
        if share.cpus > self.cpus or share.memory_bytes > self.memory_bytes or share.gpus > self.gpus:
            return False
        self.cpus -= share.cpus
        self.memory_bytes -= share.memory_bytes
        self.gpus -= share.gpus
        return True


@dataclass
class _Filling:
    """A pool that is being filled."""

    name: str
    pool: PoolObject
    machines: list[_Room] = field(default_factory=list)

    def take(self, share: Demand) -> bool:
        """On a machine that is begun, else on one more, if the pool may grow."""
        if any(machine.take(share) for machine in self.machines):
            return True
        if len(self.machines) >= self.pool.max_machines:
            return False
        self.machines.append(_Room.of(self.pool.machine))
        return self.machines[-1].take(share)


def wanted_machines(pools: Mapping[str, PoolObject], demands: Sequence[Demand]) -> Wanted:
    """Largest shares first, each on the smallest kind of machine that holds it.

    Raises ResourceExhausted for a share that no machine of any pool could hold, whatever is asked beside it.
    """
    fillings = [_Filling(name, pool) for name, pool in sorted(pools.items())]
    unmet = 0
    for share in _shares(demands):
        fitting = [one for one in fillings if _holds(one.pool.machine, share)]
        if not fitting:
            raise ResourceExhausted(
                f"No pool has machines with {_words(share)}.",
                remedy="Make a Pool of such machines (kubectl get pools.glowplug.dev): their nodes join.",
            )
        fitting.sort(key=lambda one: _size(one.pool.machine))
        unmet += not any(one.take(share) for one in fitting)
    machines = {one.name: max(len(one.machines), one.pool.min_machines) for one in fillings}
    return Wanted(machines, unmet)


def _shares(demands: Sequence[Demand]) -> Iterator[Demand]:
    for demand in sorted(demands, key=lambda one: (one.gpus, one.memory_bytes, one.cpus), reverse=True):
        yield from [replace(demand, count=1)] * demand.count


def _holds(machine: MachineObject, share: Demand) -> bool:
    is_chip = share.gpu_chip is None or (machine.gpu_chip or "").lower() == share.gpu_chip.lower()
    return is_chip and _Room.of(machine).take(share)


def _size(machine: MachineObject) -> tuple[int, int, float]:
    return machine.gpus, machine.memory_bytes, machine.cpus


def _words(share: Demand) -> str:
    gpus = f", {share.gpus} {share.gpu_chip or 'GPU'}" if share.gpus else ""
    return f"{share.cpus:g} processors, {share.memory_bytes / (1 << 30):.3g} GiB{gpus}"
