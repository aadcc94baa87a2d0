"""GLOP behind the port, through OR-Tools' MathOpt.

MathOpt's Python objects are slow at 250,000 coefficients, so its protocol buffers are filled from arrays
directly. The solver object lives on: while shape and pattern of the matrix stay, it is told only what
changed, and goes on from its last basis.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.glop import parameters_pb2 as glop_parameters
from ortools.math_opt import (
    callback_pb2,
    model_parameters_pb2,
    model_pb2,
    model_update_pb2,
    parameters_pb2,
    result_pb2,
    solution_pb2,
    sparse_containers_pb2,
)
from ortools.math_opt.core.python import solver as math_opt
from pybind11_abseil.status import StatusNotOk

from glowplug.pool.program.grid import Floats
from glowplug.pool.program.linear import LinearProgram, LinearSolution
from glowplug.types.errors import DeadlineExceeded, Unavailable

_OPTIMAL = result_pb2.TERMINATION_REASON_OPTIMAL
# We set no limit but time.
_OUT_OF_TIME = (result_pb2.TERMINATION_REASON_FEASIBLE, result_pb2.TERMINATION_REASON_NO_SOLUTION_FOUND)


class GlopSolver:
    """Linear programs by GLOP."""

    name = "glop"

    def __init__(self) -> None:
        self._solver: Any = None
        self._last: LinearProgram | None = None

    def solve(self, program: LinearProgram, timeout_s: float) -> LinearSolution:
        """An optimum, from the last basis when shape and pattern are the same. Raises DeadlineExceeded,
        Unavailable.
        """
        try:
            is_warm = self._update(program)
            if not is_warm:
                self._solver = math_opt.new(
                    parameters_pb2.SOLVER_TYPE_GLOP, _model(program), parameters_pb2.SolverInitializerProto()
                )
            self._last = None  # until the solver is known to be in order
            started_s = time.monotonic()
            result = self._solver.solve(
                _parameters(timeout_s),
                model_parameters_pb2.ModelSolveParametersProto(),
                None,
                callback_pb2.CallbackRegistrationProto(),
                None,
                None,
            )
        except StatusNotOk as problem:
            self._last = None
            raise _failed(str(problem)) from problem
        _check(result, time.monotonic() - started_s, timeout_s)
        self._last = program
        solution = result.solutions[0]
        return LinearSolution(
            np.array(solution.primal_solution.variable_values.values),
            solution.primal_solution.objective_value,
            np.array(solution.dual_solution.dual_values.values),
            np.array(solution.dual_solution.reduced_costs.values),
            result.solve_stats.simplex_iterations,
            is_warm,
        )

    def _update(self, program: LinearProgram) -> bool:
        last = self._last
        if last is None or last.shape != program.shape or not _same_pattern(last.matrix, program.matrix):
            return False
        update = model_update_pb2.ModelUpdateProto()
        variables, rows = update.variable_updates, update.linear_constraint_updates
        _changed(update.objective_updates.linear_coefficients, last.cost, program.cost)
        _changed(variables.lower_bounds, last.lower, program.lower)
        _changed(variables.upper_bounds, last.upper, program.upper)
        _changed(rows.lower_bounds, last.row_lower, program.row_lower)
        _changed(rows.upper_bounds, last.row_upper, program.row_upper)
        entries = np.flatnonzero(last.matrix.data != program.matrix.data)
        if len(entries):
            _fill_matrix(update.linear_constraint_matrix_updates, program.matrix, entries)
        return bool(self._solver.update(update))


def _same_pattern(one: Any, other: Any) -> bool:
    return np.array_equal(one.indptr, other.indptr) and np.array_equal(one.indices, other.indices)


def _model(program: LinearProgram) -> Any:
    rows, columns = program.shape
    model = model_pb2.ModelProto()
    model.variables.ids.extend(range(columns))
    model.variables.lower_bounds.extend(program.lower.tolist())
    model.variables.upper_bounds.extend(program.upper.tolist())
    model.variables.integers.extend([False] * columns)
    model.linear_constraints.ids.extend(range(rows))
    model.linear_constraints.lower_bounds.extend(program.row_lower.tolist())
    model.linear_constraints.upper_bounds.extend(program.row_upper.tolist())
    costly = np.flatnonzero(program.cost)
    model.objective.linear_coefficients.ids.extend(costly.tolist())
    model.objective.linear_coefficients.values.extend(program.cost[costly].tolist())
    _fill_matrix(model.linear_constraint_matrix, program.matrix, np.arange(program.matrix.nnz))
    return model


def _fill_matrix(target: Any, matrix: Any, entries: NDArray[np.intp]) -> None:
    # MathOpt wants coefficients row by row, in order.
    columns = np.searchsorted(matrix.indptr, entries, side="right") - 1
    order = np.lexsort((columns, matrix.indices[entries]))
    target.row_ids.extend(matrix.indices[entries][order].tolist())
    target.column_ids.extend(columns[order].tolist())
    target.coefficients.extend(matrix.data[entries][order].tolist())


def _changed(target: sparse_containers_pb2.SparseDoubleVectorProto, last: Floats, now: Floats) -> None:
    places = np.flatnonzero(last != now)
    target.ids.extend(places.tolist())
    target.values.extend(now[places].tolist())


def _parameters(timeout_s: float) -> Any:
    parameters = parameters_pb2.SolveParametersProto(threads=1)
    parameters.time_limit.FromTimedelta(datetime.timedelta(seconds=timeout_s))
    # Preprocessing would leave no basis to go on from. From one, the dual simplex has less to mend.
    parameters.glop.CopyFrom(glop_parameters.GlopParameters(use_preprocessing=False, use_dual_simplex=True))
    return parameters


def _failed(why: str) -> Unavailable:
    return Unavailable(
        f"GLOP ended without a plan: {why}.",
        remedy="The last plan stands. Solve with HiGHS, and please report the pool file.",
        solver="glop",
    )


def _check(result: Any, took_s: float, timeout_s: float) -> None:
    reason = result.termination.reason
    # Stopped halfway through an iteration, GLOP may call its point imprecise instead.
    if reason in _OUT_OF_TIME or (reason != _OPTIMAL and took_s >= timeout_s):
        raise DeadlineExceeded(
            f"GLOP had no plan after {timeout_s:g} s.",
            remedy="The last plan stands; give it more time or fewer periods.",
            stage="solve",
        )
    is_basic = bool(result.solutions) and (
        result.solutions[0].primal_solution.feasibility_status == solution_pb2.SOLUTION_STATUS_FEASIBLE
    )
    if reason != _OPTIMAL or not is_basic:
        raise _failed(f"{result_pb2.TerminationReasonProto.Name(reason)} {result.termination.detail}".strip())
