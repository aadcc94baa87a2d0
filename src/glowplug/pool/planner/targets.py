"""What a step aims at: a plan's first period, or, while there is no plan, what the last one said for now."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from glowplug.pool.identity import PoolId
from glowplug.pool.planner.decision import Source
from glowplug.pool.planner.solving import Solved
from glowplug.pool.planner.state import LastPlan, LaterAsk
from glowplug.pool.planning import Situation
from glowplug.pool.program.plan import Plan
from glowplug.pool.scarcity import ScarcityPrice

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Targets:
    """Machines to ask for, and machines up that are not wanted, by pool. ``unwanted`` None: leave it as it
    is. ``scarcity`` None: the last prices stand.
    """

    source: Source
    ask: dict[PoolId, int] = field(default_factory=dict)
    unwanted: dict[PoolId, int] | None = None
    last_plan: LastPlan | None = None
    scarcity: tuple[ScarcityPrice, ...] | None = None
    situation: Situation | None = None
    solved: Solved | None = None


def of_plan(situation: Situation, solved: Solved) -> Targets:
    """What a new plan says about its first period, and what it would do later if it had to stand."""
    plan = solved.whole
    pools, starts_s = plan.problem.pools, plan.problem.grid.starts_s
    asks = plan.values("req")
    later = tuple(
        LaterAsk(pools[index].id, float(starts_s[period]), _up(asks[index, period]))
        for index, period in np.argwhere(asks > _TOLERANCE).tolist()
        if period > 0
    )
    return Targets(
        Source.PLAN,
        {pool.id: _up(plan.ask[index]) for index, pool in enumerate(pools)},
        {pool.id: math.floor(plan.give_back[index] + _TOLERANCE) for index, pool in enumerate(pools)},
        LastPlan(situation.now_s, 0.0, later),
        scarcity_of(solved.relaxed),
        situation,
        solved,
    )


def of_last_plan(last: LastPlan, now_s: float) -> Targets:
    """What the last good plan wanted to ask for between the step before and now. What drains goes on to."""
    until_s = now_s - last.made_at_s
    ask: dict[PoolId, int] = {}
    for later in last.asks:
        if last.done_until_s < later.in_s <= until_s:
            ask[later.pool] = ask.get(later.pool, 0) + later.machines
    done_s = max(last.done_until_s, until_s)
    return Targets(Source.LAST_PLAN, ask, None, replace(last, done_until_s=done_s))


def scarcity_of(relaxed: Plan) -> tuple[ScarcityPrice, ...]:
    """The prices of the first period, one for each class of demand."""
    return tuple(
        ScarcityPrice(
            demand.gpu,
            demand.gpus,
            float(relaxed.scarcity_usd_per_gpu_h[index, 0]),
            float(relaxed.slot_usd_per_h[index, 0]),
        )
        for index, demand in enumerate(relaxed.problem.demands)
    )


def _up(machines: float) -> int:
    """Of a plan in fractions, too: a part of a machine that is wanted is a machine."""
    return math.ceil(float(machines) - _TOLERANCE)
