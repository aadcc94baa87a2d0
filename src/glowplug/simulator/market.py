"""What becomes of a request for a machine, decided by the seed alone.

The n-th request of a pool meets the same luck under every policy, and outages come at the same time: so
policies are compared in one world, and a difference between them is theirs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowplug.pool.identity import Purchase
from glowplug.simulator.quantile_table import draw
from glowplug.simulator.scenario import Pool

_OUTAGE_STREAM = 2
_FATE_STREAM = 3


@dataclass(frozen=True)
class Fate:
    """Of a request: when it is settled, whether a machine comes, and when that is taken away (infinite:
    never).
    """

    settles_s: float
    is_granted: bool
    ends_s: float = math.inf
    reason: str = ""


@dataclass(frozen=True)
class Outage:
    """Nothing is granted between these moments."""

    begins_s: float
    ends_s: float


class Market:
    """Of one run. Every request of a pool counts, whoever makes it."""

    def __init__(self, pools: Sequence[Pool], seed: int, start_s: float, end_s: float) -> None:
        self._pools = pools
        self._seed = seed
        self._asked = [0] * len(pools)
        self.outages = tuple(
            _outages(pool, np.random.default_rng([seed, _OUTAGE_STREAM, index]), start_s, end_s)
            for index, pool in enumerate(pools)
        )

    def ask(self, index: int, held: int, now_s: float) -> Fate:
        """Of one more machine of a pool of which ``held`` are up or under way."""
        pool = self._pools[index]
        market = pool.market
        ordinal, self._asked[index] = self._asked[index], self._asked[index] + 1
        rng = np.random.default_rng([self._seed, _FATE_STREAM, index, ordinal])
        granted, lead, life = rng.random(3)
        refused_s = now_s + market.refusal_s
        if held >= min(market.capacity, pool.entry.quota):
            return Fate(refused_s, False, reason="quota" if held >= pool.entry.quota else "capacity")
        up_s = now_s + float(draw(market.lead_time_s, np.array([lead]))[0])
        outage = self._overlapping(index, now_s, up_s)
        if outage is not None:
            return Fate(max(refused_s, outage.begins_s), False, reason="outage")
        if granted >= market.grant_probability:
            return Fate(refused_s, False, reason="capacity")
        return Fate(up_s, True, self._end(index, up_s, life, rng))

    def _end(self, index: int, up_s: float, life: float, rng: np.random.Generator) -> float:
        pool = self._pools[index]
        rate = pool.market.interruptions_per_h
        ends_s = up_s - math.log1p(-life) * 3_600.0 / rate if rate > 0 else math.inf
        if pool.entry.purchase is not Purchase.SPOT:
            return ends_s
        for outage in self.outages[index]:
            if outage.begins_s >= ends_s:
                break
            if outage.begins_s > up_s and rng.random() < pool.market.outage_takes:
                return outage.begins_s
        return ends_s

    def _overlapping(self, index: int, start_s: float, end_s: float) -> Outage | None:
        outages = self.outages[index]
        place = bisect_right(outages, start_s, key=lambda outage: outage.ends_s)
        if place < len(outages) and outages[place].begins_s <= end_s:
            return outages[place]
        return None


def _outages(pool: Pool, rng: np.random.Generator, start_s: float, end_s: float) -> tuple[Outage, ...]:
    """Every outage of a pool, one after the other."""
    found = []
    per_s = pool.market.outages_per_day / 86_400.0
    now_s = start_s
    while per_s > 0:
        now_s += rng.exponential(1.0 / per_s)
        if now_s >= end_s:
            break
        until_s = now_s + rng.exponential(pool.market.outage_s)
        found.append(Outage(now_s, until_s))
        now_s = until_s
    return tuple(found)
