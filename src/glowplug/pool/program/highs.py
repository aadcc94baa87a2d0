"""HiGHS behind the port: a dual simplex that starts from the last basis; its integer program is next door.

The model is passed anew each time (some milliseconds), which takes any change of any coefficient; only the
basis is kept, because it is what costs.
"""

from __future__ import annotations

from typing import Any

import highspy
import numpy as np

from glowplug.pool.program.grid import Ints
from glowplug.pool.program.linear import LinearProgram, LinearSolution
from glowplug.types.errors import DeadlineExceeded, Unavailable

_FEASIBLE = int(highspy.SolutionStatus.kSolutionStatusFeasible)


class HighsSolver:
    """Linear programs by HiGHS."""

    name = "highs"

    def __init__(self) -> None:
        self._highs = quiet_highs()
        self._shape: tuple[int, int] | None = None
        self._basis: Any = None

    def solve(self, program: LinearProgram, timeout_s: float) -> LinearSolution:
        """An optimum, from the last basis if the shape is the same. Raises DeadlineExceeded, Unavailable."""
        is_warm = self._basis is not None and self._shape == program.shape
        pass_to_highs(self._highs, program)
        if is_warm:
            self._highs.setBasis(self._basis)
        self._highs.setOptionValue("presolve", "off" if is_warm else "on")
        run_highs(self._highs, timeout_s)
        self._basis, self._shape = self._highs.getBasis(), program.shape
        solution, info = self._highs.getSolution(), self._highs.getInfo()
        return LinearSolution(
            np.asarray(solution.col_value),
            info.objective_function_value,
            np.asarray(solution.row_dual),
            np.asarray(solution.col_dual),
            info.simplex_iteration_count,
            is_warm,
        )


def quiet_highs() -> Any:
    """A HiGHS that prints nothing and leaves the other core to others."""
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    return highs


def pass_to_highs(highs: Any, program: LinearProgram, whole: Ints | None = None) -> None:
    """Give HiGHS the program, and the columns that must be whole; as arrays, which it takes as they are."""
    rows, columns = program.shape
    matrix = program.matrix
    kinds = np.full(columns, int(highspy.HighsVarType.kContinuous), dtype=np.int32)
    if whole is not None:
        kinds[whole] = int(highspy.HighsVarType.kInteger)
    highs.passModel(
        columns, rows, matrix.nnz, int(highspy.MatrixFormat.kColwise), int(highspy.ObjSense.kMinimize), 0.0,
        program.cost, program.lower, program.upper, program.row_lower, program.row_upper,
        matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data, kinds,
    )  # fmt: skip


def run_highs(highs: Any, timeout_s: float, or_best_known: bool = False) -> None:
    """Run to the optimum; of an integer program, ``or_best_known`` when time is over.

    Raises DeadlineExceeded after ``timeout_s``, Unavailable for any other end.
    """
    # HiGHS adds up the run time of an instance, and holds the limit against the sum.
    highs.setOptionValue("time_limit", highs.getRunTime() + max(timeout_s, 0.0))
    highs.run()
    status = highs.getModelStatus()
    if status == highspy.HighsModelStatus.kTimeLimit:
        if or_best_known and highs.getInfo().primal_solution_status == _FEASIBLE:
            return
        raise DeadlineExceeded(
            f"HiGHS had no plan after {timeout_s:g} s.",
            remedy="The last plan stands; give it more time or fewer periods.",
            stage="solve",
        )
    if status != highspy.HighsModelStatus.kOptimal:
        raise Unavailable(
            f"HiGHS ended without a plan: {highs.modelStatusToString(status)}.",
            remedy="The last plan stands. Solve with GLOP, and please report the pool file.",
            solver="highs",
        )
