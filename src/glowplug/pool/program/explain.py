"""Why a plan is what it is: which constraint binds now, and what one more of each thing is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from glowplug.pool.program.assembly import obtainable
from glowplug.pool.program.plan import Plan
from glowplug.pool.program.problem import Demand, Pool

_EPSILON = 1e-6
_WORTH_A_CENT_USD = 0.005


@dataclass(frozen=True)
class KindWorth:
    """A demand class now. ``gpu_usd_per_h`` is the scarcity price; ``peak_*``: a slot's highest, and when."""

    gpu: str
    gpus: int
    gpu_usd_per_h: float
    slot_usd_per_h: float
    peak_slot_usd_per_h: float
    peak_in_s: float


@dataclass(frozen=True)
class PoolWorth:
    """A pool now. ``one_more_gpu_usd``: what one more GPU of it, here now, would save over the horizon.

    ``limits``: which constraints keep the plan from more, or from less, in words.
    """

    pool: str
    one_more_gpu_usd: float
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Of one plan."""

    kinds: tuple[KindWorth, ...]
    pools: tuple[PoolWorth, ...]
    one_more_budget_usd_per_h: float
    """What one more USD per hour of budget would save over the horizon; 0 without a budget that binds."""
    exposed_gpus: float
    """GPUs short now if the worst failure domain is lost."""


def explain(plan: Plan) -> Explanation:
    """Read the solution's duals; those of the linear program: plans in whole machines have none."""
    budgeted = plan.problem.budget_usd_per_h is not None
    exposed = plan.values("exposed")
    return Explanation(
        tuple(_kind(plan, index, demand) for index, demand in enumerate(plan.problem.demands)),
        tuple(_pool(plan, index, pool) for index, pool in enumerate(plan.problem.pools)),
        float(-plan.duals("budget").sum()) if budgeted else 0.0,
        float(exposed[:, 0].max()) if exposed.size else 0.0,
    )


def _kind(plan: Plan, index: int, demand: Demand) -> KindWorth:
    worth = plan.slot_usd_per_h[index]
    peak = int(np.argmax(worth >= worth.max() - _EPSILON))
    return KindWorth(
        demand.gpu,
        demand.gpus,
        float(plan.scarcity_usd_per_gpu_h[index, 0]),
        float(worth[0]),
        float(worth[peak]),
        float(plan.problem.grid.starts_s[peak]),
    )


def _pool(plan: Plan, index: int, pool: Pool) -> PoolWorth:
    return PoolWorth(
        str(pool.id), float(plan.machine_usd[index]) / pool.gpus, tuple(_limits(plan, index, pool))
    )


def _limits(plan: Plan, index: int, pool: Pool) -> list[str]:
    asked = float(plan.ask[index])
    request_usd = float(plan.reduced_costs("req")[index, 0])
    up_usd = float(np.minimum(plan.reduced_costs("up")[index], 0.0).sum())
    found = []
    if request_usd < -_WORTH_A_CENT_USD or up_usd < -_WORTH_A_CENT_USD:
        saved_usd = -min(request_usd, up_usd)
        found.append(f"{_bound(plan, index, pool)}: one more machine of it would save {saved_usd:.2f} USD")
    rental = plan.assembled.layout.rows("rental")[index]
    rental_usd = sum(float(-plan.solution.row_duals[row]) for row in rental if row >= 0)
    locked = (
        pool.up > 0 and plan.assembled.program.upper[plan.assembled.layout.columns("rel")[index, 0]] < pool.up
    )
    release_usd = float(plan.reduced_costs("rel")[index, 0])
    if rental_usd > _WORTH_A_CENT_USD or (locked and release_usd < -_WORTH_A_CENT_USD):
        found.append("minimum rental: machines are kept for longer than they pay")
    if asked <= _EPSILON and request_usd > _WORTH_A_CENT_USD:
        found.append(f"price: a machine asked for now would cost {request_usd:.2f} USD more than it saves")
    return found


def _bound(plan: Plan, index: int, pool: Pool) -> str:
    allowed = float(obtainable(plan.problem)[index, 0])
    return f"quota of {pool.quota}" if allowed >= pool.quota else f"supply of {pool.supply} more"
