"""From a problem to a plan in whole machines and its prices, within a time.

Solvers are kept alive, so that they go on from their last basis. What one cannot do another does, which is
said in ``Solved.remarks``; what none can do raises, and the planner goes on without a plan. Time is relative
to now in a program: while nothing happens it is the same from step to step, and so is its plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from glowplug.pool.program.assembly import Assembled, assemble
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.integers import solve_whole
from glowplug.pool.program.linear import LinearSolver
from glowplug.pool.program.plan import Plan, solve
from glowplug.pool.program.problem import Problem
from glowplug.types.errors import GlowplugError, Unavailable


@dataclass(frozen=True, eq=False)
class Solved:
    """``whole``: what to do. ``relaxed``: in fractions of machines; its duals are the prices. They are the
    same where no plan in whole machines was found in the time: fractions are rounded up then. ``gap``: how
    much dearer it is than the best in whole machines, at most, as a share; None for fractions.
    """

    whole: Plan
    relaxed: Plan
    gap: float | None = None
    remarks: tuple[str, ...] = ()


class PlanMaker(Protocol):
    """Makes plans. Raises GlowplugError when it cannot, and is usable afterwards."""

    def __call__(self, problem: Problem, timeout_s: float) -> Solved:
        """A plan, within ``timeout_s`` for each solver."""
        ...


class Solvers:
    """GLOP for prices and HiGHS for whole machines; HiGHS for both when GLOP fails. From one thread only."""

    def __init__(self) -> None:
        self._linear: tuple[LinearSolver, LinearSolver] = (GlopSolver(), HighsSolver())
        self._last: Solved | None = None

    def __call__(self, problem: Problem, timeout_s: float) -> Solved:
        """Raises DeadlineExceeded, Unavailable."""
        try:
            assembled = assemble(problem)
            if self._last is not None and assembled.program.equals(self._last.whole.assembled.program):
                return _anew(self._last, assembled)
            return self._solved(assembled, timeout_s)
        except (ValueError, ArithmeticError, RuntimeError, MemoryError) as failure:
            # What numpy, scipy and the solvers' bindings raise: no input of ours may end the loop.
            raise Unavailable(
                f"A solver broke: {type(failure).__name__}: {failure}.",
                remedy="The last plan stands. Please report the pool file.",
            ) from failure

    def _solved(self, assembled: Assembled, timeout_s: float) -> Solved:
        remarks: list[str] = []
        self._last = None
        relaxed = self._relaxed(assembled, timeout_s, remarks)
        try:
            whole = solve_whole(assembled, timeout_s)
        except GlowplugError as failure:
            remarks.append(f"no plan in whole machines, fractions are rounded up: {failure.message}")
            return Solved(relaxed, relaxed, None, tuple(remarks))
        solved = Solved(whole.plan, relaxed, whole.gap, tuple(remarks))
        if whole.is_final and not remarks:
            self._last = solved
        return solved

    def _relaxed(self, assembled: Assembled, timeout_s: float, remarks: list[str]) -> Plan:
        first, second = self._linear
        try:
            return solve(assembled, first, timeout_s)
        except GlowplugError as failure:
            remarks.append(f"{first.name} failed, {second.name} was asked: {failure.message}")
            return solve(assembled, second, timeout_s)


def _anew(solved: Solved, assembled: Assembled) -> Solved:
    """The same solutions, of a problem that makes the same program."""
    return replace(
        solved,
        whole=replace(solved.whole, assembled=assembled),
        relaxed=replace(solved.relaxed, assembled=assembled),
    )
