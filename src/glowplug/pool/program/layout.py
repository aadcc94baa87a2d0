"""Where each variable and each constraint of the formulation is in the arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glowplug.pool.program.grid import Ints
from glowplug.pool.program.problem import Problem


@dataclass(frozen=True, eq=False)
class Layout:
    """Indices, by pool (p), demand class (c), protected class (n), failure domain (d) and period (t).

    A demand class is a pair of GPU kind and size; a protected one is of a kind whose worst domain may be
    lost. ``rental[p, t]`` is -1 where there is no such row.
    """

    problem: Problem
    rental: Ints
    protected: tuple[int, ...]
    domains: tuple[tuple[int, tuple[int, ...]], ...]
    """For each row of ``worst``: which protected class, and the pools of that kind in one domain."""

    @cached_property
    def rare(self) -> Ints:
        """For each row of the variable ``rare`` its demand class, in the order of ``Demand.rare``."""
        counts = [len(demand.rare) for demand in self.problem.demands]
        return np.repeat(np.arange(len(counts)), counts)

    @property
    def _periods(self) -> int:
        return len(self.problem.grid)

    @cached_property
    def _columns(self) -> dict[str, Ints]:
        pools, classes = len(self.problem.pools), len(self.problem.demands)
        return _numbered(
            self._periods,
            up=pools, req=pools, rel=pools, miss1=classes, miss2=classes, rare=len(self.rare),
            exposed=len(self.protected), worst=len(self.protected), over=self._budgets,
        )  # fmt: skip

    @cached_property
    def _rows(self) -> dict[str, Ints]:
        return _numbered(
            self._periods,
            inventory=len(self.problem.pools), cover=len(self.problem.demands), worst=len(self.domains),
            domain=len(self.protected), budget=self._budgets,
        )  # fmt: skip

    @property
    def _budgets(self) -> int:
        return 0 if self.problem.budget_usd_per_h is None else 1

    def columns(self, name: str) -> Ints:
        """Column numbers of a variable, one row for each pool or class, one column for each period."""
        return self._columns[name]

    def rows(self, name: str) -> Ints:
        """Row numbers of a constraint in the same shape; ``rental`` only where there are any."""
        return self.rental if name == "rental" else self._rows[name]

    @property
    def column_count(self) -> int:
        """How many variables there are."""
        return sum(block.size for block in self._columns.values())

    @property
    def row_count(self) -> int:
        """How many constraints there are."""
        return sum(block.size for block in self._rows.values()) + int((self.rental >= 0).sum())


def lay_out(problem: Problem, needs_rental_row: NDArray[np.bool_]) -> Layout:
    """Number everything; minimum rental needs a row for the given pools and periods only."""
    protected = tuple(
        index
        for index, demand in enumerate(problem.demands)
        if demand.gpu in problem.survival and problem.survival[demand.gpu].share > 0
    )
    domains: list[tuple[int, tuple[int, ...]]] = []
    for number, index in enumerate(protected):
        demand = problem.demands[index]
        by_domain: dict[str, list[int]] = {}
        for position, pool in enumerate(problem.pools):
            if pool.gpu == demand.gpu and pool.gpus >= demand.gpus:
                by_domain.setdefault(pool.failure_domain, []).append(position)
        domains += [(number, tuple(members)) for members in by_domain.values()]
    rental = np.full(needs_rental_row.shape, -1)
    others = Layout(problem, rental, protected, tuple(domains)).row_count
    rental[needs_rental_row] = others + np.arange(needs_rental_row.sum())
    return Layout(problem, rental, protected, tuple(domains))


def _numbered(periods: int, **counts: int) -> dict[str, Ints]:
    blocks: dict[str, Any] = {}
    first = 0
    for name, count in counts.items():
        blocks[name] = first + np.arange(count * periods).reshape(count, periods)
        first += count * periods
    return blocks
