"""Problems for tests: small ones to read, random ones to be sure, large ones to count on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.grid import Grid
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.linear import LinearSolver
from glowplug.pool.program.problem import Atom, Demand, Pending, Pool, Problem, Rare, Survival

SOLVERS: tuple[type[GlopSolver] | type[HighsSolver], ...] = (GlopSolver, HighsSolver)


def pool_id(name: str, purchase: Purchase = Purchase.ON_DEMAND, region: str = "here") -> PoolId:
    return PoolId("cloud", region, name, purchase)


def worked_example(budget_usd_per_h: float | None = None) -> Problem:
    """The one that docs/pools.md solves by hand."""
    grid = Grid.of([3600.0, 3600.0])
    own = Pool(pool_id("own", Purchase.OWN), "H100", 1, np.zeros(2), up=1, quota=1)
    cloud = Pool(
        pool_id("cloud"), "H100", 1, np.full(2, 2.0), lead_time=(Atom(3600.0, 1.0),), quota=10,
        request_usd=0.10,
    )  # fmt: skip
    demand = Demand("H100", 1, np.array([1.0, 3.0]), tolerated_miss_usd_per_h=10.0, miss_usd_per_h=10.0)
    return Problem(grid, (own, cloud), (demand,), budget_usd_per_h=budget_usd_per_h)


def with_price(problem: Problem, index: int, factor: float) -> Problem:
    pools = list(problem.pools)
    pools[index] = replace(pools[index], price_usd_per_h=pools[index].price_usd_per_h * factor)
    return replace(problem, pools=tuple(pools))


def with_demand(problem: Problem, index: int, period: int, more: float) -> Problem:
    demands = list(problem.demands)
    slots = demands[index].slots.copy()
    slots[period] += more
    demands[index] = replace(demands[index], slots=slots)
    return replace(problem, demands=tuple(demands))


def fleet(pools: int, gpus: int, seed: int = 0, periods: int = 24) -> Problem:
    """Pools of machines of 1 to 8 GPUs, minutes away, for a demand that swings around ``gpus`` GPUs."""
    rng = np.random.default_rng(seed)
    grid = Grid.stretching(periods, 10, 900, periods * 225)
    swing = 1 + 0.3 * np.sin(np.linspace(0, 4, periods) + rng.uniform(0, 6))
    made = []
    for index in range(pools):
        size = (1, 2, 4, 8)[index % 4]
        is_spot = index % 3 == 0
        median_s = rng.uniform(300, 900)
        made.append(
            Pool(
                pool_id(f"m{index}", Purchase.SPOT if is_spot else Purchase.ON_DEMAND, f"r{index % 3}"),
                "H100", size,
                np.full(periods, size * rng.uniform(2.0, 4.0) * (0.5 if is_spot else 1.0)),
                lead_time=tuple(Atom(median_s * at, 0.24) for at in (0.6, 0.9, 1.1, 1.6)),
                interruptions_per_h=0.05 if is_spot else 0.001,
                up=int(rng.integers(0, 2)), quota=max(2, gpus // size), supply=max(1, gpus // size // 2),
                supply_per_h=2.0, min_rental_s=60.0, request_usd=0.05 * size, release_usd=0.01,
                interruption_usd=0.2,
            )
        )  # fmt: skip
    singles, eights = np.ceil(0.5 * gpus * swing), np.ceil(0.5 * gpus * swing / 8)
    demands = (
        Demand("H100", 1, singles, 0.05, 10.0, 40.0), Demand("H100", 8, eights, 0.0, 80.0, 320.0)
    )  # fmt: skip
    return Problem(grid, tuple(made), demands)


def solvers() -> list[LinearSolver]:
    return [solver() for solver in SOLVERS]


@st.composite
def problems(draw: st.DrawFn, has_budget: bool = True) -> Problem:
    """Any problem that the checks of Problem let through, small enough to solve in milliseconds."""
    periods = draw(st.integers(1, 7))
    grid = Grid.of(
        draw(st.lists(st.sampled_from([10.0, 60.0, 600.0, 900.0]), min_size=periods, max_size=periods))
    )
    kinds = draw(st.sampled_from([("H100",), ("H100", "L4")]))
    amount = st.floats(0, 50, allow_nan=False).map(lambda value: round(value, 3))
    pools = []
    for index in range(draw(st.integers(1, 5))):
        up, outstanding = draw(st.integers(0, 4)), draw(st.integers(0, 3))
        chance = draw(st.floats(0, 1).map(lambda value: round(value, 2)))
        leads = draw(st.lists(st.floats(0, 2000).map(round), min_size=1, max_size=3))
        pools.append(
            Pool(
                pool_id(f"m{index}", Purchase.SPOT, draw(st.sampled_from(["a", "b"]))),
                draw(st.sampled_from(kinds)), draw(st.sampled_from([1, 2, 3, 4, 6, 8])),
                np.array(draw(st.lists(amount, min_size=periods, max_size=periods))),
                lead_time=tuple(Atom(float(lead_s), chance / len(leads)) for lead_s in leads),
                interruptions_per_h=draw(st.sampled_from([0.0, 0.01, 0.5, 3.0])),
                up=up,
                locked_s=tuple(draw(st.lists(st.sampled_from([5.0, 60.0, 5000.0]), max_size=up))),
                pending=(Pending(draw(st.sampled_from([0.0, 45.0, 700.0])), outstanding * chance),),
                outstanding=outstanding,
                quota=draw(st.integers(0, 8)), supply=draw(st.integers(0, 6)),
                supply_per_h=draw(st.sampled_from([0.0, 1.0, 30.0])),
                min_rental_s=draw(st.sampled_from([0.0, 60.0, 3600.0])),
                request_usd=draw(amount), release_usd=draw(amount), interruption_usd=draw(amount),
            )
        )  # fmt: skip
    demands = []
    for kind in kinds:
        for size in draw(st.sampled_from([(1,), (1, 2, 8), (4,), (2, 4)])):
            first, second = sorted((draw(amount), draw(amount)))
            slots = np.array(draw(st.lists(amount, min_size=periods, max_size=periods)))
            rare = tuple(
                Rare(np.array(draw(st.lists(amount, min_size=periods, max_size=periods))), chance)
                for chance in draw(st.sampled_from([(), (0.1,), (0.5, 0.01)]))
            )
            tolerated = draw(st.sampled_from([0.0, 0.1, 1.0]))
            demands.append(Demand(kind, size, slots, tolerated, first, second, rare))
    survival = draw(st.sampled_from([{}, {"H100": Survival(0.5, 3.0)}]))
    budget = draw(st.one_of(st.none(), st.floats(0, 100))) if has_budget else None
    return Problem(grid, tuple(pools), tuple(demands), survival, budget)
