"""One app of one run: its line of requests, its replicas, and the control plane's own decisions about them.

How many replicas there should be is said by production's :class:`~glowplug.control.autoscaler.Autoscaler`
(or by what a policy puts in its place), which of them goes and how cold it gets by production's heat rules.
What is simulated is everything around them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import numpy as np

from glowplug.control.autoscaler import Decision, Load
from glowplug.control.heat import StepDown, has_cooled, shrink_order, spare_order, step_down, wake_order
from glowplug.pool.economics.meter import Meter
from glowplug.pool.forecast.offered import OfferedLoad, Trust, put_right
from glowplug.pool.forecast.series import DemandSeries
from glowplug.simulator.fleet import Fleet, Machine, Replica, Schedule
from glowplug.simulator.line import RequestLine
from glowplug.simulator.places import PlaceWaits
from glowplug.simulator.quantile_table import draw_one
from glowplug.simulator.scenario import App, World
from glowplug.types.replica import ReplicaState
from glowplug.types.usage import Use

_START_STREAM = 4


class Scaler(Protocol):
    """How many replicas there should be: production's autoscaler, or a policy's."""

    def decide(self, load: Load, last_activity_s: float | None) -> Decision:
        """The wish for now. Called at every look."""
        ...


class DemandRecord:
    """Slots that are needed, the most in each step: what the planner's loop keeps of metrics."""

    def __init__(self, history: DemandSeries, start_s: float, end_s: float) -> None:
        self._step_s = history.step_s
        first_s = history.start_s if len(history.slots) else start_s
        self._first_s = math.floor(first_s / self._step_s) * self._step_s
        steps = math.ceil((end_s - self._first_s) / self._step_s) + 1
        self._slots = np.zeros(steps)
        self._slots[: len(history.slots)] = history.slots
        self._guesses: set[int] = set()

    def note(self, now_s: float, slots: int, trust: Trust) -> None:
        """So many at this moment."""
        place = int((now_s - self._first_s) // self._step_s)
        if place >= len(self._slots):
            return
        if trust is Trust.KNOWN:
            for guess in self._guesses:
                self._slots[guess] = put_right(self._slots[guess], slots)
            self._guesses.clear()
        elif trust is Trust.GUESS:
            self._guesses.add(place)
        self._slots[place] = max(self._slots[place], slots)

    def until(self, now_s: float) -> DemandSeries:
        """Every step that is over."""
        return DemandSeries(self._first_s, self._step_s, self._slots).until(now_s)


class AppRun:
    """Owns the app's replicas. :meth:`look` again when it says.

    ``always_looks``: even while nothing runs and nobody asks, for scalers that start replicas before a
    request.
    """

    def __init__(
        self,
        world: World,
        index: int,
        scaler: Scaler,
        fleet: Fleet,
        meter: Meter,
        schedule: Schedule,
        *,
        always_looks: bool,
    ) -> None:
        self.app: App = world.apps[index]
        room = self.app.spec.scaling.target_concurrency
        self.line = RequestLine(self.app.trace, self.app.limit, self.app.entry.hold_s, room)
        self.live_demand = DemandRecord(self.app.demand.until(world.start_s), world.start_s, world.end_s)
        self._offered = OfferedLoad(self.app.wait_s)
        self.replicas: list[Replica] = []
        self.starts: Counter[str] = Counter()
        self.places = PlaceWaits(world.counts_from_s)
        self.wanted = 0
        self.wanted_gpu_s = 0.0
        """GPU-seconds of all replicas that were wanted, in the time that counts."""
        self._looked_at_s = world.start_s
        self._scaler = scaler
        self._fleet = fleet
        self._meter = meter
        self._schedule = schedule
        self._from_s, self._end_s = world.counts_from_s, world.end_s
        self._look_s = world.file.look_s
        self._always_looks = always_looks
        self._rng = np.random.default_rng([world.seed, _START_STREAM, index])
        self._has_snapshot = self.app.starts.has_snapshot
        self._ready_s: float | None = None

    @property
    def unplaced_gpus(self) -> int:
        """GPUs of replicas that are wanted and have no place."""
        live = sum(1 for replica in self.replicas if replica.is_live)
        return max(self.wanted - live, 0) * self.app.entry.gpus

    @property
    def waiting_slot_s(self) -> float:
        """For how long one replica would work on what waits, as the planner's loop makes of metrics."""
        return self._offered.waiting_work_s / self.app.limit

    @property
    def wanted_gpus(self) -> int:
        """GPUs of all replicas that are wanted."""
        return self.wanted * self.app.entry.gpus

    # -- looks ---------------------------------------------------------------------------------------------

    def look(self, now_s: float) -> float:
        """One pass, as the reconciler makes them. When to look again; infinite: never."""
        line = self.line
        line.advance(now_s)
        line.give_up_late(now_s)
        self._retire(now_s)
        live = [replica for replica in self.replicas if replica.is_live]
        ready = sum(1 for replica in live if replica.state is ReplicaState.READY)
        self._count_wanted(now_s)
        leaving, peak = line.leaving, line.take_peak()
        load = Load(ready, len(live) - ready, line.in_flight - leaving, line.waiting, max(peak - leaving, 0))
        requests = self._offered.read(now_s, line.in_flight, line.waiting, line.ended)
        self.live_demand.note(now_s, math.ceil(requests / self.app.limit - 1e-9), self._offered.trust)
        self.wanted = self._scaler.decide(load, self._last_activity_s()).desired
        surplus = max(len(live) - self.wanted, 0)
        if self.wanted > len(live):
            self.grow(now_s)
        else:
            self.places.missing(0, now_s)
            surplus -= self._shrink(live, surplus, now_s) if surplus else 0
        self._spare(surplus)
        self._cool(now_s)
        is_quiet = not (self.replicas or self.wanted or line.in_flight or line.waiting)
        if is_quiet and not self._always_looks:
            return line.next_arrival_s
        return now_s + self._look_s

    def _count_wanted(self, now_s: float) -> None:
        since_s, until_s = max(self._looked_at_s, self._from_s), min(now_s, self._end_s)
        self.wanted_gpu_s += max(until_s - since_s, 0.0) * self.wanted_gpus
        self._looked_at_s = now_s

    def grow(self, now_s: float) -> None:
        """Wake and start what is wanted, as far as there is room."""
        missing = self.wanted - sum(1 for replica in self.replicas if replica.is_live)
        if missing > 0:
            missing -= self._wake(missing, now_s)
        while missing > 0:
            machine = self._fleet.place(self.app.entry.name, self.app.entry.gpu, self.app.entry.gpus)
            if machine is None:
                break
            self._start(machine, now_s)
            self.places.placed(now_s)
            missing -= 1
        self.places.missing(max(missing, 0), now_s)

    def leave(self, machine: Machine, now_s: float) -> None:
        """The machine is to be given back: what is on it takes no more requests."""
        self.line.advance(now_s)
        for replica in [replica for replica in machine.replicas if replica.app == self.app.entry.name]:
            if replica.state is ReplicaState.READY:
                self._drain(replica, now_s)
            elif replica.state is not ReplicaState.DRAINING:
                self._stop(replica, now_s)

    def lost(self, replica: Replica, now_s: float) -> None:
        """Its machine is gone."""
        self.line.advance(now_s)
        self._charge(replica, now_s)
        if replica.number is not None and replica.state is not ReplicaState.PARKED:
            self.line.lose(replica.number, now_s)
        replica.state = ReplicaState.STOPPED
        self.replicas.remove(replica)

    def settle(self, now_s: float) -> None:
        """Meter what is there until now: where the time that counts begins, and where it ends."""
        self._count_wanted(now_s)
        self.line.advance(now_s)
        for replica in self.replicas:
            self._charge(replica, now_s)

    def load_by_machine(self) -> Mapping[str, int]:
        """GPUs of replicas that work on requests, or start, by machine."""
        found: Counter[str] = Counter()
        for replica in self.replicas:
            is_idle = replica.number is not None and self.line.is_idle(replica.number)
            if replica.state is ReplicaState.STARTING or not is_idle:
                found[replica.machine.name] += replica.gpus
        return found

    # -- up ------------------------------------------------------------------------------------------------

    def _wake(self, missing: int, now_s: float) -> int:
        parked = [
            replica
            for replica in self.replicas
            if replica.state is ReplicaState.PARKED and replica.machine.free >= replica.gpus
        ]
        parked.sort(key=lambda r: wake_order(is_pushed_out=False, parked_at_s=r.parked_at_s))
        woken = 0
        for replica in parked:
            if woken == missing:
                break
            if replica.machine.free >= replica.gpus:
                self._change(replica, ReplicaState.STARTING, now_s)
                replica.machine.free -= replica.gpus
                self._begin(replica, "parked", now_s)
                woken += 1
        return woken

    def _start(self, machine: Machine, now_s: float) -> None:
        entry = self.app.entry
        replica = Replica(entry.name, entry.gpus, machine, ReplicaState.STARTING, now_s, now_s)
        machine.free -= entry.gpus
        machine.replicas.append(replica)
        self.replicas.append(replica)
        elsewhere = "region" if self._has_snapshot else "cold"
        path = "ssd" if entry.name in machine.warm else elsewhere
        self._begin(replica, path, now_s)

    def _begin(self, replica: Replica, path: str, now_s: float) -> None:
        self.starts[path] += 1
        takes_s = draw_one(getattr(self.app.starts, path), self._rng)
        self._schedule(now_s + takes_s, partial(self._ready, replica))

    def _ready(self, replica: Replica, now_s: float) -> None:
        if replica.state is not ReplicaState.STARTING:
            return
        self.line.advance(now_s)
        self._change(replica, ReplicaState.READY, now_s)
        if replica.number is None:
            replica.number = self.line.add(now_s)
        else:
            self.line.come_back(replica.number, now_s)
        replica.machine.warm.add(self.app.entry.name)
        self._has_snapshot = True
        self._ready_s = now_s

    # -- down ----------------------------------------------------------------------------------------------

    def _shrink(self, live: list[Replica], surplus: int, now_s: float) -> int:
        """Idle ones step down; how many of ``surplus`` did."""
        idle = [
            replica
            for replica in live
            if not replica.is_waking and (replica.number is None or self.line.is_idle(replica.number))
        ]
        idle.sort(
            key=lambda r: shrink_order(
                is_starting=r.state is ReplicaState.STARTING, suspect_until_s=0.0, created_at_s=r.created_s
            )
        )
        for replica in idle[:surplus]:
            is_ready = replica.state is ReplicaState.READY
            if step_down(self.app.spec, is_ready=is_ready, is_wanted=True) is StepDown.PARK:
                self._park(replica, now_s)
            else:
                self._stop(replica, now_s)
        return min(len(idle), surplus)

    def _spare(self, surplus: int) -> None:
        """So many busy replicas get requests only when they must, as the reconciler has it."""
        line, before = self.line, self.line.spares
        if not (surplus or before):
            return
        busy = []
        for replica in self.replicas:
            number = replica.number
            if replica.state is ReplicaState.READY and number is not None and not line.is_idle(number):
                order = spare_order(
                    is_spare=number in before,
                    in_flight=line.in_flight_of(number),
                    created_at_s=replica.created_s,
                )
                busy.append((order, number))
        spares = {number for _, number in sorted(busy)[:surplus]}
        for number in before | spares:
            line.spare(number, is_spare=number in spares)

    def _park(self, replica: Replica, now_s: float) -> None:
        assert replica.number is not None  # noqa: S101 - it was ready
        self._change(replica, ReplicaState.PARKED, now_s)
        self.line.leave(replica.number)
        replica.parked_at_s = now_s
        self._fleet.freed(replica.machine, replica.gpus, now_s)

    def _cool(self, now_s: float) -> None:
        for replica in [r for r in self.replicas if r.state is ReplicaState.PARKED]:
            if has_cooled(self.app.spec.scaling, now_s - replica.parked_at_s):
                self._stop(replica, now_s)

    def _drain(self, replica: Replica, now_s: float) -> None:
        assert replica.number is not None  # noqa: S101 - it was ready
        self._change(replica, ReplicaState.DRAINING, now_s)
        self.line.leave(replica.number)
        if self.line.is_idle(replica.number):
            self._stop(replica, now_s)

    def _retire(self, now_s: float) -> None:
        """Stop who was to leave and has nothing left to do."""
        for replica in [r for r in self.replicas if r.state is ReplicaState.DRAINING]:
            if replica.number is not None and self.line.is_idle(replica.number):
                self._stop(replica, now_s)

    def _stop(self, replica: Replica, now_s: float) -> None:
        holds_gpus = replica.state is not ReplicaState.PARKED
        self._change(replica, ReplicaState.STOPPED, now_s)
        if replica.number is not None:
            self.line.leave(replica.number)
        self.replicas.remove(replica)
        replica.machine.replicas.remove(replica)
        if holds_gpus:
            self._fleet.freed(replica.machine, replica.gpus, now_s)

    # -- metering ------------------------------------------------------------------------------------------

    def _change(self, replica: Replica, state: ReplicaState, now_s: float) -> None:
        self._charge(replica, now_s)
        replica.state = state

    def _charge(self, replica: Replica, now_s: float) -> None:
        """Meter its time since the last change: serving, as far as it had requests, and what it did else."""
        use, until_s = replica.use, min(now_s, self._end_s)
        elapsed_s = until_s - replica.since_s
        if use is None or elapsed_s <= 0:
            return
        served_s = 0.0
        if replica.number is not None and use is Use.IDLE:
            total_s = self.line.serving_s(replica.number, until_s)
            served_s = min(max(total_s - replica.served_s, 0.0), elapsed_s)
            replica.served_s = total_s
        since_s, replica.since_s = replica.since_s, until_s
        if since_s < self._from_s:
            return
        pool = replica.machine.pool
        usd = pool.prices.usd(since_s, until_s) * replica.gpus / pool.gpus
        for kind, seconds in ((Use.SERVING, served_s), (use, elapsed_s - served_s)):
            if seconds > 0:
                share = seconds / elapsed_s
                self._meter.add_use(self.app.entry.name, pool.name, kind, seconds * replica.gpus, usd * share)

    def _last_activity_s(self) -> float | None:
        known = [at_s for at_s in (self.line.last_activity_s, self._ready_s) if at_s is not None]
        return max(known, default=None)
