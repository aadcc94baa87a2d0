"""Plans in whole machines: HiGHS' branch and bound, for as long as there is time.

Requests are allowed at a few moments only, and whole there (``docs/pools.md`` says why later ones must be
whole, too). Every bound and row of the linear program holds, the budget included, and it is always solved as
well: its duals are the prices. When time is over, the best plan found stands, with its gap. What has nothing
to do with each other, as GPU kinds without a budget, is planned one after the other (``parts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import highspy
import numpy as np

from glowplug.pool.program.assembly import Assembled
from glowplug.pool.program.grid import Floats, Grid, Ints
from glowplug.pool.program.highs import HighsSolver, pass_to_highs, quiet_highs, run_highs
from glowplug.pool.program.linear import LinearProgram
from glowplug.pool.program.parts import Part, independent_parts
from glowplug.pool.program.plan import Plan
from glowplug.types.errors import DeadlineExceeded

WHOLE_PERIODS = 4
_GAP = 3e-3
_GAP_USD = 0.01
"""A plan that is so much dearer than the best, as a share or over its horizon, is good enough."""
_LATER_S = (60.0, 120.0, 300.0, 600.0, 1_200.0, 1_800.0, *(3_600.0 * hour for hour in range(1, 1_000)))
_TOLERANCE = 1e-6
_AGGREGATOR = 1 << 12
"""HiGHS 1.14's presolve rule of that name calls plans optimal that are not: 20 machines instead of 2, 18 of
them given back in the period in which they come (``test_no_machine_is_asked_for_to_be_given_back_at_once``).
"""

_SLOW_HEURISTICS = ("mip_heuristic_run_rins", "mip_heuristic_run_rens", "mip_heuristic_run_root_reduced_cost")
"""Programs within the program. Without them plans of a dozen machines take a quarter of the time
(``benchmarks/pool/bench_program.py``).
"""


@dataclass(frozen=True, eq=False)
class WholePlan:
    """A plan in whole machines. ``bound_usd``: none costs less, requests being made when these may be.
    ``is_final``: more time would have made none that is better by more than the gap.
    """

    plan: Plan
    bound_usd: float
    is_final: bool

    @property
    def gap(self) -> float:
        """How much dearer the plan is than the best one, at most; a share."""
        return max(self.plan.solution.objective - self.bound_usd, 0.0) / max(abs(self.bound_usd), 1e-9)


def solve_whole(assembled: Assembled, timeout_s: float = 10.0, gap: float = _GAP) -> WholePlan:
    """A plan within a share ``gap`` of the best, or the best that was found in the time.

    Raises DeadlineExceeded if nothing was found, and Unavailable.
    """
    program, whole = restrict(assembled)
    found = _best(program, whole, assembled.layout.rows("budget").ravel(), timeout_s, gap)
    # Whole within a tolerance is made quite whole, and the rest solved for it once more, which also gives
    # duals.
    lower, upper = program.lower.copy(), program.upper.copy()
    lower[whole] = upper[whole] = np.rint(found.values[whole])
    solution = HighsSolver().solve(replace(program, lower=lower, upper=upper), max(timeout_s, 1.0))
    plan = Plan(assembled, solution, "highs-mip")
    return WholePlan(plan, solution.objective - found.loss_usd, found.is_final)


@dataclass(frozen=True, eq=False)
class _Found:
    """``loss_usd``: the best plan costs at most so much less. ``took_s``: of solvers' time."""

    values: Floats
    loss_usd: float
    took_s: float
    is_final: bool


def _best(program: LinearProgram, whole: Ints, budget: Ints, timeout_s: float, gap: float) -> _Found:
    """The best plan without the budget, if it is within the budget: then it is the best with it, too. Half
    of the time is kept for the case that it is not, or is not found.
    """
    free = independent_parts(_without_rows(program, budget), whole)
    if not len(budget) or len(free) < 2:
        return _by_parts(program, independent_parts(program, whole), timeout_s, gap)
    left_s = timeout_s / 2
    with suppress(DeadlineExceeded):
        found = _by_parts(program, free, timeout_s / 2, gap)
        spent = program.matrix.tocsr()[budget] @ found.values
        if (spent <= program.row_upper[budget] + _TOLERANCE).all():
            return found
        left_s = max(timeout_s - found.took_s, 0.0)
    return _by_parts(program, independent_parts(program, whole), left_s, gap)


def _by_parts(program: LinearProgram, parts: Sequence[Part], timeout_s: float, gap: float) -> _Found:
    values = np.zeros(len(program.cost))
    loss_usd, took_s, is_final = 0.0, 0.0, True
    for place, part in enumerate(parts):
        highs = _branch_and_bound(part, (timeout_s - took_s) / (len(parts) - place), gap)
        info = highs.getInfo()
        values[part.columns] = np.asarray(highs.getSolution().col_value)
        loss_usd += max(info.objective_function_value - info.mip_dual_bound, 0.0)
        took_s += highs.getRunTime()
        is_final &= highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return _Found(values, loss_usd, took_s, is_final)


def _without_rows(program: LinearProgram, rows: Ints) -> LinearProgram:
    kept = np.setdiff1d(np.arange(program.shape[0]), rows)
    matrix = program.matrix.tocsr()[kept].tocsc()
    matrix.sort_indices()
    return replace(
        program, matrix=matrix, row_lower=program.row_lower[kept], row_upper=program.row_upper[kept]
    )


def _branch_and_bound(part: Part, timeout_s: float, gap: float) -> Any:
    """HiGHS, once it has the best plan of a part, or the best that it found in the time."""
    highs = quiet_highs()
    pass_to_highs(highs, part.program, part.whole)
    highs.setOptionValue("mip_rel_gap", gap)
    highs.setOptionValue("mip_abs_gap", _GAP_USD)
    highs.setOptionValue("presolve_rule_off", _AGGREGATOR)
    for heuristic in _SLOW_HEURISTICS:
        highs.setOptionValue(heuristic, False)
    run_highs(highs, timeout_s, or_best_known=True)
    return highs


def restrict(assembled: Assembled) -> tuple[LinearProgram, Ints]:
    """The program with requests at decision moments only, and the columns that must be whole."""
    layout, program = assembled.layout, assembled.program
    moments = decision_periods(layout.problem.grid)
    requests = layout.columns("req")
    upper = program.upper.copy()
    upper[requests[:, np.setdiff1d(np.arange(requests.shape[1]), moments)]] = 0.0
    given_back = layout.columns("rel")[:, :WHOLE_PERIODS]
    whole = np.concatenate([requests[:, moments].ravel(), given_back.ravel()])
    upper[whole] = np.floor(upper[whole] + _TOLERANCE)
    return replace(program, upper=upper), whole


def decision_periods(grid: Grid) -> Ints:
    """Period 0 to 3, and those that start 1, 2, 5, 10, 20, 30 min and every hour from now."""
    later = grid.first_period_from(np.array(_LATER_S))
    return np.unique(np.concatenate((np.arange(min(WHOLE_PERIODS, len(grid))), later[later < len(grid)])))
