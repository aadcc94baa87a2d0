"""How often machines are taken away: events over machine-hours, with an interval that says how little is
known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scipy.stats import chi2

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.history import Life, kin

BORROWED_HOURS = 24.0
"""So many machine-hours of its own count as much as what a group borrows from the next wider one."""
PRIOR_PER_H = {
    Purchase.SPOT: 0.05,
    Purchase.ON_DEMAND: 0.0005,
    Purchase.RESERVED: 0.0005,
    Purchase.OWN: 0.0001,
}
"""Before anything is known: a spot machine lasts a day, any other for months."""


@dataclass(frozen=True)
class Hazard:
    """Interruptions per machine-hour: ``per_h`` is to be planned with, ``low``..``high`` is the exact 95 %
    interval (Garwood) of what was seen in the pool itself.
    """

    per_h: float
    low_per_h: float
    high_per_h: float
    interruptions: int
    machine_hours: float


class HazardBook:
    """Hazards of every pool, from lives of machines."""

    def __init__(self, lives: Iterable[Life]) -> None:
        self._seen: dict[tuple[str, ...], tuple[int, float]] = {}
        for life in lives:
            for group in kin(life.pool, life.gpu):
                count, hours = self._seen.get(group, (0, 0.0))
                self._seen[group] = (count + life.is_interrupted, hours + life.up_s / 3600.0)

    def of(self, pool: PoolId, gpu: str) -> Hazard:
        """What is known of a pool, and where that is little, of those like it."""
        per_h = PRIOR_PER_H[pool.purchase]
        count, hours = 0, 0.0
        for group in reversed(kin(pool, gpu)):
            count, hours = self._seen.get(group, (0, 0.0))
            per_h = (count + BORROWED_HOURS * per_h) / (hours + BORROWED_HOURS)
        low, high = interval_per_h(count, hours)
        return Hazard(per_h, low, high, count, hours)


def interval_per_h(count: int, hours: float, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a Poisson rate; up to infinity when nothing was watched."""
    if hours <= 0:
        return 0.0, float("inf")
    tail = (1 - confidence) / 2
    low = float(chi2.ppf(tail, 2 * count)) / 2 if count else 0.0
    return low / hours, float(chi2.ppf(1 - tail, 2 * (count + 1))) / 2 / hours
