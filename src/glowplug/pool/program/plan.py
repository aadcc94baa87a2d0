"""A solution in the words of the formulation: what to do now, what it costs, what is scarce."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glowplug.pool.program.assembly import Assembled
from glowplug.pool.program.grid import Floats
from glowplug.pool.program.linear import LinearSolution, LinearSolver
from glowplug.pool.program.problem import Problem


@dataclass(frozen=True)
class Costs:
    """Where the objective's USD go over the horizon."""

    rent_usd: float
    interruption_usd: float
    churn_usd: float
    miss_usd: float
    exposed_usd: float
    over_budget_usd: float

    @property
    def total_usd(self) -> float:
        """The objective."""
        return (
            self.rent_usd + self.interruption_usd + self.churn_usd
            + self.miss_usd + self.exposed_usd + self.over_budget_usd
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """One solved program. Only what it says about period 0 is ever done."""

    assembled: Assembled
    solution: LinearSolution
    solver: str

    @property
    def problem(self) -> Problem:
        """What was asked."""
        return self.assembled.layout.problem

    def values(self, variable: str) -> Floats:
        """A variable of the formulation: one row for each pool or class, one column for each period."""
        return np.asarray(self.solution.values[self.assembled.layout.columns(variable)])

    def duals(self, constraint: str) -> Floats:
        """USD for one more on the right-hand side of a constraint's rows, in the same shape."""
        return np.asarray(self.solution.row_duals[self.assembled.layout.rows(constraint)])

    def reduced_costs(self, variable: str) -> Floats:
        """USD for one more on the bound at which a variable stands; negative: a higher upper bound saves
        that.
        """
        return np.asarray(self.solution.reduced_costs[self.assembled.layout.columns(variable)])

    @property
    def missing(self) -> Floats:
        """``[c, t]``: slots short."""
        missing = self.values("miss1") + self.values("miss2")
        np.add.at(missing, self.assembled.layout.rare, self.values("rare"))
        return missing

    @property
    def ask(self) -> Floats:
        """Machines to ask for now, of each pool."""
        return self.values("req")[:, 0]

    @property
    def give_back(self) -> Floats:
        """Machines to give back now, of each pool."""
        return self.values("rel")[:, 0]

    @cached_property
    def scarcity_usd_per_gpu_h(self) -> Floats:
        """``[c, t]``: the scarcity price of a GPU in blocks of a class' size."""
        return np.maximum(self.duals("cover"), 0.0) / self.problem.grid.hours

    @cached_property
    def slot_usd_per_h(self) -> Floats:
        """``[c, t]``: what one more slot of a class is worth: it needs a place in every row up to its own
        size.
        """
        demands = self.problem.demands
        counts_in = np.array(
            [[row.gpu == demand.gpu and row.gpus <= demand.gpus for row in demands] for demand in demands],
            dtype=np.float64,
        ).reshape(len(demands), len(demands))
        sizes = np.array([demand.gpus for demand in demands], dtype=np.float64)[:, None]
        return np.asarray(sizes * (counts_in @ self.scarcity_usd_per_gpu_h))

    @cached_property
    def machine_usd(self) -> Floats:
        """What one more machine of each pool, here now, free of charge until its rent and with its quota,
        would save.

        The derivative by the inventory of period 0 and by the bounds of ``up``, which its survivors lift.
        """
        moves = self.assembled.dynamics
        survivors = np.cumprod(moves.survive, axis=1)
        lifted = np.minimum(self.reduced_costs("up"), 0.0) * survivors
        return np.asarray(-(self.duals("inventory")[:, 0] + lifted.sum(axis=1)))

    @cached_property
    def costs(self) -> Costs:
        """The objective, by what it is spent on."""
        problem, program = self.problem, self.assembled.program
        spent = program.cost * self.solution.values
        rent = np.array([pool.price_usd_per_h for pool in problem.pools]).reshape(-1, len(problem.grid))
        rent_usd = float((rent * problem.grid.hours * self.values("up")).sum())

        def of(*variables: str) -> float:
            return float(sum(spent[self.assembled.layout.columns(name)].sum() for name in variables))

        return Costs(
            rent_usd=rent_usd,
            interruption_usd=of("up") - rent_usd,
            churn_usd=of("req", "rel"),
            miss_usd=of("miss1", "miss2", "rare"),
            exposed_usd=of("exposed"),
            over_budget_usd=of("over"),
        )

    def slots(self, period: int = 0) -> Floats:
        """``[c, p]``: slots of each class held by each pool, the largest first and where there are most GPUs
        left.

        What the cover rows promise, made explicit (``docs/pools.md``: packing without packing variables).
        """
        problem = self.problem
        up = self.values("up")[:, period]
        free = np.array([pool.gpus for pool in problem.pools], dtype=np.float64) * up
        held = np.zeros((len(problem.demands), len(problem.pools)))
        wanted = np.array([demand.most_slots[period] for demand in problem.demands]) - self.missing[:, period]
        for index in sorted(range(len(problem.demands)), key=lambda index: -problem.demands[index].gpus):
            demand = problem.demands[index]
            for place, pool in enumerate(problem.pools):
                if pool.gpu != demand.gpu or pool.gpus < demand.gpus:
                    continue
                blocks = free[place] / demand.gpus - up[place] * (pool.gpus % demand.gpus) / demand.gpus
                held[index, place] = taken = min(
                    max(blocks, 0.0), max(wanted[index] - held[index].sum(), 0.0)
                )
                free[place] -= taken * demand.gpus
        return held


def solve(assembled: Assembled, solver: LinearSolver, timeout_s: float = 10.0) -> Plan:
    """Solve the linear program. Raises DeadlineExceeded, Unavailable."""
    return Plan(assembled, solver.solve(assembled.program, timeout_s), solver.name)
