"""When nothing can be planned any more: hold what is needed now, and a share more. No prices but those of
machines, no forecast, no solver, and so nothing that could fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.identity import PoolId
from glowplug.pool.plan_file import DemandEntry
from glowplug.pool.planner.decision import Source
from glowplug.pool.planner.targets import Targets
from glowplug.pool.planning import wishes_of
from glowplug.pool.program.problem import Pool

_LATELY_S = 900.0


@dataclass(frozen=True)
class Need:
    """Slots of ``gpus`` GPUs of a kind."""

    gpu: str
    gpus: int
    slots: int


def needs(
    entries: Sequence[DemandEntry], demand: Sequence[DemandSeries], now_s: float, share: float
) -> list[Need]:
    """The most that was needed in the last quarter of an hour, ``share`` more and at least one slot more; no
    less than floors and schedules. The largest slots first.
    """
    found = []
    for entry, series in zip(entries, demand, strict=True):
        known = series.until(now_s)
        lately = known.slots[-max(1, round(_LATELY_S / known.step_s)) :]
        most = float(lately.max()) if len(lately) else 0.0
        wishes = wishes_of(entry)
        wished = [wishes.floor] + [
            schedule.slots for schedule in wishes.schedules if schedule.overlaps(now_s, now_s + _LATELY_S)
        ]
        slots = max(math.ceil(most * (1 + share)), math.ceil(most) + 1, math.ceil(max(wished)))
        found.append(Need(entry.gpu, entry.gpus, slots))
    return sorted(found, key=lambda need: (need.gpu, -need.gpus))


def fixed_buffer(pools: Sequence[Pool], wanted: Sequence[Need]) -> Targets:
    """Ask for what is missing where it is cheapest; what is more than needed goes, the dearest first."""
    counts = {pool.id: pool.held for pool in pools}
    ask: dict[PoolId, int] = {}
    for place, need in enumerate(wanted):
        short = _missing(pools, counts, wanted)[place]
        for pool in sorted(pools, key=lambda pool: _usd_per_slot(pool, need.gpus)):
            if short <= 0 or pool.gpu != need.gpu or pool.gpus < need.gpus:
                continue
            slots = pool.gpus // need.gpus
            room = min(pool.quota - counts[pool.id], pool.supply - ask.get(pool.id, 0))
            taken = max(0, min(math.ceil(short / slots), room))
            if taken:
                counts[pool.id] += taken
                ask[pool.id] = ask.get(pool.id, 0) + taken
                short -= taken * slots
    return Targets(Source.FIXED_BUFFER, ask, _unwanted(pools, counts, wanted))


def _unwanted(pools: Sequence[Pool], counts: dict[PoolId, int], wanted: Sequence[Need]) -> dict[PoolId, int]:
    found = {}
    left = dict(counts)
    allowed = _missing(pools, left, wanted)
    for pool in sorted(pools, key=lambda pool: -_usd_per_slot(pool, pool.gpus) / pool.gpus):
        low, high = 0, pool.up
        while low < high:
            middle = (low + high + 1) // 2
            if _missing(pools, {**left, pool.id: left[pool.id] - middle}, wanted) == allowed:
                low = middle
            else:
                high = middle - 1
        left[pool.id] -= low
        found[pool.id] = low
    return found


def _missing(pools: Sequence[Pool], counts: dict[PoolId, int], wanted: Sequence[Need]) -> list[int]:
    """Slots of each need that have no place, the largest placed first, as ``Plan.slots`` does."""
    gpus = np.array([pool.gpus for pool in pools], dtype=np.int64)
    machines = np.array([counts[pool.id] for pool in pools], dtype=np.int64)
    free = gpus * machines
    short = []
    for need in wanted:
        fits = np.array([pool.gpu == need.gpu and pool.gpus >= need.gpus for pool in pools], dtype=bool)
        blocks = np.where(fits, (free - machines * (gpus % need.gpus)) // need.gpus, 0).clip(min=0)
        taken = np.diff(np.minimum(np.cumsum(blocks), need.slots), prepend=0)
        free -= taken * need.gpus
        short.append(need.slots - int(taken.sum()))
    return short


def _usd_per_slot(pool: Pool, gpus: int) -> float:
    return float(pool.price_usd_per_h[0]) / max(pool.gpus // gpus, 1)
