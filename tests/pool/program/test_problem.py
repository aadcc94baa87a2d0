"""Nothing absurd gets into a program; and the checker sees what is wrong with a plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.pool.program.check import violations

from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.explain import explain
from glowplug.pool.program.grid import Grid
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.plan import Plan, solve
from glowplug.pool.program.problem import Atom, Demand, Pending, Problem, Rare, Survival
from glowplug.types.errors import InvalidInput

from .problems import fleet, with_demand, worked_example

BAD_POOLS: list[dict[str, Any]] = [
    {"price_usd_per_h": np.array([np.nan, 1.0])},
    {"price_usd_per_h": np.array([-1.0, 1.0])},
    {"price_usd_per_h": np.array([1e6, 1.0])},
    {"price_usd_per_h": np.array([1.0])},
    {"gpus": 0},
    {"up": -1},
    {"quota": -1},
    {"lead_time": (Atom(60.0, 0.8), Atom(90.0, 0.3))},
    {"lead_time": (Atom(float("nan"), 0.5),)},
    {"locked_s": (10.0, 10.0)},
    {"pending": (Pending(10.0, 2.0),), "outstanding": 1},
    {"min_rental_s": -1.0},
    {"request_usd": float("inf")},
    {"interruptions_per_h": -0.1},
]


@pytest.mark.parametrize("changes", BAD_POOLS, ids=lambda changes: "-".join(changes))
def test_a_pool_that_cannot_be_is_refused_by_name(changes: dict[str, Any]) -> None:
    problem = worked_example()
    with pytest.raises(InvalidInput, match="own"):
        replace(problem, pools=(replace(problem.pools[0], **changes), problem.pools[1]))


@pytest.mark.parametrize(
    "demand",
    [
        Demand("H100", 1, np.array([np.nan, 1.0])),
        Demand("H100", 1, np.array([-1.0, 1.0])),
        Demand("H100", 1, np.array([1.0])),
        Demand("H100", 0, np.ones(2)),
        Demand("H100", 1, np.ones(2), tolerated=1.5),
        Demand("H100", 1, np.ones(2), rare=(Rare(np.ones(2), 1.5),)),
        Demand("H100", 1, np.ones(2), rare=(Rare(np.ones(3), 0.5),)),
        Demand("H100", 1, np.ones(2), tolerated_miss_usd_per_h=9.0, miss_usd_per_h=1.0),
    ],
)
def test_a_demand_that_cannot_be_is_refused(demand: Demand) -> None:
    with pytest.raises(InvalidInput):
        replace(worked_example(), demands=(demand,))


def test_sizes_that_do_not_divide_each_other_are_refused() -> None:
    demands = (Demand("H100", 2, np.ones(2)), Demand("H100", 3, np.ones(2)))
    with pytest.raises(InvalidInput, match="2 and 3 GPUs"):
        replace(worked_example(), demands=demands)


def test_a_demand_a_thousand_times_as_high_is_missing_and_nothing_is_asked_for_beyond_quota() -> None:
    plan = solve(assemble(with_demand(worked_example(), 0, 1, 3_000.0)), HighsSolver())
    assert plan.ask.tolist() == pytest.approx([0, 10])
    assert violations(plan) == []


def tampered(plan: Plan, variable: str, index: int, period: int, by: float) -> Plan:
    values = plan.solution.values.copy()
    values[plan.assembled.layout.columns(variable)[index, period]] += by
    return replace(plan, solution=replace(plan.solution, values=values))


@pytest.mark.parametrize(
    ("variable", "words"),
    [("up", "up in"), ("req", "up in"), ("rel", "up in"), ("miss2", "GPUs in"), ("miss1", "miss1 of 0 is")],
)
def test_the_checker_notices_a_plan_that_was_tampered_with(variable: str, words: str) -> None:
    plan = solve(assemble(fleet(6, 20)), HighsSolver())
    assert violations(plan) == []
    found = violations(
        tampered(
            plan, variable, 0, 12, -0.01 if variable == "up" else 0.01 if variable in ("req", "rel") else -1e3
        )
    )
    assert any(words in line for line in found)


def test_the_checker_notices_spending_and_exposure() -> None:
    problem = replace(worked_example(3.0), survival={"H100": Survival(1.0)})
    plan = solve(assemble(problem), HighsSolver())
    assert violations(plan) == []
    assert any("USD/h" in line for line in violations(tampered(plan, "up", 1, 1, 1.0)))
    assert any("survive" in line for line in violations(tampered(plan, "exposed", 0, 1, -1.0)))


def test_an_explanation_names_what_binds() -> None:
    problem = worked_example()
    scarce = replace(problem, pools=(problem.pools[0], replace(problem.pools[1], quota=1)))
    own, cloud = explain(solve(assemble(scarce), HighsSolver())).pools
    assert "quota of 1" in cloud.limits[0]
    assert "7.90 USD" in cloud.limits[0]  # a machine more would cost 2.10 and save a miss of 10
    supplied = replace(problem, pools=(problem.pools[0], replace(problem.pools[1], supply=1)))
    assert "supply of 1 more" in explain(solve(assemble(supplied), HighsSolver())).pools[1].limits[0]
    assert own.pool == "cloud/here/own/own"


@pytest.mark.parametrize(
    "arguments", [(0, 10, 900, 100), (96, 0, 900, 100), (96, 10, 5, 100), (96, 10, 900, 1e9)]
)
def test_a_grid_that_cannot_be_is_refused(arguments: tuple[int, float, float, float]) -> None:
    with pytest.raises(InvalidInput):
        Grid.stretching(*arguments)


def test_the_grid_stretches_from_ten_seconds_to_a_quarter_of_an_hour() -> None:
    grid = Grid.stretching()
    assert grid.lengths_s[0] == pytest.approx(10)
    assert grid.lengths_s[-1] == pytest.approx(900)
    assert grid.lengths_s.sum() == pytest.approx(21_600)
    assert (np.diff(grid.lengths_s) >= -1e-9).all()


def test_a_problem_lists_each_pool_once() -> None:
    problem = worked_example()
    with pytest.raises(InvalidInput, match="twice"):
        Problem(problem.grid, (problem.pools[0],) * 2, problem.demands)
