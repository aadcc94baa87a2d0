"""What prices and the past say of each pool at one moment, as the program takes it.

A price that is missing or too old buys nothing: such a pool is left out, or, when it has machines up, keeps
its last price and may not grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from glowplug.pool.identity import PoolId
from glowplug.pool.market.hazards import HazardBook
from glowplug.pool.market.history import Life
from glowplug.pool.market.lead_times import LeadTimeBook, LeadTimes
from glowplug.pool.market.prices import PriceBook, price_problem
from glowplug.pool.market.supply import supply_cap
from glowplug.pool.plan_file import PoolEntry
from glowplug.pool.program.problem import Atom, Pending, Pool
from glowplug.types.errors import InvalidInput

_GRACE = 2.0


@dataclass(frozen=True)
class Holding:
    """What there is of a pool. ``locked_s``: seconds of minimum rental left, of machines up; ``waited_s``:
    how long each request under way has been waited for; ``starting_s``: the same of machines that were
    granted and start; ``checking``: machines that are up and not yet ready.

    ``leaving``: machines that are no longer planned with and still take quota. ``usd_per_h``, ``gpu`` and
    ``gpus`` are what its machines were rented at, for when no price is known any more.
    """

    up: int = 0
    locked_s: tuple[float, ...] = ()
    waited_s: tuple[float, ...] = ()
    starting_s: tuple[float, ...] = ()
    checking: int = 0
    leaving: int = 0
    usd_per_h: float | None = None
    gpu: str | None = None
    gpus: int | None = None

    @property
    def outstanding(self) -> int:
        """Machines that are to come."""
        return len(self.waited_s) + len(self.starting_s) + self.checking


class Estimates:
    """Lead times, grants, interruptions and supply, from lives of machines."""

    def __init__(self, lives: Iterable[Life]) -> None:
        known = tuple(lives)
        self.lead_times = LeadTimeBook(known)
        self.hazards = HazardBook(known)
        self._by_pool: dict[PoolId, list[Life]] = {}
        for life in known:
            self._by_pool.setdefault(life.pool, []).append(life)

    def lives_of(self, pool: PoolId) -> list[Life]:
        """Of machines of this pool, oldest request first."""
        return self._by_pool.get(pool, [])


@dataclass(frozen=True)
class Offered:
    """What a machine of a pool is and costs; ``why`` it may not be bought, if it may not."""

    usd_per_h: float | None
    gpu: str | None
    gpus: int | None
    why: str | None = None


class MarketNow:
    """Prices and estimates at ``now_s``, Unix time."""

    def __init__(self, prices: PriceBook, max_price_age_s: float, estimates: Estimates, now_s: float) -> None:
        self._prices = prices
        self._max_price_age_s = max_price_age_s
        self._estimates = estimates
        self._now_s = now_s

    def pool(self, entry: PoolEntry, holding: Holding, periods: int) -> tuple[Pool | None, str | None]:
        """The pool as the program takes it; and why it is left out (None) or may not grow. Raises
        InvalidInput.
        """
        offered = self.offered(entry, holding)
        if offered.usd_per_h is None or offered.gpu is None or offered.gpus is None:
            if holding.up:
                raise InvalidInput(
                    f"{entry.id} has {holding.up} machines up, but {offered.why}.",
                    remedy="Give it price_usd_per_h, gpu and gpus.",
                    pool=str(entry.id),
                )
            return None, offered.why
        gpu, gpus = offered.gpu, offered.gpus
        lead_times = self._lead_times(entry, gpu)
        cap = supply_cap(self._estimates.lives_of(entry.id), entry.quota)
        pool = Pool(
            entry.id, gpu, gpus, np.full(periods, offered.usd_per_h), entry.failure_domain,
            lead_time=tuple(Atom(*atom) for atom in lead_times.atoms()),
            interruptions_per_h=self._estimates.hazards.of(entry.id, gpu).per_h
            if entry.interruptions_per_h is None
            else entry.interruptions_per_h,
            up=holding.up, locked_s=holding.locked_s,
            pending=_pending(entry, holding, lead_times),
            outstanding=holding.outstanding, quota=max(entry.quota - holding.leaving, 0),
            supply=max(cap.allowed(self._now_s) - holding.outstanding, 0), supply_per_h=cap.growth_per_h,
            min_rental_s=entry.min_rental_s, request_usd=entry.request_usd,
            release_usd=entry.release_usd, interruption_usd=entry.interruption_usd,
        )  # fmt: skip
        if offered.why:
            return replace(pool, quota=min(pool.quota, pool.held)), offered.why
        return pool, None

    def _lead_times(self, entry: PoolEntry, gpu: str) -> LeadTimes:
        if entry.lead_time_s is None:
            return self._estimates.lead_times.of(entry.id, gpu)
        return LeadTimes(np.array([entry.lead_time_s]), np.ones(1), entry.grant_probability)

    def offered(self, entry: PoolEntry, holding: Holding) -> Offered:
        """What a machine of it is and costs now. Raises InvalidInput where file and price files disagree."""
        if entry.price_usd_per_h is not None and entry.gpu and entry.gpus:
            return Offered(entry.price_usd_per_h, entry.gpu, entry.gpus)
        held = Offered(holding.usd_per_h, entry.gpu or holding.gpu, entry.gpus or holding.gpus)
        quote = self._prices.as_of(entry.id, self._now_s)
        if quote is None:
            return replace(held, why="no price in the price files")
        price = quote.offer.usd_per_h if entry.price_usd_per_h is None else entry.price_usd_per_h
        gpu, gpus = entry.gpu or quote.offer.gpu, entry.gpus or quote.offer.gpus
        if (gpu, gpus) != (quote.offer.gpu, quote.offer.gpus):
            raise InvalidInput(
                f"{entry.id} has {gpus} {gpu}; the price files say {quote.offer.gpus} {quote.offer.gpu}.",
                remedy="Correct the pool, or leave gpu and gpus out.",
                pool=str(entry.id),
            )
        if entry.price_usd_per_h is not None:
            return Offered(price, gpu, gpus)
        problem = price_problem(price, gpus)
        if problem:
            return replace(held, why=problem)
        if quote.age_s > self._max_price_age_s:
            why = f"the last price is {quote.age_s / 86_400:.1f} days old"
            return Offered(price if holding.up or holding.outstanding else None, gpu, gpus, why)
        return Offered(price, gpu, gpus)


def _pending(entry: PoolEntry, holding: Holding, lead_times: LeadTimes) -> tuple[Pending, ...]:
    """When what is under way is expected. A machine that was granted comes for certain, one that is only to
    be checked at once.
    """
    found = [Pending(*atom) for waited_s in holding.waited_s for atom in _left(entry, lead_times, waited_s)]
    for waited_s in holding.starting_s:
        left = _left(entry, lead_times, waited_s)
        total = sum(weight for _in_s, weight in left)
        found += [Pending(in_s, weight / total) for in_s, weight in left] if total > 0 else []
    return (*found, *[Pending(0.0, 1.0)] * holding.checking)


def _left(entry: PoolEntry, lead_times: LeadTimes, waited_s: float) -> list[tuple[float, float]]:
    """Of a request that has waited so long: what is to come. A lead time that the user gave is no promise to
    the second: it may take twice as long before a request counts as late.
    """
    given_s = entry.lead_time_s
    if given_s is not None and waited_s < _GRACE * given_s:
        return [(max(given_s - waited_s, given_s / 4), lead_times.grant_probability)]
    return lead_times.remaining(waited_s).atoms()
