"""Plans in whole machines: HiGHS' branch and bound, for as long as there is time.

Requests are allowed at a few moments only, and whole there (``docs/pools.md`` says why later ones must be
whole, too). Every bound and row of the linear program holds, the budget included, and it is always solved as
well: its duals are the prices. When time is over, the best plan found stands, with its gap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from glowplug.pool.program.assembly import Assembled
from glowplug.pool.program.grid import Grid, Ints
from glowplug.pool.program.highs import HighsSolver, pass_to_highs, quiet_highs, run_highs
from glowplug.pool.program.linear import LinearProgram
from glowplug.pool.program.plan import Plan

WHOLE_PERIODS = 4
_LATER_S = (60.0, 120.0, 300.0, 600.0, 1_200.0, 1_800.0, *(3_600.0 * hour for hour in range(1, 1_000)))
_TOLERANCE = 1e-6
_AGGREGATOR = 1 << 12
"""HiGHS 1.14's presolve rule of that name calls plans optimal that are not: 20 machines instead of 2, 18 of
them given back in the period in which they come (``test_no_machine_is_asked_for_to_be_given_back_at_once``).
"""


@dataclass(frozen=True, eq=False)
class WholePlan:
    """A plan in whole machines. ``bound_usd``: none costs less, requests being made when these may be."""

    plan: Plan
    bound_usd: float

    @property
    def gap(self) -> float:
        """How much dearer the plan is than the best one, at most; a share."""
        return max(self.plan.solution.objective - self.bound_usd, 0.0) / max(abs(self.bound_usd), 1e-9)


def solve_whole(assembled: Assembled, timeout_s: float = 10.0, gap: float = 1e-3) -> WholePlan:
    """A plan within a share ``gap`` of the best, or the best that was found in the time.

    Raises DeadlineExceeded if nothing was found, and Unavailable.
    """
    program, whole = restrict(assembled)
    highs = quiet_highs()
    pass_to_highs(highs, program, whole)
    highs.setOptionValue("mip_rel_gap", gap)
    highs.setOptionValue("presolve_rule_off", _AGGREGATOR)
    run_highs(highs, timeout_s, or_best_known=True)
    # Whole within a tolerance is made quite whole, and the rest solved for it once more, which also gives
    # duals.
    chosen = np.rint(np.asarray(highs.getSolution().col_value)[whole])
    lower, upper = program.lower.copy(), program.upper.copy()
    lower[whole] = upper[whole] = chosen
    solution = HighsSolver().solve(replace(program, lower=lower, upper=upper), max(timeout_s, 1.0))
    return WholePlan(Plan(assembled, solution, "highs-mip"), float(highs.getInfo().mip_dual_bound))


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
