"""A plan as people and programs read it: what to do now, what it costs, what limits it, what things are
worth.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from glowplug.pool.planning import Situation, basis_words
from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.explain import Explanation, explain
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.integers import solve_whole
from glowplug.pool.program.linear import LinearSolver
from glowplug.pool.program.plan import Plan, solve

REPORT_VERSION = 1
SOLVERS: dict[str, type[GlopSolver] | type[HighsSolver]] = {"glop": GlopSolver, "highs": HighsSolver}


class PoolLine(BaseModel):
    """One pool now. Machines; whole ones unless fractions were asked for."""

    pool: str
    gpu: str
    gpus: int
    price_usd_per_h: float
    up: int
    under_way: int
    ask: float
    give_back: float
    peak_up: float
    one_more_gpu_usd: float
    """What one more GPU of it, here now, would save over the horizon."""
    limits: list[str]


class DemandLine(BaseModel):
    """One class of demand. Slots; the scarcity price is of a GPU in blocks of its size, USD per GPU-hour."""

    gpu: str
    gpus: int
    needed: float
    held: float
    missing: float
    peak_needed: float
    lead_time_s: float
    basis: str
    coverage: float | None
    scarcity_usd_per_gpu_h: float
    slot_usd_per_h: float
    peak_slot_usd_per_h: float
    peak_in_s: float


class CostLine(BaseModel):
    """The objective over the horizon, USD."""

    rent_usd: float
    interruption_usd: float
    churn_usd: float
    miss_usd: float
    exposed_usd: float
    over_budget_usd: float
    total_usd: float


class PlanReport(BaseModel):
    """All of it. ``gap``: how much dearer the plan is than the best in whole machines, at most; None for
    fractions.
    """

    version: Literal[1] = 1
    planned_for_s: float
    periods: int
    horizon_s: float
    solver: str
    gap: float | None
    costs: CostLine
    relaxed_total_usd: float
    pools: list[PoolLine]
    demand: list[DemandLine]
    one_more_budget_usd_per_h: float
    exposed_gpus: float
    left_out: dict[str, str]
    remarks: list[str]


def plan_report(
    now: Situation, solver: str = "glop", wants_fractions: bool = False, timeout_s: float = 10.0
) -> PlanReport:
    """Solve the situation and report. Raises DeadlineExceeded, Unavailable."""
    assembled = assemble(now.problem)
    linear: LinearSolver = SOLVERS[solver]()
    relaxed = solve(assembled, linear, timeout_s)
    if wants_fractions:
        return report_of(now, relaxed, relaxed, None)
    whole = solve_whole(assembled, timeout_s)
    return report_of(now, whole.plan, relaxed, whole.gap)


def report_of(now: Situation, plan: Plan, relaxed: Plan, gap: float | None) -> PlanReport:
    """The report of a situation that is solved; ``relaxed`` has the prices."""
    worth = explain(relaxed)
    grid = now.problem.grid
    costs = plan.costs
    return PlanReport(
        planned_for_s=now.now_s,
        periods=len(grid),
        horizon_s=float(grid.lengths_s.sum()),
        solver=plan.solver if plan is relaxed else f"{plan.solver}, {relaxed.solver}",
        gap=gap,
        costs=CostLine(**vars(costs), total_usd=costs.total_usd),
        relaxed_total_usd=relaxed.solution.objective,
        pools=_pool_lines(plan, worth),
        demand=_demand_lines(now, plan, worth),
        one_more_budget_usd_per_h=worth.one_more_budget_usd_per_h,
        exposed_gpus=worth.exposed_gpus,
        left_out={left.pool: left.why for left in now.left_out},
        remarks=list(now.remarks),
    )


def _pool_lines(plan: Plan, worth: Explanation) -> list[PoolLine]:
    ask, give_back, up = plan.ask, plan.give_back, plan.values("up")
    return [
        PoolLine(
            pool=str(pool.id), gpu=pool.gpu, gpus=pool.gpus, price_usd_per_h=float(pool.price_usd_per_h[0]),
            up=pool.up, under_way=pool.outstanding,
            ask=_count(ask[index]), give_back=_count(give_back[index]),
            peak_up=_count(up[index].max()), one_more_gpu_usd=worth.pools[index].one_more_gpu_usd,
            limits=list(worth.pools[index].limits),
        )
        for index, pool in enumerate(plan.problem.pools)
    ]  # fmt: skip


def _count(value: float) -> float:
    """Machines or slots without the solver's tolerance: neither -0 nor 1.9999999."""
    return round(max(0.0, float(value)), 5)


def _demand_lines(now: Situation, plan: Plan, worth: Explanation) -> list[DemandLine]:
    held = plan.slots().sum(axis=1)
    return [
        DemandLine(
            gpu=demand.gpu, gpus=demand.gpus, needed=float(demand.most_slots[0]), held=_count(held[index]),
            missing=_count(plan.missing[index, 0]), peak_needed=float(demand.most_slots.max()),
            lead_time_s=now.lead_times_s[demand.gpu], basis=basis_words(now.forecasts[index]),
            coverage=now.forecasts[index].coverage,
            scarcity_usd_per_gpu_h=worth.kinds[index].gpu_usd_per_h,
            slot_usd_per_h=worth.kinds[index].slot_usd_per_h,
            peak_slot_usd_per_h=worth.kinds[index].peak_slot_usd_per_h,
            peak_in_s=worth.kinds[index].peak_in_s,
        )
        for index, demand in enumerate(plan.problem.demands)
    ]  # fmt: skip
