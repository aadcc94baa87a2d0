"""What happens to machines by themselves: when those asked for arrive, who survives, who is still locked.

Arrays over pools (p), periods (t) and atoms of lead times (a), made without a loop over periods wherever
numbers depend on their own period only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glowplug.pool.program.grid import Floats, Ints
from glowplug.pool.program.problem import Problem


@dataclass(frozen=True, eq=False)
class Dynamics:
    """``arrival[p, u, a]``: the first period that starts no sooner than an atom of a request made in ``u``
    comes (T: after the end). ``is_late[p, u]``: all of it comes in the same periods as what was asked for
    before.

    ``unlocks[p, v]``: the first period in which what arrived in ``v`` may be given back.
    """

    survive: Floats
    pending: Floats
    locked: Floats
    keep: Floats
    arrival: Ints
    weight: Floats
    is_late: NDArray[np.bool_]
    unlocks: Ints
    hazard_per_h: Floats
    up: Floats

    def survival(self, pools: Ints, since: Ints, until: Ints, starts_s: Floats) -> Floats:
        """The share of machines of ``pools`` up in period ``since`` that are still up in ``until``."""
        hours = (starts_s[until] - starts_s[since]) / 3600.0
        return np.asarray(np.exp(-self.hazard_per_h[pools] * hours))


def dynamics(problem: Problem) -> Dynamics:
    """Of all pools at once."""
    grid, pools = problem.grid, problem.pools
    starts_s = grid.starts_s
    hazard = np.array([pool.interruptions_per_h for pool in pools])
    steps_h = np.diff(starts_s, prepend=0.0) / 3600.0
    survive = np.exp(-np.outer(hazard, steps_h))
    up = np.array([pool.up for pool in pools], dtype=np.float64)
    pending = _pending(problem)
    keep = np.empty_like(pending)
    before = up
    for period in range(len(grid)):
        before = keep[:, period] = survive[:, period] * before + pending[:, period]
    arrival, weight = _arrivals(problem)
    rental_s = np.array([pool.min_rental_s for pool in pools])
    unlocks = grid.first_period_from(starts_s[None, :] + rental_s[:, None])
    return Dynamics(
        survive, pending, _locked(problem, hazard), keep, arrival, weight, _late(arrival), unlocks, hazard, up
    )


def rental_rows(problem: Problem, moves: Dynamics) -> NDArray[np.bool_]:
    """Where minimum rental can bind: something arrived in the period before, or earlier, is still young, or
    locked.

    In period 0 it is a bound, not a row.
    """
    periods = np.arange(1, len(problem.grid))
    needed = moves.locked > 0
    needed[:, 1:] |= moves.unlocks[:, :-1] > periods[None, :]
    needed[:, :1] = False
    return np.asarray(needed)


def _arrivals(problem: Problem) -> tuple[Ints, Floats]:
    grid, pools = problem.grid, problem.pools
    atoms = max((len(pool.lead_time) for pool in pools), default=1) or 1
    lead_s = np.full((len(pools), atoms), np.inf)
    weight = np.zeros((len(pools), atoms))
    for index, pool in enumerate(pools):
        for place, atom in enumerate(pool.lead_time):
            lead_s[index, place], weight[index, place] = atom.lead_time_s, atom.weight
    return grid.first_period_from(grid.starts_s[None, :, None] + lead_s[:, None, :]), weight


def _late(arrival: Ints) -> NDArray[np.bool_]:
    late = np.zeros(arrival.shape[:2], dtype=bool)
    late[:, 1:] = (arrival[:, 1:] == arrival[:, :-1]).all(axis=2)
    return late


def _pending(problem: Problem) -> Floats:
    arriving = np.zeros((len(problem.pools), len(problem.grid) + 1))
    for index, pool in enumerate(problem.pools):
        if pool.pending:
            periods = problem.grid.first_period_from(np.array([pending.in_s for pending in pool.pending]))
            np.add.at(arriving[index], periods, [pending.machines for pending in pool.pending])
    return arriving[:, :-1]


def _locked(problem: Problem, hazard: Floats) -> Floats:
    starts_s = problem.grid.starts_s
    locked = np.zeros((len(problem.pools), len(problem.grid)))
    for index, pool in enumerate(problem.pools):
        if pool.locked_s:
            still = (np.array(pool.locked_s)[:, None] > starts_s[None, :]).sum(axis=0)
            locked[index] = still * np.exp(-hazard[index] * starts_s / 3600.0)
    return locked
