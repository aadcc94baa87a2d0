"""The formulation of ``docs/pools.md`` as sparse arrays, constraint by constraint, each without a Python loop
over periods.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array

from glowplug.pool.program.dynamics import Dynamics, dynamics, rental_rows
from glowplug.pool.program.grid import Floats, Ints
from glowplug.pool.program.layout import Layout, lay_out
from glowplug.pool.program.linear import LinearProgram
from glowplug.pool.program.problem import Problem


@dataclass(frozen=True, eq=False)
class Assembled:
    """The program, and where everything is in it."""

    program: LinearProgram
    layout: Layout
    dynamics: Dynamics


@dataclass(eq=False)
class _Entries:
    """Coefficients of the matrix as they come; equal places are added up."""

    rows: list[Ints] = field(default_factory=list)
    columns: list[Ints] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)

    def add(self, rows: Ints, columns: Ints, values: Floats | float) -> None:
        """All three broadcast to the shape of ``columns``."""
        self.rows.append(np.broadcast_to(rows, columns.shape).ravel())
        self.columns.append(columns.ravel())
        self.values.append(np.broadcast_to(values, columns.shape).ravel())


def assemble(problem: Problem) -> Assembled:
    """Build the program."""
    moves = dynamics(problem)
    layout = lay_out(problem, rental_rows(problem, moves))
    entries = _Entries()
    row_lower = np.full(layout.row_count, -np.inf)
    row_upper = np.full(layout.row_count, np.inf)
    _inventory(layout, moves, entries, row_lower, row_upper)
    _rental(layout, moves, entries, row_upper)
    _cover(layout, entries, row_lower)
    _domains(layout, entries, row_lower, row_upper)
    _budget(layout, entries, row_upper)
    matrix = coo_array(
        (np.concatenate(entries.values), (np.concatenate(entries.rows), np.concatenate(entries.columns))),
        shape=(layout.row_count, layout.column_count),
    ).tocsc()
    lower = np.zeros(layout.column_count)
    program = LinearProgram(_cost(layout), lower, _upper(layout, moves), matrix, row_lower, row_upper)
    return Assembled(program, layout, moves)


def block_gpus(problem: Problem) -> Floats:
    """``[c, p]``: GPUs that a machine of a pool offers in blocks of a class' size; 0 for another kind."""
    sizes = np.array([demand.gpus for demand in problem.demands])[:, None]
    gpus = np.array([pool.gpus for pool in problem.pools])[None, :]
    is_kind = np.array(
        [[pool.gpu == demand.gpu for pool in problem.pools] for demand in problem.demands], dtype=bool
    ).reshape(len(problem.demands), len(problem.pools))
    return np.asarray(np.where(is_kind, gpus // sizes * sizes, 0), dtype=np.float64)


def needed_gpus(problem: Problem) -> Floats:
    """``[c, t]``: GPUs that must come in blocks of a class' size or greater ones (``need`` in the docs)."""
    slots = np.array([demand.most_slots for demand in problem.demands]).reshape(-1, len(problem.grid))
    return np.asarray(nested_sizes(problem) @ slots)


def nested_sizes(problem: Problem) -> Floats:
    """``[c, c']``: the GPUs of a slot of ``c'`` where it counts in the cover row of ``c``; else 0."""
    return np.array(
        [
            [
                other.gpus if other.gpu == row.gpu and other.gpus >= row.gpus else 0
                for other in problem.demands
            ]
            for row in problem.demands
        ],
        dtype=np.float64,
    ).reshape(len(problem.demands), len(problem.demands))


def _inventory(
    layout: Layout, moves: Dynamics, entries: _Entries, row_lower: Floats, row_upper: Floats
) -> None:
    rows, up, req, rel = (
        layout.rows("inventory"), layout.columns("up"), layout.columns("req"), layout.columns("rel"),
    )  # fmt: skip
    entries.add(rows, up, 1.0)
    entries.add(rows[:, 1:], up[:, :-1], -moves.survive[:, 1:])
    entries.add(rows, rel, 1.0)
    pools, requested, atoms = _arriving(moves)
    entries.add(
        rows[pools, moves.arrival[pools, requested, atoms]],
        req[pools, requested],
        -moves.weight[pools, atoms],
    )
    given = moves.pending.copy()
    given[:, 0] += moves.up
    row_lower[rows] = row_upper[rows] = given


def _arriving(moves: Dynamics) -> tuple[Ints, Ints, Ints]:
    """Pool, period of the request and atom of everything that arrives before the end."""
    periods = moves.arrival.shape[1]
    pools, requested, atoms = np.nonzero((moves.arrival < periods) & (moves.weight[:, None, :] > 0))
    return pools, requested, atoms


def _rental(layout: Layout, moves: Dynamics, entries: _Entries, row_upper: Floats) -> None:
    rows = layout.rows("rental")
    starts_s = layout.problem.grid.starts_s
    pools, periods = np.nonzero(rows >= 0)
    if not len(pools):
        return
    here = rows[pools, periods]
    entries.add(here, layout.columns("rel")[pools, periods], 1.0)
    entries.add(here, layout.columns("up")[pools, periods - 1], -moves.survive[pools, periods])
    row_upper[here] = -moves.locked[pools, periods]

    pools, requested, atoms = _arriving(moves)
    arrived = moves.arrival[pools, requested, atoms]
    source, young = _young(arrived, moves.unlocks[pools, arrived], len(starts_s))
    pools, requested, atoms, arrived = pools[source], requested[source], atoms[source], arrived[source]
    entries.add(
        rows[pools, young],
        layout.columns("req")[pools, requested],
        moves.weight[pools, atoms] * moves.survival(pools, arrived, young, starts_s),
    )
    pools, arrived = np.nonzero(moves.pending > 0)
    source, young = _young(arrived, moves.unlocks[pools, arrived], len(starts_s))
    pools, arrived = pools[source], arrived[source]
    still = moves.pending[pools, arrived] * moves.survival(pools, arrived, young, starts_s)
    np.subtract.at(row_upper, rows[pools, young], still)


def _young(arrived: Ints, unlocked: Ints, periods: int) -> tuple[Ints, Ints]:
    """For each arrival, the periods after it in which it may not be given back: (which arrival, period)."""
    counts = np.maximum(np.minimum(unlocked, periods) - arrived - 1, 0)
    source = np.repeat(np.arange(len(arrived)), counts)
    within = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    return source, arrived[source] + 1 + within


def _cover(layout: Layout, entries: _Entries, row_lower: Floats) -> None:
    problem, rows = layout.problem, layout.rows("cover")
    blocks = block_gpus(problem)
    classes, pools = np.nonzero(blocks)
    entries.add(rows[classes], layout.columns("up")[pools], blocks[classes, pools][:, None])
    sizes = nested_sizes(problem)
    classes, missing = np.nonzero(sizes)
    for name in ("miss1", "miss2"):
        entries.add(rows[classes], layout.columns(name)[missing], sizes[classes, missing][:, None])
    classes, rare = np.nonzero(sizes[:, layout.rare])
    entries.add(rows[classes], layout.columns("rare")[rare], sizes[:, layout.rare][classes, rare][:, None])
    row_lower[rows] = needed_gpus(problem)


def _domains(layout: Layout, entries: _Entries, row_lower: Floats, row_upper: Floats) -> None:
    problem = layout.problem
    if not layout.protected:
        return
    blocks, up, worst = block_gpus(problem), layout.columns("up"), layout.columns("worst")
    rows = layout.rows("worst")
    for row, (number, members) in zip(rows, layout.domains, strict=True):
        pools = np.array(members)
        entries.add(row[None, :], up[pools], blocks[layout.protected[number], pools][:, None])
        entries.add(row, worst[number], -1.0)
    row_upper[rows] = 0.0
    protected, rows = np.array(layout.protected), layout.rows("domain")
    numbers, pools = np.nonzero(blocks[protected])
    entries.add(rows[numbers], up[pools], blocks[protected[numbers], pools][:, None])
    entries.add(rows, worst, -1.0)
    entries.add(rows, layout.columns("exposed"), 1.0)
    row_lower[rows] = _to_survive(layout)


def _to_survive(layout: Layout) -> Floats:
    shares = [layout.problem.survival[layout.problem.demands[index].gpu].share for index in layout.protected]
    return np.array(shares)[:, None] * needed_gpus(layout.problem)[list(layout.protected)]


def _budget(layout: Layout, entries: _Entries, row_upper: Floats) -> None:
    if layout.problem.budget_usd_per_h is None:
        return
    rows = layout.rows("budget")
    entries.add(rows, layout.columns("up"), _prices(layout.problem))
    entries.add(rows, layout.columns("over"), -1.0)
    row_upper[rows] = layout.problem.budget_usd_per_h


def _prices(problem: Problem) -> Floats:
    return np.array([pool.price_usd_per_h for pool in problem.pools]).reshape(-1, len(problem.grid))


def _cost(layout: Layout) -> Floats:
    problem, hours = layout.problem, layout.problem.grid.hours
    cost = np.zeros(layout.column_count)

    def each(name: str, usd: list[float]) -> None:
        cost[layout.columns(name)] = np.array(usd).reshape(-1, 1)

    def each_hour(name: str, usd: list[float]) -> None:
        cost[layout.columns(name)] = np.array(usd).reshape(-1, 1) * hours

    pools, demands = problem.pools, problem.demands
    harm = np.array([pool.interruptions_per_h * pool.interruption_usd for pool in pools]).reshape(-1, 1)
    cost[layout.columns("up")] = (_prices(problem) + harm) * hours
    each("req", [pool.request_usd for pool in pools])
    each("rel", [pool.release_usd for pool in pools])
    each_hour("miss1", [demand.tolerated_miss_usd_per_h for demand in demands])
    each_hour("miss2", [demand.miss_usd_per_h for demand in demands])
    each_hour("rare", [rare.chance * demand.miss_usd_per_h for demand in demands for rare in demand.rare])
    kinds = [demands[index].gpu for index in layout.protected]
    each_hour("exposed", [problem.survival[kind].exposed_usd_per_gpu_h for kind in kinds])
    if problem.budget_usd_per_h is not None:
        each_hour("over", [problem.over_budget_usd_per_usd])
    return cost


def obtainable(problem: Problem) -> Floats:
    """``[p, t]``: how many machines quota and market are believed to allow; fewer than are held, perhaps."""
    starts_h = problem.grid.starts_s / 3600.0
    quota = np.array([pool.quota for pool in problem.pools], dtype=np.float64)[:, None]
    held = np.array([pool.held for pool in problem.pools], dtype=np.float64)[:, None]
    supply = np.array([pool.supply for pool in problem.pools], dtype=np.float64)[:, None]
    growth = np.array([pool.supply_per_h for pool in problem.pools])[:, None]
    # Whole machines: half a machine of supply is none yet.
    return np.asarray(np.minimum(quota, held + np.floor(supply + growth * starts_h[None, :])))


def _upper(layout: Layout, moves: Dynamics) -> Floats:
    problem = layout.problem
    upper = np.full(layout.column_count, np.inf)
    allowed = obtainable(problem)
    held = np.array([pool.held for pool in problem.pools], dtype=np.float64)[:, None]
    upper[layout.columns("up")] = np.maximum(moves.keep, allowed)
    upper[layout.columns("req")] = np.where(moves.is_late, 0.0, np.maximum(allowed - held, 0.0))
    upper[layout.columns("rel")[:, 0]] = moves.up - moves.locked[:, 0]
    slots = np.array([demand.slots for demand in problem.demands]).reshape(-1, len(problem.grid))
    tolerated = np.array([demand.tolerated for demand in problem.demands]).reshape(-1, 1)
    upper[layout.columns("miss1")] = tolerated * slots
    upper[layout.columns("miss2")] = slots - tolerated * slots
    for columns, rare in zip(
        layout.columns("rare"), (rare for demand in problem.demands for rare in demand.rare), strict=True
    ):
        upper[columns] = rare.slots
    if layout.protected:
        upper[layout.columns("exposed")] = _to_survive(layout)
    if problem.budget_usd_per_h is not None:
        kept = (_prices(problem) * moves.keep).sum(axis=0)
        upper[layout.columns("over")] = np.maximum(kept - problem.budget_usd_per_h, 0.0)
    return upper
