"""Whether machines that are there hold what is asked for: for engines that cannot rent others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.types.errors import ResourceExhausted

USABLE = (MachineState.RUNNING, MachineState.PENDING)


def check_fits(machines: Sequence[Machine], demands: Sequence[Demand], remedy: str) -> None:
    """First fit, the largest first, on those that are or will be running.

    Raises ResourceExhausted, with this remedy, for one without room.
    """
    usable = [machine for machine in machines if machine.state in USABLE]
    for demand, left in _without_room(usable, demands):
        fit = demand.count - left
        raise ResourceExhausted(
            f"Of {demand.count} times {_words(demand)}, {fit} fit {len(usable)} machines.", remedy=remedy
        )


def left_over(machines: Iterable[Machine], demands: Sequence[Demand]) -> list[Demand]:
    """What these machines do not hold, the largest first."""
    return [replace(demand, count=left) for demand, left in _without_room(machines, demands)]


def holds(machine: Machine, demand: Demand) -> bool:
    """Whether all of an empty machine holds one such share."""
    return _Room(machine).holds(demand)


def _without_room(machines: Iterable[Machine], demands: Sequence[Demand]) -> Iterator[tuple[Demand, int]]:
    rooms = [_Room(machine) for machine in machines]
    for demand in sorted(demands, key=lambda one: (one.gpus, one.memory_bytes, one.cpus), reverse=True):
        left = demand.count
        for _ in range(demand.count):
            room = next((room for room in rooms if room.holds(demand)), None)
            if room is None:
                break
            room.take(demand)
            left -= 1
        if left:
            yield demand, left


class _Room:
    def __init__(self, machine: Machine) -> None:
        self._cpus = machine.cpus
        self._memory_bytes = machine.memory_bytes
        self._gpus = machine.gpus
        self._gpu_chip = machine.gpu_chip

    def holds(self, demand: Demand) -> bool:
        has_chip = demand.gpu_chip is None or demand.gpu_chip == self._gpu_chip
        has_room = demand.cpus <= self._cpus and demand.memory_bytes <= self._memory_bytes
        return has_room and demand.gpus <= self._gpus and (has_chip or demand.gpus == 0)

    def take(self, demand: Demand) -> None:
        self._cpus -= demand.cpus
        self._memory_bytes -= demand.memory_bytes
        self._gpus -= demand.gpus


def _words(demand: Demand) -> str:
    gpus = f", {demand.gpus} GPUs {demand.gpu_chip or ''}".rstrip() if demand.gpus else ""
    return f"{demand.cpus:g} CPUs, {demand.memory_bytes / (1 << 30):.1f} GiB{gpus}"
