"""What has nothing to do with each other is planned apart, and comes to the same plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.pool.program.check import violations

from glowplug.pool.program import integers
from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.highs import pass_to_highs, quiet_highs, run_highs
from glowplug.pool.program.integers import restrict, solve_whole
from glowplug.pool.program.parts import Part, independent_parts
from glowplug.pool.program.problem import Problem
from glowplug.types.errors import DeadlineExceeded

from .problems import fleet, pool_id

GAP = 1e-6
CENTS_USD = 0.03
"""A cent for each part is near enough."""


def two_kinds(budget_usd_per_h: float | None = None) -> Problem:
    """Two fleets of different kinds that know nothing of each other."""
    first, second = fleet(4, 10, periods=12), fleet(4, 6, seed=1, periods=12)
    pools = tuple(
        replace(pool, id=pool_id(f"other{place}"), gpu="L4") for place, pool in enumerate(second.pools)
    )
    demands = tuple(replace(demand, gpu="L4") for demand in second.demands)
    return replace(
        first, pools=first.pools + pools, demands=first.demands + demands, budget_usd_per_h=budget_usd_per_h
    )


def best_usd(problem: Problem) -> float:
    """Of one branch and bound over everything."""
    program, whole = restrict(assemble(problem))
    highs = quiet_highs()
    pass_to_highs(highs, program, whole)
    highs.setOptionValue("mip_rel_gap", GAP)
    run_highs(highs, 100.0)
    return float(highs.getInfo().objective_function_value)


def test_kinds_are_parts_and_a_budget_makes_them_one() -> None:
    def parts(problem: Problem) -> int:
        program, whole = restrict(assemble(problem))
        found = independent_parts(program, whole)
        columns = np.concatenate([part.columns[part.whole] for part in found])
        assert len(set(columns.tolist())) == len(columns)
        left_out = np.setdiff1d(whole, columns)
        assert program.matrix[:, left_out].nnz == 0
        assert (program.cost[left_out] >= 0).all()
        return len(found)

    assert parts(two_kinds()) == 2
    assert parts(two_kinds(budget_usd_per_h=50.0)) == 1


@pytest.mark.parametrize("budget_usd_per_h", [None, 1e6])
def test_parts_come_to_the_plan_of_the_whole(budget_usd_per_h: float | None) -> None:
    problem = two_kinds(budget_usd_per_h)
    found = solve_whole(assemble(problem), 100.0, GAP)
    assert found.plan.solution.objective == pytest.approx(best_usd(problem), abs=CENTS_USD)
    assert found.bound_usd <= found.plan.solution.objective + 1e-6
    assert violations(found.plan) == []


def test_a_budget_that_binds_is_kept_by_all_of_them_together() -> None:
    free = solve_whole(assemble(two_kinds()), 100.0, GAP).plan
    prices = np.array([pool.price_usd_per_h for pool in free.problem.pools])
    spent = (prices * free.values("up")).sum(axis=0)
    problem = two_kinds(budget_usd_per_h=0.7 * float(spent.max()))
    found = solve_whole(assemble(problem), 100.0, GAP)
    assert violations(found.plan) == []
    assert found.plan.solution.objective == pytest.approx(best_usd(problem), abs=CENTS_USD)
    assert found.plan.solution.objective > free.solution.objective


def test_a_try_without_the_budget_that_finds_nothing_leaves_half_of_the_time_for_one_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = two_kinds(budget_usd_per_h=1e6)
    solve, given_s = integers._branch_and_bound, []

    def slow_at_first(part: Part, timeout_s: float, gap: float) -> Any:
        given_s.append(timeout_s)
        if len(given_s) == 1:
            raise DeadlineExceeded("HiGHS had no plan.", remedy="Wait.", stage="solve")
        return solve(part, timeout_s, gap)

    monkeypatch.setattr(integers, "_branch_and_bound", slow_at_first)
    found = solve_whole(assemble(problem), 100.0, GAP)
    assert given_s[1:] == [50.0]
    assert violations(found.plan) == []
    assert found.plan.solution.objective == pytest.approx(best_usd(problem), abs=CENTS_USD)
