"""The numbers that docs/pools.md works out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from tests.pool.program.check import violations

from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.linear import LinearSolver
from glowplug.pool.program.plan import solve
from glowplug.pool.program.problem import Rare

from .problems import solvers, with_demand, worked_example

pytestmark = pytest.mark.parametrize("solver", solvers(), ids=lambda solver: solver.name)


def test_two_machines_are_asked_for_before_they_are_needed(solver: LinearSolver) -> None:
    plan = solve(assemble(worked_example()), solver)
    assert plan.ask.tolist() == pytest.approx([0, 2])
    assert plan.values("up").tolist() == [pytest.approx([1, 1]), pytest.approx([0, 2])]
    assert plan.solution.objective == pytest.approx(4.20)
    assert plan.costs.rent_usd == pytest.approx(4.0)
    assert plan.costs.churn_usd == pytest.approx(0.2)
    assert plan.costs.total_usd == pytest.approx(plan.solution.objective)
    assert violations(plan) == []


def test_scarcity_is_what_one_more_slot_would_cost(solver: LinearSolver) -> None:
    plan = solve(assemble(worked_example()), solver)
    assert plan.scarcity_usd_per_gpu_h[0, 1] == pytest.approx(2.10)
    assert 0 <= plan.scarcity_usd_per_gpu_h[0, 0] <= 10
    more = solve(assemble(with_demand(worked_example(), 0, 1, 1.0)), solver)
    assert more.solution.objective - plan.solution.objective == pytest.approx(2.10)


def test_one_more_own_machine_saves_what_the_cloud_costs(solver: LinearSolver) -> None:
    own, _ = solve(assemble(worked_example()), solver).machine_usd
    assert 2.10 - 1e-6 <= own <= 12.10 + 1e-6


def test_a_budget_makes_gpus_scarce(solver: LinearSolver) -> None:
    plan = solve(assemble(worked_example(budget_usd_per_h=3.0)), solver)
    assert plan.values("up")[1].tolist() == pytest.approx([0, 1.5])
    assert plan.missing[0].tolist() == pytest.approx([0, 0.5])
    assert plan.solution.objective == pytest.approx(8.15)
    assert plan.scarcity_usd_per_gpu_h[0, 1] == pytest.approx(10.0)
    assert -plan.duals("budget")[0, 1] == pytest.approx(3.95)
    assert violations(plan) == []


def test_rare_slots_are_covered_where_a_machine_costs_less_than_their_chance(solver: LinearSolver) -> None:
    """A machine for the second hour costs 2.10 USD, missing a slot of it 10 USD if it is needed."""
    problem = worked_example()
    rare = (Rare(np.array([0.0, 2.0]), 0.3), Rare(np.array([0.0, 4.0]), 0.2))
    demand = replace(problem.demands[0], rare=rare)
    plan = solve(assemble(replace(problem, demands=(demand,))), solver)
    assert plan.ask.tolist() == pytest.approx([0, 2 + 2])
    assert plan.missing[0].tolist() == pytest.approx([0, 4])
    assert plan.solution.objective == pytest.approx(4 * 2.10 + 4 * 2.0)
    assert violations(plan) == []
