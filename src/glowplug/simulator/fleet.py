"""Machines of one run: asked for, up, given back or taken away; what is free on them, and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from glowplug.pool.economics.meter import Meter
from glowplug.pool.providers.port import MachineState, Order, Sighting
from glowplug.simulator.market import Fate, Market
from glowplug.simulator.scenario import Pool, World
from glowplug.types.replica import ReplicaState
from glowplug.types.usage import Use

Schedule = Callable[[float, Callable[[float], None]], None]
"""Call it back at a moment, with that moment."""

_REMEMBERED_S = 300.0
"""So long listings show what was refused or is gone, as a cloud's do."""


@dataclass(eq=False)
class Replica:
    """A copy of an app on a machine. ``number``: in the app's line, once it was ready."""

    app: str
    gpus: int
    machine: Machine
    state: ReplicaState
    created_s: float
    since_s: float
    """Up to here its time is metered."""
    number: int | None = None
    served_s: float = 0.0
    """Of its time as metered, how long it had requests."""
    parked_at_s: float = 0.0

    @property
    def is_live(self) -> bool:
        """Ready, or on its way."""
        return self.state in (ReplicaState.STARTING, ReplicaState.READY)

    @property
    def is_waking(self) -> bool:
        """Was parked, and is on its way."""
        return self.state is ReplicaState.STARTING and self.number is not None

    @property
    def use(self) -> Use | None:
        """What it does with its GPUs when it does not serve; None when it is gone."""
        return _USES.get(self.state)


_USES = {
    ReplicaState.STARTING: Use.STARTING,
    ReplicaState.READY: Use.IDLE,
    ReplicaState.DRAINING: Use.IDLE,
    ReplicaState.PARKED: Use.PARKED,
}


@dataclass(eq=False)
class Machine:
    """A machine that is up. ``warm``: apps whose snapshot lies on its disk."""

    name: str
    order: str
    index: int
    pool: Pool
    up_at_s: float
    free: int
    takes_work: bool
    warm: set[str] = field(default_factory=set)
    replicas: list[Replica] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """No GPU of it is used."""
        return self.free == self.pool.gpus


@dataclass(frozen=True)
class Pending:
    """A request under way."""

    order: Order
    index: int
    asked_at_s: float
    fate: Fate


@dataclass
class FleetCounts:
    """What happened to machines."""

    asked: int = 0
    granted: int = 0
    refused: int = 0
    interrupted: int = 0
    given_back: int = 0
    peak_gpus: int = 0
    up_gpus: int = 0


class Fleet:
    """``on_room``: called with a GPU kind of which there is more room, ``on_lost`` with a machine that is
    gone.
    """

    def __init__(self, world: World, meter: Meter, schedule: Schedule, *, works_at_once: bool) -> None:
        self.machines: dict[str, Machine] = {}
        self.pending: dict[str, Pending] = {}
        self.counts = FleetCounts()
        self.refused_at_s: dict[int, float] = {}
        self.lost_at_s: dict[int, float] = {}
        self.on_room: Callable[[str, float], None] = lambda kind, now_s: None
        self.on_lost: Callable[[Machine, float], None] = lambda machine, now_s: None
        self._world = world
        self._meter = meter
        self._schedule = schedule
        self._works_at_once = works_at_once
        self._market = Market(world.pools, world.seed, world.start_s, world.end_s)
        self._index = {pool.entry.id: index for index, pool in enumerate(world.pools)}
        self._held: Counter[int] = Counter()
        self._recent: list[tuple[float, Sighting]] = []
        self._is_metered = True
        self._known: set[str] = set()

    # -- machines ------------------------------------------------------------------------------------------

    def ask(self, order: Order, now_s: float) -> None:
        """One more machine; an order that was made before makes no second one."""
        if order.id in self._known:
            return
        self._known.add(order.id)
        index = self._index[order.pool]
        fate = self._market.ask(index, self._held[index], now_s)
        self.counts.asked += 1
        self._held[index] += 1
        self.pending[order.id] = Pending(order, index, now_s, fate)
        self._schedule(fate.settles_s, partial(self._settle, order.id))

    def cancel(self, order: str, now_s: float) -> None:
        """It need not come any more; one that has come is ended."""
        pending = self.pending.pop(order, None)
        if pending is not None:
            self._held[pending.index] -= 1
            self._note(now_s, pending.order, f"m-{order}", MachineState.GONE)
            return
        for machine in [machine for machine in self.machines.values() if machine.order == order]:
            self.terminate(machine.name, now_s)

    def terminate(self, name: str, now_s: float) -> None:
        """Give it back, whatever is on it."""
        machine = self.machines.get(name)
        if machine is not None:
            self.counts.given_back += 1
            paid_until_s = max(now_s, machine.up_at_s + machine.pool.entry.min_rental_s)
            self._end(machine, now_s, paid_until_s)

    def place(self, app: str, kind: str, gpus: int) -> Machine | None:
        """Where a replica goes: where its snapshot is, then where least is left over, then the oldest."""
        able = [
            machine
            for machine in self.machines.values()
            if machine.free >= gpus and machine.takes_work and machine.pool.gpu == kind
        ]
        return min(able, key=lambda m: (app not in m.warm, m.free, m.up_at_s, m.name), default=None)

    def let_work(self, name: str, now_s: float) -> None:
        """The machine takes replicas from now on."""
        machine = self.machines.get(name)
        if machine is not None and not machine.takes_work:
            machine.takes_work = True
            self.on_room(machine.pool.gpu, now_s)

    def freed(self, machine: Machine, gpus: int, now_s: float) -> None:
        """A replica on it has left its GPUs."""
        machine.free += gpus
        if machine.takes_work:
            self.on_room(machine.pool.gpu, now_s)

    def close(self, end_s: float) -> None:
        """Meter what is up at the end of the time that counts."""
        for machine in self.machines.values():
            self._meter_rent(machine, end_s)
        self._is_metered = False

    # -- what a provider shows -------------------------------------------------------------------------------

    def listings(self, now_s: float) -> dict[str, tuple[Sighting, ...]]:
        """By cloud, what its provider would list."""
        self._recent = [entry for entry in self._recent if entry[0] > now_s - _REMEMBERED_S]
        found: dict[str, list[Sighting]] = {pool.entry.cloud: [] for pool in self._world.pools}
        for name, pending in self.pending.items():
            sighting = Sighting(f"m-{name}", name, pending.order.pool, MachineState.PENDING)
            found[pending.order.pool.cloud].append(sighting)
        for machine in self.machines.values():
            found[machine.pool.entry.cloud].append(
                Sighting(machine.name, machine.order, machine.pool.entry.id, MachineState.UP, machine.name)
            )
        for _, sighting in self._recent:
            found[sighting.pool.cloud].append(sighting)
        return {cloud: tuple(sightings) for cloud, sightings in found.items()}

    def held(self, index: int) -> int:
        """Machines of a pool that are up or under way."""
        return self._held[index]

    # -- inside --------------------------------------------------------------------------------------------

    def _settle(self, order: str, now_s: float) -> None:
        pending = self.pending.pop(order, None)
        if pending is None:
            return
        name = f"m-{order}"
        if not pending.fate.is_granted:
            self._held[pending.index] -= 1
            self.counts.refused += 1
            self.refused_at_s[pending.index] = now_s
            self._note(now_s, pending.order, name, MachineState.REFUSED, pending.fate.reason)
            return
        self.counts.granted += 1
        pool = self._world.pools[pending.index]
        machine = Machine(name, order, pending.index, pool, now_s, pool.gpus, self._works_at_once)
        self.machines[name] = machine
        self.counts.up_gpus += pool.gpus
        self.counts.peak_gpus = max(self.counts.peak_gpus, self.counts.up_gpus)
        if math.isfinite(pending.fate.ends_s):
            self._schedule(pending.fate.ends_s, partial(self._interrupt, machine))
        if machine.takes_work:
            self.on_room(pool.gpu, now_s)

    def _interrupt(self, machine: Machine, now_s: float) -> None:
        if machine.name in self.machines:
            self.counts.interrupted += 1
            self.lost_at_s[machine.index] = now_s
            self._end(machine, now_s, now_s)

    def _end(self, machine: Machine, now_s: float, paid_until_s: float) -> None:
        del self.machines[machine.name]
        machine.takes_work = False
        self._held[machine.index] -= 1
        self.counts.up_gpus -= machine.pool.gpus
        self.on_lost(machine, now_s)
        self._meter_rent(machine, paid_until_s)
        sighting = Sighting(machine.name, machine.order, machine.pool.entry.id, MachineState.GONE)
        self._recent.append((now_s, sighting))

    def _note(self, now_s: float, order: Order, machine: str, state: MachineState, reason: str = "") -> None:
        self._recent.append((now_s, Sighting(machine, order.id, order.pool, state, reason=reason)))

    def _meter_rent(self, machine: Machine, until_s: float) -> None:
        start_s = max(machine.up_at_s, self._world.counts_from_s)
        end_s = min(until_s, self._world.end_s)
        if self._is_metered and end_s > start_s:
            usd = machine.pool.prices.usd(start_s, end_s)
            self._meter.add_rent(machine.pool.name, machine.pool.gpus * (end_s - start_s), usd)
