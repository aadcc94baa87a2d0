"""Prices as they were known at a moment: no look-ahead, and no price without its age."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from glowplug.pool.identity import PoolId

MAX_USD_PER_GPU_H = 1_000.0
"""Ten times the dearest GPU on sale: beyond this a price is in cents, or of a month."""


@dataclass(frozen=True)
class Offer:
    """One price of one pool: ``usd_per_h`` for a machine with ``gpus`` GPUs, from ``at_s`` (Unix time) on."""

    pool: PoolId
    gpu: str
    gpus: int
    usd_per_h: float
    at_s: float


@dataclass(frozen=True)
class Refusal:
    """A row that is no offer, and why. ``line`` counts from 1, the header included."""

    line: int
    why: str


@dataclass(frozen=True)
class Quote:
    """An offer as seen at a moment, ``age_s`` after it was made."""

    offer: Offer
    age_s: float


def price_problem(usd_per_h: float, gpus: int) -> str | None:
    """Why this cannot be the price of a machine that is for rent, per hour; None if it can."""
    if not math.isfinite(usd_per_h):
        return f"{usd_per_h} is not a price"
    if usd_per_h <= 0:
        return f"a machine for rent does not cost {usd_per_h:g} USD an hour"
    if usd_per_h > MAX_USD_PER_GPU_H * gpus:
        return f"{usd_per_h:g} USD an hour for {gpus} GPUs is absurd"
    return None


class PriceBook:
    """The price series of many pools. Offers may come in any order; of two at the same moment the later
    counts.
    """

    def __init__(self, offers: Iterable[Offer] = ()) -> None:
        self._series: dict[PoolId, list[Offer]] = {}
        self._times_s: dict[PoolId, list[float]] = {}
        self.add(offers)

    def add(self, offers: Iterable[Offer]) -> None:
        """Take in more prices."""
        touched = set()
        for offer in offers:
            self._series.setdefault(offer.pool, []).append(offer)
            touched.add(offer.pool)
        for pool in touched:
            series = self._series[pool]
            series.sort(key=lambda offer: offer.at_s)
            self._times_s[pool] = [offer.at_s for offer in series]

    @property
    def pools(self) -> list[PoolId]:
        """Every pool that ever had a price, sorted."""
        return sorted(self._series)

    def series(self, pool: PoolId) -> list[Offer]:
        """All prices of a pool, oldest first."""
        return list(self._series.get(pool, ()))

    def as_of(self, pool: PoolId, at_s: float) -> Quote | None:
        """The last price known at Unix time ``at_s``; None before the first one."""
        place = bisect_right(self._times_s.get(pool, []), at_s)
        if not place:
            return None
        offer = self._series[pool][place - 1]
        return Quote(offer, at_s - offer.at_s)
