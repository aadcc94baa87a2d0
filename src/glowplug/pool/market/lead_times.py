"""How long a request takes to be granted, and whether it is: from censored data, and little for each pool.

Requests still under way are observations too ("at least so long"): Kaplan-Meier (scipy's) counts them. A pool
with few grants borrows from pools that are alike: its own curve is mixed with theirs, ever wider, in
proportion to what it has seen, and with a prior at last.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import CensoredData, ecdf

from glowplug.pool.identity import PoolId
from glowplug.pool.market.history import Life, kin

Floats = NDArray[np.float64]

BORROWED_WEIGHT = 8.0
"""So many grants of its own count as much as what a group borrows from the next wider one."""


@dataclass(frozen=True, eq=False)
class LeadTimes:
    """A distribution over ascending ``times_s``; ``shares`` add up to 1. ``grant_probability``: that it comes
    at all.
    """

    times_s: Floats
    shares: Floats
    grant_probability: float
    grants: int = 0
    """Observed in the pool itself."""

    def quantile_s(self, share: float) -> float:
        """By when so large a share of the grants has come, seconds."""
        place = int(np.searchsorted(np.cumsum(self.shares), share - 1e-12))
        return float(self.times_s[min(place, len(self.times_s) - 1)])

    def atoms(self, count: int = 4) -> list[tuple[float, float]]:
        """``count`` lead times (s), means of equal shares of the grants, each with its chance to come."""
        ends = np.cumsum(self.shares)
        edges = np.linspace(0, ends[-1], count + 1)
        found = []
        for low, high in itertools.pairwise(edges):
            inside = np.clip(np.minimum(ends, high) - np.maximum(ends - self.shares, low), 0, None)
            mean_s = float(inside @ self.times_s / inside.sum())
            found.append((mean_s, self.grant_probability / count))
        return found

    def remaining(self, waited_s: float) -> LeadTimes:
        """Of a request that has waited so long: what is to come. Later than ever seen: as long again."""
        later = self.times_s > waited_s
        left = float(self.shares[later].sum())
        failing = 1 - self.grant_probability
        if left <= 1e-9:
            return LeadTimes(
                np.array([max(waited_s, 1.0)]), np.ones(1), self.grant_probability / 2, self.grants
            )
        chance = self.grant_probability * left / (self.grant_probability * left + failing)
        return LeadTimes(self.times_s[later] - waited_s, self.shares[later] / left, chance, self.grants)


PRIOR = LeadTimes(np.array([600.0, 780.0, 1_020.0, 1_800.0]), np.full(4, 0.25), 0.9)
"""Before anything is known: 10 to 30 minutes, nine times out of ten."""


class LeadTimeBook:
    """Lead times of every pool, from lives of machines."""

    def __init__(self, lives: Iterable[Life], prior: LeadTimes = PRIOR) -> None:
        self._prior = prior
        self._groups: dict[tuple[str, ...], list[Life]] = {}
        for life in lives:
            for group in kin(life.pool, life.gpu):
                self._groups.setdefault(group, []).append(life)

    def of(self, pool: PoolId, gpu: str) -> LeadTimes:
        """What is known of a pool, and where that is little, of those like it."""
        known = self._prior
        for group in reversed(kin(pool, gpu)):
            known = _mixed(self._groups.get(group, []), known)
        return known


def _mixed(observed: list[Life], wider: LeadTimes) -> LeadTimes:
    settled = sum(not life.is_awaited for life in observed)
    grants = sum(life.is_granted for life in observed)
    chance = (grants + BORROWED_WEIGHT * wider.grant_probability) / (settled + BORROWED_WEIGHT)
    if not grants:
        return LeadTimes(wider.times_s, wider.shares, chance)
    times_s, shares = kaplan_meier(
        # A request that failed would have come later, if ever: for the time of grants it is censored.
        np.array([life.lead_time_s for life in observed]),
        np.array([life.is_granted for life in observed]),
    )
    unresolved = 1.0 - shares.sum()
    own = grants / (grants + BORROWED_WEIGHT)
    # What no grant resolved lies after the last observation: where the wider group's later times are.
    later = wider.shares * (wider.times_s > times_s[-1])
    beyond = later / later.sum() if later.sum() > 1e-9 else wider.shares
    beyond_s = wider.times_s if later.sum() > 1e-9 else np.maximum(wider.times_s, times_s[-1])
    all_s = np.concatenate((times_s, beyond_s, wider.times_s))
    all_shares = np.concatenate((own * shares, own * unresolved * beyond, (1 - own) * wider.shares))
    unique_s, place = np.unique(all_s, return_inverse=True)
    return LeadTimes(unique_s, np.bincount(place, all_shares).astype(np.float64), chance, grants)


def kaplan_meier(durations_s: Floats, is_event: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Ascending times and the share of events at each; shares add up to less than 1 if the longest was
    censored.
    """
    data = CensoredData(uncensored=durations_s[is_event], right=durations_s[~is_event])
    survival = ecdf(data).sf
    steps = -np.diff(survival.probabilities, prepend=1.0)
    happened = steps > 0
    return np.asarray(survival.quantiles)[happened], np.asarray(steps)[happened]
