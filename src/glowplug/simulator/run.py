"""One policy in one world: the event loop.

Events are what happens at a moment that is known before: looks of autoscalers, steps of policies, replicas
that get ready, machines that come and go. Requests are no events: between two of them each app's line works
through its own (``line.py``).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heappop, heappush
from time import process_time

import numpy as np

from glowplug.pool.economics.meter import Meter, always_on_usd
from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.identity import Purchase
from glowplug.simulator.apps import AppRun
from glowplug.simulator.bound import bound, clairvoyant
from glowplug.simulator.fleet import Fleet, Machine
from glowplug.simulator.policies.choice import Policy
from glowplug.simulator.policies.planned import PlannedMachines
from glowplug.simulator.policies.rule import Actions, MachineNow, PoolNow, Seen
from glowplug.simulator.quantile_table import Floats
from glowplug.simulator.result import RunResult
from glowplug.simulator.scenario import DEMAND_STEP_S, World, filled
from glowplug.simulator.scenario_file import DemandSource
from glowplug.types.clock import ManualClock

Tell = Callable[[float], None]
"""Told how far a run is, 0 to 1."""


def run(world: World, policy: Policy, tell: Tell = lambda share: None) -> RunResult:
    """Run it to its end. The same world and policy give the same outcome."""
    began_s = process_time()
    going = _Run(filled(world) if policy.fills else world, policy, tell)
    going.to_the_end()
    return going.result(process_time() - began_s)


class _Run:
    def __init__(self, world: World, policy: Policy, tell: Tell) -> None:
        self._world = world
        self._policy = policy
        self._tell = tell
        self._clock = ManualClock(world.start_s)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._meter = Meter()
        self._rule = policy.make_rule(world)
        self._policy_cpu_s = 0.0
        self._is_closed = False
        self._fleet = Fleet(world, self._meter, self._schedule, works_at_once=self._rule.works_at_once)
        self._fleet.on_room = self._use_room
        self._fleet.on_lost = self._lose
        self._apps = {
            app.entry.name: AppRun(
                world, index, policy.make_scaler(app.spec.scaling, self._clock), self._fleet, self._meter,
                self._schedule, always_looks=policy.always_looks,
            )
            for index, app in enumerate(world.apps)
        }  # fmt: skip

    def to_the_end(self) -> None:
        """Until every request is answered or lost. Only the world's time is metered."""
        self._schedule(self._world.counts_from_s, self._settle)
        self._schedule(self._world.end_s, self._close)
        for app in self._apps.values():
            self._schedule(self._world.start_s, partial(self._look, app))
        self._schedule(self._world.start_s, self._step)
        while self._events:
            at_s, _, call = heappop(self._events)
            self._clock.advance(at_s - self._clock.monotonic())
            call(at_s)
            if self._is_closed and all(app.line.is_settled for app in self._apps.values()):
                break

    def _schedule(self, at_s: float, call: Callable[[float], None]) -> None:
        heappush(self._events, (at_s, next(self._order), call))

    # -- events --------------------------------------------------------------------------------------------

    def _look(self, app: AppRun, now_s: float) -> None:
        next_s = app.look(now_s)
        if math.isfinite(next_s):
            self._schedule(next_s, partial(self._look, app))

    def _step(self, now_s: float) -> None:
        began_s = process_time()
        actions = self._rule.step(now_s, self._seen(now_s))
        self._policy_cpu_s += process_time() - began_s
        self._do(actions, now_s)
        self._tell(min((now_s - self._world.start_s) / (self._world.end_s - self._world.start_s), 1.0))
        self._schedule(now_s + self._rule.every_s, self._step)

    def _do(self, actions: Actions, now_s: float) -> None:
        for name in actions.drains:
            machine = self._fleet.machines.get(name)
            if machine is not None and machine.takes_work:
                machine.takes_work = False
                for app in self._apps.values():
                    app.leave(machine, now_s)
        for name in actions.works:
            self._fleet.let_work(name, now_s)
        for name in actions.terminations:
            self._fleet.terminate(name, now_s)
        for order in actions.cancellations:
            self._fleet.cancel(order, now_s)
        for request in actions.requests:
            self._fleet.ask(request, now_s)

    def _use_room(self, kind: str, now_s: float) -> None:
        for app in self._apps.values():
            if app.app.entry.gpu == kind and app.unplaced_gpus:
                app.grow(now_s)

    def _lose(self, machine: Machine, now_s: float) -> None:
        for replica in list(machine.replicas):
            self._apps[replica.app].lost(replica, now_s)

    def _settle(self, now_s: float) -> None:
        for app in self._apps.values():
            app.settle(now_s)

    def _close(self, now_s: float) -> None:
        self._is_closed = True
        self._settle(now_s)
        self._fleet.close(now_s)

    # -- what a policy sees --------------------------------------------------------------------------------

    def _seen(self, now_s: float) -> Seen:
        up = Counter(machine.index for machine in self._fleet.machines.values())
        unplaced: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for app in self._apps.values():
            unplaced[app.app.entry.gpu] += app.unplaced_gpus
            wanted[app.app.entry.gpu] += app.wanted_gpus
        return Seen(
            pools=tuple(
                PoolNow(
                    pool.entry.id, pool.gpu, pool.gpus, pool.prices.at(now_s), pool.entry.quota,
                    pool.entry.min_rental_s, up[index], self._fleet.held(index) - up[index],
                    self._fleet.refused_at_s.get(index), self._fleet.lost_at_s.get(index),
                )
                for index, pool in enumerate(self._world.pools)
            ),
            machines=tuple(
                MachineNow(
                    machine.name, machine.pool.entry.id, machine.pool.gpu, machine.pool.gpus,
                    machine.pool.prices.at(now_s), machine.free, machine.up_at_s,
                    machine.pool.entry.min_rental_s,
                )
                for machine in self._fleet.machines.values()
            ),
            unplaced_gpus=unplaced,
            wanted_gpus=wanted,
            busy_gpus=self._busy_gpus,
            demand=partial(self._demand, now_s),
            waiting_slot_s=self._waiting_slot_s,
            listings=partial(self._fleet.listings, now_s),
        )  # fmt: skip

    def _busy_gpus(self) -> Mapping[str, float]:
        found: Counter[str] = Counter()
        for app in self._apps.values():
            found.update(app.load_by_machine())
        return {name: float(gpus) for name, gpus in found.items()}

    def _demand(self, now_s: float, source: DemandSource) -> tuple[DemandSeries, ...]:
        """One series for each class of the plan: what its apps needed, added up."""
        return tuple(
            _added(
                [
                    (app.app.demand if source == "log" else app.live_demand).until(now_s)
                    for app in self._apps.values()
                    if (app.app.entry.gpu, app.app.entry.gpus) == (entry.gpu, entry.gpus)
                ],
                now_s,
            )
            for entry in self._world.file.plan.demand
        )

    def _waiting_slot_s(self) -> tuple[float, ...]:
        """By class of the plan, what a planner that reads the control plane's metrics knows of lines."""
        return tuple(
            sum(
                app.waiting_slot_s
                for app in self._apps.values()
                if (app.app.entry.gpu, app.app.entry.gpus) == (entry.gpu, entry.gpus)
            )
            for entry in self._world.file.plan.demand
        )

    # -- the result ----------------------------------------------------------------------------------------

    def result(self, cpu_s: float) -> RunResult:
        """Once it has ended."""
        world, apps = self._world, list(self._apps.values())
        started = [np.array(app.line.started_s) for app in apps]
        least = bound(world, started)
        waits = np.concatenate(
            [_waits(app, begun, world.counts_from_s) for app, begun in zip(apps, started, strict=True)]
        )
        answered = sum(int(np.isfinite(begun).sum()) for begun in started)
        economics = self._meter.report(_always_on_usd(world))
        usd, counts = economics.rented_usd, self._fleet.counts
        p50, p90, p99 = (float(np.quantile(waits, q)) for q in (0.5, 0.9, 0.99))
        starts: Counter[str] = Counter()
        for app in apps:
            starts.update(app.starts)
        return RunResult(
            policy=self._policy.name, family=self._policy.family, seed=world.seed,
            requests=world.requests, measured=len(waits), answered=answered,
            lost=sum(app.line.lost for app in apps),
            retried=sum(app.line.retried for app in apps),
            wait_p50_s=p50, wait_p90_s=p90, wait_p99_s=p99,
            wait_max_s=float(waits.max()), wait_mean_s=float(waits.mean()),
            usd=usd, usd_per_h=usd / world.hours, bound_usd=least.usd, work_usd=least.work_usd,
            over_bound=usd / least.usd if least.usd > 0 else 1.0,
            economics=economics, wanted_gpu_s=sum(app.wanted_gpu_s for app in apps), starts=dict(starts),
            place_waits_s=[seconds for app in apps for seconds in app.places.seconds],
            machines={
                "asked": counts.asked, "granted": counts.granted, "refused": counts.refused,
                "interrupted": counts.interrupted, "given_back": counts.given_back,
            },
            peak_gpus=counts.peak_gpus, needed_peak_gpus=sum(least.peak_gpus.values()),
            notes=dict(self._rule.sources) if isinstance(self._rule, PlannedMachines) else {},
            cpu_s=cpu_s, policy_cpu_s=self._policy_cpu_s,
        )  # fmt: skip


def _waits(app: AppRun, started_s: Floats, from_s: float) -> Floats:
    """Of every request that counts; of a lost one how long it could wait."""
    arrivals_s = app.app.trace.arrivals_s
    waits = np.where(np.isfinite(started_s), started_s - arrivals_s, app.app.entry.hold_s)
    return np.asarray(waits[arrivals_s >= from_s])


def _added(series: list[DemandSeries], now_s: float) -> DemandSeries:
    """The sum: before its first request an app needed nothing."""
    known = [one for one in series if len(one.slots)]
    if not known:
        return DemandSeries(now_s, DEMAND_STEP_S, np.empty(0))
    first_s = min(one.start_s for one in known)
    offsets = [round((one.start_s - first_s) / one.step_s) for one in known]
    total = np.zeros(max(offset + len(one.slots) for offset, one in zip(offsets, known, strict=True)))
    for offset, one in zip(offsets, known, strict=True):
        total[offset : offset + len(one.slots)] += one.slots
    return DemandSeries(first_s, known[0].step_s, total)


def _always_on_usd(world: World) -> float:
    """What keeping the most replicas that the requests ever need would cost, on demand where that is sold."""
    prices = {}
    for kind in {app.entry.gpu for app in world.apps}:
        pools = [pool for pool in world.pools if pool.gpu == kind]
        firm = [pool for pool in pools if pool.entry.id.purchase is not Purchase.SPOT] or pools
        prices[kind] = min(pool.prices.usd(world.counts_from_s, world.end_s) / pool.gpus for pool in firm)
    peaks = clairvoyant(world).peak_gpus
    return always_on_usd(peaks, {kind: usd / world.hours for kind, usd in prices.items()}, world.hours)
