"""Plans in whole machines: whole, within every bound, near the best, and asked for now when needed now."""

from dataclasses import replace

import numpy as np
import pytest
from tests.pool.program.check import violations

from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.grid import Grid
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.integers import decision_periods, solve_whole
from glowplug.pool.program.plan import solve
from glowplug.pool.program.problem import Atom, Demand, Pool, Problem
from glowplug.types.errors import DeadlineExceeded

from .problems import fleet, pool_id, worked_example


@pytest.mark.parametrize(("gpus", "pools"), [(12, 12), (60, 24), (240, 48)])
def test_the_plan_is_within_one_percent_of_the_best(gpus: int, pools: int) -> None:
    assembled = assemble(fleet(pools, gpus))
    whole = solve_whole(assembled, timeout_s=200, gap=0.008)
    assert whole.gap <= 0.01
    assert violations(whole.plan) == []
    moments = decision_periods(assembled.layout.problem.grid)
    asked = whole.plan.values("req")
    assert np.allclose(asked, np.rint(asked), atol=1e-6)
    assert asked[:, np.setdiff1d(np.arange(asked.shape[1]), moments)].sum() == pytest.approx(0, abs=1e-6)
    relaxed = solve(assembled, HighsSolver())
    assert relaxed.solution.objective <= whole.plan.solution.objective + 1e-6


def test_the_worked_example_with_a_budget_buys_one_machine() -> None:
    whole = solve_whole(assemble(worked_example(budget_usd_per_h=3.0)))
    assert whole.plan.ask.tolist() == pytest.approx([0, 1])
    assert whole.plan.solution.objective == pytest.approx(12.10)


def lonely(slots: float, gpus: int = 8) -> Problem:
    """One pool of large machines that take seven minutes, none up, and something to serve now."""
    grid = Grid.stretching()
    pool = Pool(
        pool_id("large"), "H100", gpus, np.full(len(grid), 20.0), lead_time=(Atom(420.0, 1.0),), quota=4,
        request_usd=0.5,
    )  # fmt: skip
    return Problem(grid, (pool,), (Demand("H100", 1, np.full(len(grid), slots)),))


@pytest.mark.parametrize("slots", [3.0, 8.0])
def test_what_is_needed_now_is_asked_for_now_and_not_in_ten_seconds(slots: float) -> None:
    """A third of a machine later, or the whole of it at the end of a coarse period, must not look as good."""
    whole = solve_whole(assemble(lonely(slots)))
    assert whole.plan.ask.tolist() == pytest.approx([1])
    assert solve(assemble(lonely(slots)), HighsSolver()).ask[0] == pytest.approx(slots / 8)


def test_no_time_is_an_error_and_no_plan() -> None:
    problem = fleet(24, 60, periods=96)
    with pytest.raises(DeadlineExceeded) as caught:
        solve_whole(assemble(problem), timeout_s=0.0)
    assert caught.value.details["stage"] == "solve"


def test_a_quota_that_fell_below_what_is_up_buys_nothing_and_breaks_nothing() -> None:
    problem = lonely(30.0)
    pool = replace(problem.pools[0], up=3, quota=0, locked_s=(300.0,))
    whole = solve_whole(assemble(replace(problem, pools=(pool,))))
    assert whole.plan.values("req").sum() == pytest.approx(0, abs=1e-6)
    assert violations(whole.plan) == []


def test_no_machine_is_asked_for_to_be_given_back_at_once() -> None:
    """HiGHS' presolve lost the best plan of this problem, and called another, 1.3 % dearer, the best."""
    grid = Grid.stretching(8, 15, 600, 1_800)
    pool = Pool(
        pool_id("far"), "L4", 1, np.full(8, 2.0), lead_time=(Atom(900.0, 1.0),), quota=20, supply=20,
        request_usd=0.05,
    )  # fmt: skip
    assembled = assemble(Problem(grid, (pool,), (Demand("L4", 1, np.full(8, 2.0)),), budget_usd_per_h=100.0))
    found = solve_whole(assembled)
    assert found.plan.ask.tolist() == [2.0]
    assert found.plan.values("rel").sum() == 0
    assert found.plan.solution.objective == pytest.approx(solve(assembled, HighsSolver()).solution.objective)
