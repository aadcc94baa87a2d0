"""An engine in memory that notes what it is asked for; it gives machines when told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.types.errors import Conflict, NotFound, ResourceExhausted, Unavailable


class RecordingEngine:
    """See :class:`~glowplug.engine.port.Engine`. Set ``most``, ``is_away``; read the rest."""

    name = "recording"

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.is_away = False
        self.own = ""
        self.there: dict[str, Machine] = {}
        self.asked: list[list[Demand]] = []
        self.released: list[str] = []

    @property
    def wanted(self) -> list[Demand]:
        return self.asked[-1] if self.asked else []

    def give(self, *names: str, **has: object) -> None:
        """Machines whose agents have joined."""
        for name in names:
            machine = Machine(f"id-{name}", name, MachineState.RUNNING, cpus=8.0, memory_bytes=1 << 34)
            self.there[name] = replace(machine, **has)  # type: ignore[arg-type]

    def machines(self) -> list[Machine]:
        self._answer()
        return sorted(self.there.values(), key=lambda one: one.id)

    def reconcile(self) -> list[Machine]:
        return self.machines()

    def ask(self, demands: Sequence[Demand]) -> None:
        self._answer()
        self.asked.append(list(demands))
        if sum(one.count for one in demands) > self.most:
            raise ResourceExhausted("Nobody has so many.", remedy="Join another machine.")

    def drain(self, machine_id: str) -> None:
        self._find(machine_id)

    def release(self, machine_id: str) -> None:
        machine = self._find(machine_id)
        if machine.node == self.own:
            raise Conflict("It stays.", remedy="Keep it.")
        self.released.append(machine_id)
        del self.there[machine.node]

    def _find(self, machine_id: str) -> Machine:
        self._answer()
        for machine in self.there.values():
            if machine.id == machine_id:
                return machine
        raise NotFound(f"No machine {machine_id!r}.", remedy="Look.")

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable("The engine is away.", remedy="Wait.")
