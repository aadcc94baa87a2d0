"""Is a plan one that could be? Checked without a matrix, from the words of ``docs/pools.md``, one
machine-hour at a time.

Written apart from the assembly on purpose: what both agree on is not one mistake made once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from glowplug.pool.program.plan import Plan
from glowplug.pool.program.problem import Demand, Pool, Problem

TOLERANCE = 1e-5


def violations(plan: Plan, tolerance: float = TOLERANCE) -> list[str]:
    """Every promise that the plan breaks by more than ``tolerance`` (of a machine, slot, GPU or USD), in
    words.
    """
    found = [*_negatives(plan), *_inventories(plan), *_covers(plan), *_survivals(plan), *_budgets(plan)]
    return [words for excess, words in found if excess > tolerance]


def _negatives(plan: Plan) -> Iterator[tuple[float, str]]:
    for name in ("up", "req", "rel", "miss1", "miss2", "rare"):
        for index, row in enumerate(plan.values(name)):
            for period, value in enumerate(row):
                yield -float(value), f"{name} of {index} is {value} in period {period}"


def _inventories(plan: Plan) -> Iterator[tuple[float, str]]:
    problem = plan.problem
    starts_s = [float(start) for start in problem.grid.starts_s]
    for index, pool in enumerate(problem.pools):
        ups, asked, given = (plan.values(name)[index].tolist() for name in ("up", "req", "rel"))
        came = _arrivals(pool, asked, problem)
        kept = _kept(pool, problem)
        here = float(pool.up)
        for period, start_s in enumerate(starts_s):
            if period:
                here *= _surviving(pool, starts_s[period - 1], start_s)
            young = _locked(pool, starts_s, came, period)
            may_go = here - young if _is_young_possible(pool, starts_s, period) else here + came[period]
            yield given[period] - may_go, f"{pool.id} gives back what is locked in period {period}"
            here += came[period] - given[period]
            yield abs(here - ups[period]), f"{pool.id} has {here}, not {ups[period]}, up in period {period}"
            allowed = min(
                pool.quota, pool.held + math.floor(pool.supply + pool.supply_per_h * start_s / 3600)
            )
            yield ups[period] - max(allowed, kept[period]), f"{pool.id} is above its bound in period {period}"
            room = 0 if _is_in_vain(pool, starts_s, period) else max(allowed - pool.held, 0)
            yield asked[period] - room, f"{pool.id} asks for more than there is in period {period}"


def _arrive(came: list[float], starts_s: list[float], at_s: float, machines: float) -> None:
    """Count machines that come ``at_s`` in the first period that starts no sooner."""
    period = _first_from(starts_s, at_s)
    if period is not None:
        came[period] += machines


def _is_in_vain(pool: Pool, starts_s: list[float], period: int) -> bool:
    """Whether all of it would come in the same periods as if it had been asked for a period before."""
    return period > 0 and all(
        _first_from(starts_s, starts_s[period] + atom.lead_time_s)
        == _first_from(starts_s, starts_s[period - 1] + atom.lead_time_s)
        for atom in pool.lead_time
    )


def _first_from(starts_s: list[float], at_s: float) -> int | None:
    return next((period for period, start_s in enumerate(starts_s) if start_s >= at_s - 1e-3), None)


def _surviving(pool: Pool, since_s: float, until_s: float) -> float:
    return math.exp(-pool.interruptions_per_h * (until_s - since_s) / 3600)


def _arrivals(pool: Pool, asked: list[float], problem: Problem) -> list[float]:
    starts_s = problem.grid.starts_s.tolist()
    came = [0.0] * len(starts_s)
    for pending in pool.pending:
        _arrive(came, starts_s, pending.in_s, pending.machines)
    for requested, machines in enumerate(asked):
        for atom in pool.lead_time:
            _arrive(came, starts_s, starts_s[requested] + atom.lead_time_s, machines * atom.weight)
    return came


def _kept(pool: Pool, problem: Problem) -> list[float]:
    starts_s = problem.grid.starts_s.tolist()
    came = _arrivals(pool, [], problem)
    kept, here = [], float(pool.up)
    for period, start_s in enumerate(starts_s):
        here = here * _surviving(pool, starts_s[max(period - 1, 0)], start_s) + came[period]
        kept.append(here)
    return kept


def _locked(pool: Pool, starts_s: list[float], came: list[float], period: int) -> float:
    start_s = starts_s[period]
    locked = sum(until_s > start_s for until_s in pool.locked_s) * _surviving(pool, 0.0, start_s)
    for earlier in range(period):
        if starts_s[earlier] + pool.min_rental_s > start_s + 1e-3:
            locked += came[earlier] * _surviving(pool, starts_s[earlier], start_s)
    return locked


def _is_young_possible(pool: Pool, starts_s: list[float], period: int) -> bool:
    """Whether minimum rental has a row: in period 0, while machines are locked, after a shorter period."""
    start_s = starts_s[period]
    is_locked = any(until_s > start_s for until_s in pool.locked_s)
    return period == 0 or is_locked or starts_s[period - 1] + pool.min_rental_s > start_s + 1e-3


def _blocks(problem: Problem, gpu: str, size: int, ups: list[float]) -> dict[str, float]:
    """GPUs up in blocks of ``size``, by failure domain."""
    gpus: dict[str, float] = {}
    for pool, up in zip(problem.pools, ups, strict=True):
        if pool.gpu == gpu:
            gpus[pool.failure_domain] = gpus.get(pool.failure_domain, 0.0) + pool.gpus // size * size * up
    return gpus


def _covers(plan: Plan) -> Iterator[tuple[float, str]]:
    problem, ups, missing = plan.problem, plan.values("up"), plan.missing
    for period in range(len(problem.grid)):
        for demand in problem.demands:
            needed = sum(
                other.gpus * (_wanted(other, period) - float(missing[index, period]))
                for index, other in enumerate(problem.demands)
                if other.gpu == demand.gpu and other.gpus >= demand.gpus
            )
            there = sum(_blocks(problem, demand.gpu, demand.gpus, ups[:, period].tolist()).values())
            yield needed - there, f"{demand.gpu} x{demand.gpus}: {there} of {needed} GPUs in period {period}"


def _wanted(demand: Demand, period: int) -> float:
    return float(demand.slots[period]) + sum(float(rare.slots[period]) for rare in demand.rare)


def _survivals(plan: Plan) -> Iterator[tuple[float, str]]:
    problem, ups, exposed = plan.problem, plan.values("up"), plan.values("exposed")
    for number, index in enumerate(plan.assembled.layout.protected):
        demand = problem.demands[index]
        for period in range(len(problem.grid)):
            needed = problem.survival[demand.gpu].share * sum(
                other.gpus * _wanted(other, period)
                for other in problem.demands
                if other.gpu == demand.gpu and other.gpus >= demand.gpus
            )
            gpus = _blocks(problem, demand.gpu, demand.gpus, ups[:, period].tolist()).values()
            left = sum(gpus) - max(gpus, default=0.0) + float(exposed[number, period])
            yield needed - left, f"{demand.gpu} x{demand.gpus} does not survive a domain in period {period}"


def _budgets(plan: Plan) -> Iterator[tuple[float, str]]:
    problem, ups = plan.problem, plan.values("up")
    if problem.budget_usd_per_h is None:
        return
    kept = [_kept(pool, problem) for pool in problem.pools]
    for period in range(len(problem.grid)):
        prices = [float(pool.price_usd_per_h[period]) for pool in problem.pools]
        spent = sum(price * float(up) for price, up in zip(prices, ups[:, period], strict=True))
        inherited = sum(price * machines[period] for price, machines in zip(prices, kept, strict=True))
        yield spent - max(problem.budget_usd_per_h, inherited), f"{spent} USD/h in period {period}"
