"""A linear program as arrays, its solution, and the port that solvers stand behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from glowplug.pool.program.grid import Floats


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """Minimise ``cost @ x`` with ``lower <= x <= upper`` and ``row_lower <= matrix @ x <= row_upper``.

    ``matrix`` is a scipy CSC array with sorted indices and without duplicates; infinities are numpy's.
    """

    cost: Floats
    lower: Floats
    upper: Floats
    matrix: Any
    row_lower: Floats
    row_upper: Floats

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.row_lower), len(self.cost)

    def equals(self, other: LinearProgram) -> bool:
        """Whether it is the same program, number by number."""
        mine, theirs = self.matrix, other.matrix
        pairs = (
            (self.cost, other.cost), (self.lower, other.lower), (self.upper, other.upper),
            (self.row_lower, other.row_lower), (self.row_upper, other.row_upper),
            (mine.indptr, theirs.indptr), (mine.indices, theirs.indices), (mine.data, theirs.data),
        )  # fmt: skip
        return all(np.array_equal(one, another) for one, another in pairs)


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """An optimum. Duals are derivatives of the objective: by the bound of a row, by the bound of a column."""

    values: Floats
    objective: float
    row_duals: Floats
    reduced_costs: Floats
    iterations: int
    is_warm: bool
    """It started from the basis of the solution before."""


class LinearSolver(Protocol):
    """One solver, kept alive. Duties: starts from the last basis when the shape is the same; never runs past
    the time it is given; leaves itself usable after a failure. Not safe to use from two threads at once.
    """

    name: str

    def solve(self, program: LinearProgram, timeout_s: float) -> LinearSolution:
        """An optimum. Raises DeadlineExceeded, or Unavailable when the solver fails otherwise."""
        ...
