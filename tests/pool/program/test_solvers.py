"""What the port of solvers promises of each of them: warm starts, deadlines, life after a failure."""

from dataclasses import replace

import numpy as np
import pytest
from tests.pool.program.check import violations

from glowplug.pool.program.assembly import assemble
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.linear import LinearProgram
from glowplug.pool.program.plan import solve
from glowplug.types.errors import DeadlineExceeded, Unavailable

from .problems import SOLVERS, fleet, with_demand, with_price

pytestmark = pytest.mark.parametrize("kind", SOLVERS, ids=lambda kind: kind.name)
Kind = type[GlopSolver] | type[HighsSolver]


def test_the_next_solution_starts_from_the_last_basis(kind: Kind) -> None:
    solver = kind()
    first = solve(assemble(fleet(12, 40)), solver)
    again = solve(assemble(with_demand(with_price(fleet(12, 40), 2, 1.1), 0, 5, 1.0)), solver)
    assert not first.solution.is_warm
    assert again.solution.is_warm
    assert again.solution.iterations < first.solution.iterations / 2
    fresh = solve(assemble(again.problem), kind())
    assert again.solution.objective == pytest.approx(fresh.solution.objective)
    assert violations(again) == []


def test_another_shape_starts_anew(kind: Kind) -> None:
    solver = kind()
    solve(assemble(fleet(12, 40)), solver)
    other = solve(assemble(fleet(8, 40)), solver)
    assert not other.solution.is_warm
    assert violations(other) == []


def test_changed_coefficients_are_taken_over(kind: Kind) -> None:
    """Hazards and lead times are in the matrix itself."""
    solver = kind()
    problem = fleet(6, 20)
    solve(assemble(problem), solver)
    changed = replace(
        problem,
        pools=tuple(
            replace(pool, interruptions_per_h=pool.interruptions_per_h * 3) for pool in problem.pools
        ),
    )
    plan = solve(assemble(changed), solver)
    assert plan.solution.is_warm
    assert violations(plan) == []


def test_no_time_is_an_error_and_the_solver_lives_on(kind: Kind) -> None:
    solver = kind()
    assembled = assemble(fleet(40, 100, periods=48))
    with pytest.raises(DeadlineExceeded):
        solver.solve(assembled.program, 1e-6)
    assert violations(solve(assembled, solver, 100)) == []


def test_a_program_without_a_solution_is_an_error_and_the_solver_lives_on(kind: Kind) -> None:
    solver = kind()
    assembled = assemble(fleet(4, 10))
    program = assembled.program
    impossible = LinearProgram(
        program.cost,
        program.lower,
        np.zeros_like(program.upper),
        program.matrix,
        program.row_lower,
        program.row_upper,
    )
    with pytest.raises(Unavailable):
        solver.solve(impossible, 10)
    assert violations(solve(assembled, solver)) == []
