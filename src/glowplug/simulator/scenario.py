"""What a scenario file refers to, looked up; and a world made of it, the same for every policy of one
seed.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from glowplug.observe.quantiles import answered_seconds
from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.market.prices import PriceBook
from glowplug.pool.plan_file import PlanFile, PoolEntry
from glowplug.pool.planning import load_prices
from glowplug.simulator.quantile_table import table_of
from glowplug.simulator.scenario_file import AppEntry, MarketEntry, ScenarioFile, Starts
from glowplug.simulator.traces import Trace, first_arrival_s, trace_of
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.errors import InvalidInput
from glowplug.types.replica import StartPath
from glowplug.types.spec import HostPythonImage, Resources, ServerSpec

DEMAND_STEP_S = 10.0
_TRACE_STREAM = 1
_RECORDS_NEEDED = 10
_RECORDS = TypeAdapter(list[ColdStartRecord])
_SNAPSHOT_PATHS = (StartPath.CPU_SNAPSHOT, StartPath.GPU_SNAPSHOT)


class PriceTrack:
    """What a machine costs from moment to moment: ``times_s`` ascending, the first price also before it."""

    def __init__(self, times_s: Sequence[float], usd_per_h: Sequence[float]) -> None:
        self._times_s = list(times_s)
        self.usd_per_h = list(usd_per_h)
        spans = zip(self._times_s, self._times_s[1:], self.usd_per_h, strict=False)
        self._paid = list(accumulate((usd * (end - start) for start, end, usd in spans), initial=0.0))

    @property
    def times_s(self) -> list[float]:
        """When prices change."""
        return list(self._times_s)

    def at(self, now_s: float) -> float:
        """USD per hour."""
        return self.usd_per_h[max(bisect_right(self._times_s, now_s) - 1, 0)]

    def usd(self, start_s: float, end_s: float) -> float:
        """What a machine costs between two moments."""
        return max(self._until(end_s) - self._until(start_s), 0.0) / 3_600.0

    def _until(self, at_s: float) -> float:
        place = max(bisect_right(self._times_s, at_s) - 1, 0)
        return self._paid[place] + self.usd_per_h[place] * (at_s - self._times_s[place])


@dataclass(frozen=True, eq=False)
class Pool:
    """A pool of the plan, as it really is."""

    entry: PoolEntry
    gpu: str
    gpus: int
    prices: PriceTrack
    market: MarketEntry

    @property
    def name(self) -> str:
        """``cloud/region/machine/purchase``."""
        return str(self.entry.id)


@dataclass(frozen=True, eq=False)
class App:
    """An app, its requests, and the specification that production's code is asked with."""

    entry: AppEntry
    spec: ServerSpec
    starts: Starts
    trace: Trace
    wait_s: float
    """So long its requests may wait, as the plan says."""
    demand: DemandSeries
    """Slots that history and trace need in each step, if nobody waits longer: what a log of requests says."""

    @property
    def limit(self) -> int:
        """Requests that one replica takes at once."""
        return self.entry.requests_at_once


@dataclass(frozen=True, eq=False)
class World:
    """All that policies of one seed have in common. What happens counts from ``counts_from_s`` to
    ``end_s``.
    """

    seed: int
    start_s: float
    counts_from_s: float
    end_s: float
    apps: tuple[App, ...]
    pools: tuple[Pool, ...]
    prices: PriceBook
    file: ScenarioFile

    @property
    def requests(self) -> int:
        """Of all apps."""
        return sum(len(app.trace) for app in self.apps)

    @property
    def hours(self) -> float:
        """That count."""
        return (self.end_s - self.counts_from_s) / 3_600.0


class Scenario:
    """A scenario file with its folder. Raises InvalidInput for what it refers to and is not there."""

    def __init__(self, file: ScenarioFile, folder: Path) -> None:
        self.file = file
        self._folder = folder
        self._start_s = file.start_s(first_arrival_s([app.trace for app in file.apps], folder))
        self._end_s = self._start_s + 3_600.0 * file.hours
        self.remarks: list[str] = []
        """What is wrong in the price files."""
        self._prices = load_prices(file.plan, folder, self.remarks)
        self._pools = tuple(self._pool(entry) for entry in file.plan.pools)
        self._starts = {app.name: _with_records(app.starts, folder) for app in file.apps}
        for app in file.apps:
            if not any(pool.gpu == app.gpu and pool.gpus >= app.gpus for pool in self._pools):
                raise InvalidInput(
                    f"No pool has machines with {app.gpus} {app.gpu} for app {app.name}.",
                    remedy="Add a pool to the plan.",
                    app=app.name,
                )

    def world(self, seed: int) -> World:
        """The world of a seed: made-up requests, the market and the time starts take depend on it."""
        waits_s = {(demand.gpu, demand.gpus): demand.wait_s for demand in self.file.plan.demand}
        apps = []
        for index, entry in enumerate(self.file.apps):
            rng = np.random.default_rng([seed, _TRACE_STREAM, index])
            before, trace = trace_of(
                entry.trace, self._folder, self._start_s, self._end_s - self._start_s, rng
            )
            wait_s = waits_s[entry.gpu, entry.gpus]
            demand = before.followed_by(trace).demand(
                DEMAND_STEP_S, entry.requests_at_once, self._end_s, wait_s
            )
            apps.append(App(entry, _spec(entry), self._starts[entry.name], trace, wait_s, demand))
        counts_from_s = self._start_s + self.file.warm_up_s
        if not any(len(app.trace.between(counts_from_s, self._end_s)) for app in apps):
            raise InvalidInput(
                "There is no request to simulate.", remedy="See hours, skip_s, warm_up_s and the traces."
            )
        return World(
            seed, self._start_s, counts_from_s, self._end_s, tuple(apps), self._pools, self._prices, self.file
        )

    def _pool(self, entry: PoolEntry) -> Pool:
        market = self.file.market.pools.get(str(entry.id), self.file.market.default)
        if entry.up:
            raise InvalidInput(
                f"{entry.id} has machines up: a simulation begins with none.",
                remedy="Leave up out.",
                pool=str(entry.id),
            )
        if entry.price_usd_per_h is not None and entry.gpu and entry.gpus:
            return Pool(
                entry, entry.gpu, entry.gpus, PriceTrack([self._start_s], [entry.price_usd_per_h]), market
            )
        first = self._prices.as_of(entry.id, self._start_s)
        if first is None:
            raise InvalidInput(
                f"{entry.id} has no price when the simulation begins.",
                remedy="Give it price_usd_per_h, gpu and gpus, or prices of that time.",
                pool=str(entry.id),
            )
        later = [offer for offer in self._prices.series(entry.id) if self._start_s < offer.at_s < self._end_s]
        offers = [first.offer, *later]
        prices = [
            offer.usd_per_h if entry.price_usd_per_h is None else entry.price_usd_per_h for offer in offers
        ]
        track = PriceTrack([self._start_s, *(offer.at_s for offer in later)], prices)
        return Pool(entry, entry.gpu or first.offer.gpu, entry.gpus or first.offer.gpus, track, market)


def policy_plan(file: PlanFile, level: float | None) -> PlanFile:
    """The plan with every demand covered at ``level``."""
    if level is None:
        return file
    demand = tuple(entry.model_copy(update={"level": level}) for entry in file.demand)
    return file.model_copy(update={"demand": demand})


def filled(world: World) -> World:
    """The same with replicas that are aimed to have all the requests that they take."""
    apps = []
    for app in world.apps:
        scaling = app.spec.scaling.model_copy(update={"target_concurrency": app.limit})
        apps.append(replace(app, spec=app.spec.model_copy(update={"scaling": scaling})))
    return replace(world, apps=tuple(apps))


def _spec(entry: AppEntry) -> ServerSpec:
    """The specification of a server like this one. Only scaling and resources are ever looked at."""
    gpu = None if entry.on_cpu else f"{_chip(entry.gpu)}:{entry.gpus}"
    return ServerSpec(
        name=entry.name,
        image=HostPythonImage(),
        command=[entry.name],
        resources=Resources(gpu=gpu),
        scaling=entry.scaling,
    )


def _chip(kind: str) -> str:
    """A GPU kind of price files as a specification writes it."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in kind)


def _with_records(starts: Starts, folder: Path) -> Starts:
    """Tables made of what ``glowplug coldstarts --json`` printed, where that is enough. Raises
    InvalidInput.
    """
    if starts.records is None:
        return starts
    path = folder / starts.records
    try:
        records = _RECORDS.validate_python(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError, RecursionError) as problem:
        raise InvalidInput(
            f"{path} cannot be read as cold starts: {problem}.",
            remedy="Write it with `glowplug coldstarts --json > FILE`.",
            file=str(path),
        ) from problem
    restored = [record for record in records if record.path in _SNAPSHOT_PATHS]
    fetched = [record for record in restored if _is_fetched(record)]
    local = [record for record in restored if not _is_fetched(record)]
    measured = {
        "cold": answered_seconds(records, StartPath.COLD),
        "region": sorted(s for path in _SNAPSHOT_PATHS for s in answered_seconds(fetched, path)),
        "ssd": sorted(s for path in _SNAPSHOT_PATHS for s in answered_seconds(local, path)),
        "parked": answered_seconds(records, StartPath.PARKED),
    }
    tables = {name: table_of(values) for name, values in measured.items() if len(values) >= _RECORDS_NEEDED}
    if not tables:
        raise InvalidInput(
            f"{path} has fewer than {_RECORDS_NEEDED} answered starts by any path.",
            remedy="Record more starts, or leave records out.",
            file=str(path),
        )
    return starts.model_copy(update=tables)


def _is_fetched(record: ColdStartRecord) -> bool:
    """More of it came over the network than from this machine."""
    remote = sum(count for tier, count in record.bytes_by_tier.items() if tier in ("zone", "region"))
    return 2 * remote > sum(record.bytes_by_tier.values())
