"""What holds for every problem, tried on random ones: feasible, both solvers agree, dearer is never more,
duals are derivatives.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.pool.program.check import violations

from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.explain import explain
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.plan import Plan, solve
from glowplug.pool.program.problem import Problem

from .problems import fleet, problems, with_demand, with_price

GLOP, HIGHS = GlopSolver(), HighsSolver()
quickly = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def planned(problem: Problem) -> Plan:
    return solve(assemble(problem), HIGHS)


def hours_up(plan: Plan, index: int) -> float:
    return float((plan.values("up")[index] * plan.problem.grid.hours).sum())


@quickly
@given(problems())
def test_every_problem_has_a_plan_that_breaks_no_promise(problem: Problem) -> None:
    plan = planned(problem)
    assert violations(plan) == []
    assert plan.costs.total_usd == pytest.approx(plan.solution.objective, abs=1e-6)
    explain(plan)


@quickly
@given(problems())
def test_both_solvers_find_the_same_optimum(problem: Problem) -> None:
    glop = solve(assemble(problem), GLOP)
    assert glop.solution.objective == pytest.approx(planned(problem).solution.objective, rel=1e-6, abs=1e-6)
    assert violations(glop) == []


@quickly
@given(problems())
def test_the_slots_that_cover_rows_promise_fit_on_the_machines(problem: Problem) -> None:
    plan = planned(problem)
    held = plan.slots()
    for index, demand in enumerate(problem.demands):
        wanted = demand.most_slots[0] - plan.missing[index, 0]
        assert held[index].sum() == pytest.approx(wanted, abs=1e-5)
    sizes = np.array([demand.gpus for demand in problem.demands])
    gpus = np.array([pool.gpus for pool in problem.pools])
    assert (sizes @ held <= gpus * plan.values("up")[:, 0] + 1e-5).all()


@quickly
@given(problems(has_budget=False), st.integers(0, 4), st.floats(1.0, 5.0))
def test_a_dearer_pool_is_never_used_more(problem: Problem, which: int, factor: float) -> None:
    index = which % len(problem.pools)
    before, after = planned(problem), planned(with_price(problem, index, factor))
    if problem.pools[index].price_usd_per_h.sum() == 0:
        return
    # The theorem is about money: each plan is the best at its own prices.
    cheap, dear = (plan.problem.pools[index].price_usd_per_h for plan in (before, after))
    more_usd = (dear - cheap) * problem.grid.hours
    assert more_usd @ after.values("up")[index] <= more_usd @ before.values("up")[index] + 1e-5


def test_duals_of_demand_are_what_more_and_less_demand_costs() -> None:
    problem = fleet(8, 24)
    plan = planned(problem)
    step = 1e-4
    for index in range(len(problem.demands)):
        for period in (0, 8, 16, 23):
            worth_usd = plan.slot_usd_per_h[index, period] * problem.grid.hours[period]
            more = planned(with_demand(problem, index, period, step)).solution.objective
            less = planned(with_demand(problem, index, period, -step)).solution.objective
            # Where a class tolerates misses, its demand moves that share's bound, too; the first has 5 %.
            slack_usd = 0.05 * 30.0 * problem.grid.hours[period] + 1e-3 if index == 0 else 1e-3
            assert (plan.solution.objective - less) / step <= worth_usd + slack_usd
            assert (more - plan.solution.objective) / step >= worth_usd - slack_usd


def test_the_worth_of_a_machine_is_what_one_more_of_it_saves() -> None:
    from dataclasses import replace

    problem = fleet(8, 24, seed=3)
    plan = planned(problem)
    for index, pool in enumerate(problem.pools):
        pools = list(problem.pools)
        pools[index] = replace(pool, up=pool.up + 1, quota=pool.quota + 1)
        saved = plan.solution.objective - planned(replace(problem, pools=tuple(pools))).solution.objective
        # A whole machine is no derivative: the first thousandth saves at least as much as the rest.
        assert saved <= plan.machine_usd[index] + 1e-6


def test_a_dearer_pool_is_used_less_in_a_fleet() -> None:
    problem = fleet(8, 24)
    used = [hours_up(planned(with_price(problem, 3, factor)), 3) for factor in (0.2, 1.0, 5.0)]
    assert used[0] > used[1] >= used[2]
