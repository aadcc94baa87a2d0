"""From what is known to a problem: where market, forecast and program meet.

:func:`situation` reads a user's file and what it refers to; :func:`compose` is the same for whoever knows
more than files do, which is the planner. Nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glowplug.pool.forecast.demand import Basis, Forecast, Forecaster, Schedule, Wishes
from glowplug.pool.forecast.series import DemandSeries, Floats, read_requests, slots_needed
from glowplug.pool.identity import PoolId
from glowplug.pool.market.history import Life, lives
from glowplug.pool.market.price_files import read_prices
from glowplug.pool.market.prices import PriceBook
from glowplug.pool.market.supply_log import SupplyLog
from glowplug.pool.market_now import Estimates, Holding, MarketNow
from glowplug.pool.plan_file import DemandEntry, PlanFile
from glowplug.pool.program.grid import Grid
from glowplug.pool.program.problem import Demand, Pool, Problem, Rare, Survival
from glowplug.types.errors import InvalidInput

_LEAD_QUANTILE = 0.9
_LEAD_BY_DEFAULT_S = 900.0


@dataclass(frozen=True)
class LeftOut:
    """A pool that takes no part, or may not grow, and why."""

    pool: str
    why: str


@dataclass(frozen=True, eq=False)
class Situation:
    """The problem, and what led to it."""

    problem: Problem
    now_s: float
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]
    forecasts: tuple[Forecast, ...]
    lead_times_s: dict[str, float]
    """By GPU kind: how far ahead its demand must be covered."""


@dataclass(frozen=True, eq=False)
class PoolsNow:
    """The pools that have a price, and what is wrong with the others."""

    pools: tuple[Pool, ...]
    left_out: tuple[LeftOut, ...]

    def lead_time_s(self, gpu: str) -> float:
        """How long until a machine of a kind is here that is asked for now: nine times in ten, where that is
        soonest; 15 minutes where no pool may grow.
        """
        candidates = []
        for pool in self.pools:
            total = sum(atom.weight for atom in pool.lead_time)
            if pool.gpu != gpu or total <= 0 or pool.quota <= pool.held:
                continue
            reached = 0.0
            for atom in sorted(pool.lead_time, key=lambda atom: atom.lead_time_s):
                reached += atom.weight / total
                if reached >= _LEAD_QUANTILE - 1e-9:
                    candidates.append(atom.lead_time_s)
                    break
        return max(min(candidates, default=_LEAD_BY_DEFAULT_S), 1.0)


ForecastOf = Callable[[int, DemandEntry, float], Forecast]
"""Of one entry of the file's ``demand`` (its place there), for a lead time in seconds."""


def grid_of(file: PlanFile) -> Grid:
    """The file's horizon. Raises InvalidInput."""
    horizon = file.horizon
    return Grid.stretching(horizon.periods, horizon.first_s, horizon.last_s, horizon.length_s)


def situation(file: PlanFile, folder: Path, clock_s: float) -> Situation:
    """Look everything up that the file refers to. Raises InvalidInput, SystemUnfit."""
    now_s = file.now_s(clock_s)
    remarks: list[str] = []
    prices = load_prices(file, folder, remarks)
    known = _read_log(folder / file.supply_log, now_s, remarks) if file.supply_log else ()
    market = MarketNow(prices, file.max_price_age_s, Estimates(known), now_s)
    awaited: dict[PoolId, tuple[float, ...]] = {}
    for life in known:
        if life.is_awaited:
            awaited[life.pool] = (*awaited.get(life.pool, ()), life.lead_time_s)
    holdings = {
        entry.id: Holding(entry.up, entry.locked_s, awaited.get(entry.id, ())) for entry in file.pools
    }
    grid = grid_of(file)

    def forecast(_place: int, entry: DemandEntry, lead_time_s: float) -> Forecast:
        history = load_demand(entry, folder, now_s)
        return Forecaster(entry.level, lead_time_s, rarer_levels(entry)).forecast(
            history, now_s, grid.starts_s, wishes_of(entry)
        )

    found = pools_now(file, market, holdings, len(grid))
    return compose(file, grid, found, forecast, now_s, file.budget_usd_per_h, tuple(remarks))


def pools_now(
    file: PlanFile, market: MarketNow, holdings: Mapping[PoolId, Holding], periods: int
) -> PoolsNow:
    """Every pool of the file. Raises InvalidInput where file and price files contradict each other."""
    pools, left_out = [], []
    for entry in file.pools:
        pool, why = market.pool(entry, holdings.get(entry.id, Holding()), periods)
        if why:
            left_out.append(LeftOut(str(entry.id), why))
        if pool is not None:
            pools.append(pool)
    return PoolsNow(tuple(pools), tuple(left_out))


def compose(
    file: PlanFile,
    grid: Grid,
    found: PoolsNow,
    forecast: ForecastOf,
    now_s: float,
    budget_usd_per_h: float | None,
    remarks: tuple[str, ...] = (),
) -> Situation:
    """The problem of these pools and this demand. Raises InvalidInput for what no plan can be made of."""
    if not found.pools:
        raise InvalidInput(
            "No pool has a price to plan with.",
            remedy="Bring the price files up to date, or give pools a price_usd_per_h.",
            pools=[f"{left.pool}: {left.why}" for left in found.left_out],
        )
    lead_times_s = {entry.gpu: found.lead_time_s(entry.gpu) for entry in file.demand}
    forecasts = tuple(
        forecast(place, entry, lead_times_s[entry.gpu]) for place, entry in enumerate(file.demand)
    )
    problem = Problem(
        grid,
        found.pools,
        tuple(_demand(entry, forecast) for entry, forecast in zip(file.demand, forecasts, strict=True)),
        {gpu: Survival(wish.share, wish.exposed_usd_per_gpu_h) for gpu, wish in file.survive.items()},
        budget_usd_per_h,
    )
    return Situation(problem, now_s, found.left_out, remarks, forecasts, lead_times_s)


def load_prices(file: PlanFile, folder: Path, remarks: list[str]) -> PriceBook:
    """All price files; what is wrong in them is added to ``remarks``. Raises InvalidInput."""
    prices = PriceBook()
    for source in file.prices:
        found = read_prices(folder / source.file, source.cloud)
        prices.add(found.offers)
        if found.refused:
            first = found.refused[0]
            remarks.append(
                f"{source.file}: {len(found.refused)} rows are no prices (line {first.line}: {first.why})"
            )
    return prices


def load_demand(entry: DemandEntry, folder: Path, now_s: float) -> DemandSeries:
    """What an entry's log of requests says until now; nothing without one. Raises InvalidInput."""
    log = entry.requests
    if log is None:
        return demand_until(entry, np.empty(0), np.empty(0), now_s)
    starts_s, durations_s = read_requests(
        folder / log.file, log.prefill_tokens_per_s, log.decode_tokens_per_s
    )
    return demand_until(entry, starts_s, durations_s, now_s)


def demand_until(entry: DemandEntry, starts_s: Floats, durations_s: Floats, now_s: float) -> DemandSeries:
    """What these requests of the entry's log needed until now. Raises InvalidInput."""
    log = entry.requests
    if log is None:
        return DemandSeries(now_s, 60.0, np.empty(0))
    known = starts_s <= now_s
    if not known.any():
        return DemandSeries(now_s, log.step_s, np.empty(0))
    series = slots_needed(
        starts_s[known], durations_s[known], log.step_s, log.requests_per_slot, now_s, entry.wait_s
    )
    return series.until(now_s)


def wishes_of(entry: DemandEntry) -> Wishes:
    """What the user says about a class of demand."""
    return Wishes(
        entry.floor,
        entry.expected_peak,
        tuple(Schedule(wish.slots, *wish.span, wish.days, wish.timezone) for wish in entry.schedules),
    )


def basis_words(forecast: Forecast) -> str:
    """What a forecast rests on, for people."""
    if forecast.basis is Basis.NEW:
        return "no history: expected peak, floor or twice the highest"
    if forecast.coverage is None:
        return f"history, {forecast.level:.0%}"
    return f"history, {forecast.level:.0%}; held in {forecast.coverage:.1%} of {forecast.tried} trials"


def _read_log(path: Path, now_s: float, remarks: list[str]) -> tuple[Life, ...]:
    if not path.exists():
        raise InvalidInput(
            f"There is no supply log {path}.",
            remedy="Correct supply_log, or leave it out.",
            file=str(path),
        )
    log = SupplyLog(path)
    history = lives(log.read(), now_s)
    if log.torn_lines or history.contradictions:
        remarks.append(
            f"{path.name}: {log.torn_lines} lines are no records, {history.contradictions} contradict others"
        )
    return history.lives


def _demand(entry: DemandEntry, forecast: Forecast) -> Demand:
    rare, below, slots = [], forecast.level, forecast.slots
    for level, higher in forecast.rarer:
        rare.append(Rare(higher - slots, 1.0 - (below + level) / 2))
        below, slots = level, higher
    return Demand(
        entry.gpu, entry.gpus, forecast.slots, entry.tolerated, entry.tolerated_miss_usd_per_h,
        entry.miss_usd_per_h, tuple(rare),
    )  # fmt: skip


def rarer_levels(entry: DemandEntry) -> tuple[float, ...]:
    """Between the level that is covered and the one up to which it may pay: every one halves what is left."""
    levels, level = [], entry.level
    while entry.up_to_level is not None and level < entry.up_to_level:
        level = min((1.0 + level) / 2, entry.up_to_level)
        levels.append(level)
    return tuple(levels)
