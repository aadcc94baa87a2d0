"""What the program is told: pools, demand, limits. Checked here once, so that assembly can trust it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from glowplug.pool.identity import PoolId
from glowplug.pool.program.grid import Floats, Grid
from glowplug.types.errors import InvalidInput

MAX_PRICE_USD_PER_H = 10_000.0
"""The dearest GPU machines on sale cost about a hundred; beyond this a price is a mistake of units."""
MAX_MACHINES = 1_000_000
MAX_SLOTS = 10_000_000


@dataclass(frozen=True)
class Atom:
    """A lead time, seconds, and its share; a pool's shares add up to the chance that a request is granted."""

    lead_time_s: float
    weight: float


@dataclass(frozen=True)
class Pending:
    """Of requests under way so many machines, a fraction as a rule, are expected in ``in_s`` seconds."""

    in_s: float
    machines: float


@dataclass(frozen=True, eq=False)
class Pool:
    """One pool, as it is now and as the market is believed to be. ``docs/pools.md`` has the symbols.

    ``price_usd_per_h``: one for each period. ``locked_s``: seconds until the minimum rental of machines that
    are up is over, one number for each such machine. ``outstanding``: machines asked for and neither come nor
    refused. ``supply``: how many more the market is believed to give now, growing by ``supply_per_h``.
    """

    id: PoolId
    gpu: str
    gpus: int
    price_usd_per_h: Floats
    domain: str = ""
    lead_time: tuple[Atom, ...] = (Atom(0.0, 1.0),)
    interruptions_per_h: float = 0.0
    up: int = 0
    locked_s: tuple[float, ...] = ()
    pending: tuple[Pending, ...] = ()
    outstanding: int = 0
    quota: int = MAX_MACHINES
    supply: int = MAX_MACHINES
    supply_per_h: float = 0.0
    min_rental_s: float = 0.0
    request_usd: float = 0.0
    release_usd: float = 0.0
    interruption_usd: float = 0.0

    @property
    def held(self) -> int:
        """Machines up or under way."""
        return self.up + self.outstanding

    @property
    def failure_domain(self) -> str:
        """Its own words for it, or cloud and region."""
        return self.domain or f"{self.id.cloud}/{self.id.region}"


@dataclass(frozen=True, eq=False)
class Rare:
    """Slots, for each period, that are needed with a ``chance`` only: so much less missing one costs."""

    slots: Floats
    chance: float


@dataclass(frozen=True, eq=False)
class Demand:
    """Slots (replicas) that need ``gpus`` GPUs of a kind on one machine, for each period; and what missing
    costs.

    The first ``tolerated`` share of the demand may be missing at the lower price; ``rare`` ones, which are on
    top of ``slots``, at a price that is lower by their chance.
    """

    gpu: str
    gpus: int
    slots: Floats
    tolerated: float = 0.0
    tolerated_miss_usd_per_h: float = 20.0
    miss_usd_per_h: float = 100.0
    rare: tuple[Rare, ...] = ()

    @property
    def most_slots(self) -> Floats:
        """With the rare ones."""
        return np.asarray(np.sum([self.slots, *(rare.slots for rare in self.rare)], axis=0))


@dataclass(frozen=True)
class Survival:
    """A kind whose worst failure domain may be lost: ``share`` of its demand must be covered all the same."""

    share: float
    exposed_usd_per_gpu_h: float = 10.0


@dataclass(frozen=True, eq=False)
class Problem:
    """All of it. Raises InvalidInput for anything that no plan can be made of."""

    grid: Grid
    pools: tuple[Pool, ...]
    demands: tuple[Demand, ...]
    survival: dict[str, Survival] = field(default_factory=dict)
    budget_usd_per_h: float | None = None
    over_budget_usd_per_usd: float = 100.0

    def __post_init__(self) -> None:
        if len({pool.id for pool in self.pools}) != len(self.pools):
            raise InvalidInput("A pool is given twice.", remedy="Give each pool once.")
        for pool in self.pools:
            _check_pool(pool, len(self.grid))
        for demand in self.demands:
            _check_demand(demand, len(self.grid))
        _check_sizes(self.demands)
        for gpu, survival in self.survival.items():
            _check(0 <= survival.share <= 1, f"share of {gpu} to survive", survival.share)
            _check_money(survival.exposed_usd_per_gpu_h, f"price of exposed {gpu}")
        if self.budget_usd_per_h is not None:
            _check_money(self.budget_usd_per_h, "budget")
        _check_money(self.over_budget_usd_per_usd, "price of spending above the budget")


def _check_pool(pool: Pool, periods: int) -> None:
    prices = np.asarray(pool.price_usd_per_h)
    _check(prices.shape == (periods,), f"{pool.id}: number of prices", prices.shape)
    usable = np.isfinite(prices) & (prices >= 0) & (prices <= MAX_PRICE_USD_PER_H)
    if not usable.all():
        raise InvalidInput(
            f"{pool.id}: a machine cannot cost {prices[~usable][0]:g} USD an hour.",
            remedy=f"Prices lie between 0 and {MAX_PRICE_USD_PER_H:g} USD per hour and machine.",
            pool=str(pool.id),
        )
    _check(1 <= pool.gpus <= 1024, f"{pool.id}: GPUs per machine", pool.gpus)
    for name in ("up", "outstanding", "quota", "supply"):
        value = getattr(pool, name)
        _check(0 <= value <= MAX_MACHINES and value == int(value), f"{pool.id}: {name}", value)
    _check(len(pool.locked_s) <= pool.up, f"{pool.id}: locked machines", len(pool.locked_s))
    weights = math.fsum(atom.weight for atom in pool.lead_time)
    _check(weights <= 1 + 1e-9, f"{pool.id}: weights of the lead time", weights)
    for atom in pool.lead_time:
        _check_span(atom.lead_time_s, f"{pool.id}: lead time")
        _check(atom.weight >= 0, f"{pool.id}: weight of a lead time", atom.weight)
    expected = math.fsum(pending.machines for pending in pool.pending)
    _check(
        expected <= pool.outstanding + 1e-6, f"{pool.id}: machines expected of those outstanding", expected
    )
    for pending in pool.pending:
        _check_span(pending.in_s, f"{pool.id}: time until a machine comes")
        _check(pending.machines >= 0, f"{pool.id}: machines that come", pending.machines)
    for locked_s in (*pool.locked_s, pool.min_rental_s):
        _check_span(locked_s, f"{pool.id}: minimum rental")
    for name in ("request_usd", "release_usd", "interruption_usd"):
        _check_money(getattr(pool, name), f"{pool.id}: {name}")
    for name in ("interruptions_per_h", "supply_per_h"):
        _check(0 <= getattr(pool, name) <= MAX_MACHINES, f"{pool.id}: {name}", getattr(pool, name))


def _check_demand(demand: Demand, periods: int) -> None:
    name = f"demand of {demand.gpu} x{demand.gpus}"
    for slots in (np.asarray(demand.slots), *(np.asarray(rare.slots) for rare in demand.rare)):
        _check(slots.shape == (periods,), f"{name}: number of periods", slots.shape)
        usable = np.isfinite(slots) & (slots >= 0) & (slots <= MAX_SLOTS)
        _check(bool(usable.all()), f"{name}: slots", slots[~usable][:1])
    for rare in demand.rare:
        _check(0 <= rare.chance <= 1, f"{name}: chance of rare slots", rare.chance)
    _check(1 <= demand.gpus <= 1024, f"{name}: GPUs per replica", demand.gpus)
    _check(0 <= demand.tolerated <= 1, f"{name}: tolerated share", demand.tolerated)
    _check_money(demand.miss_usd_per_h, f"{name}: price of a missing slot")
    if not 0 <= demand.tolerated_miss_usd_per_h <= demand.miss_usd_per_h:
        raise InvalidInput(
            f"{name}: a tolerated miss costs {demand.tolerated_miss_usd_per_h:g}, any other "
            f"{demand.miss_usd_per_h:g} USD an hour.",
            remedy="What is tolerated must not cost more than what is not.",
        )


def _check_sizes(demands: tuple[Demand, ...]) -> None:
    classes = sorted((demand.gpu, demand.gpus) for demand in demands)
    for (kind, smaller), (other, greater) in itertools.pairwise(classes):
        if kind == other and (smaller == greater or greater % smaller):
            raise InvalidInput(
                f"Replicas of {smaller} and {greater} GPUs of {kind} cannot be planned together.",
                remedy="Give each size once, and sizes that divide the next greater one, such as 1, 2, 4, 8.",
            )


def _check_span(seconds: float, what: str) -> None:
    _check(math.isfinite(seconds) and seconds >= 0, f"{what}, seconds", seconds)


def _check_money(usd: float, what: str) -> None:
    _check(math.isfinite(usd) and 0 <= usd <= 1e9, f"{what}, USD", usd)


def _check(is_right: bool, what: str, value: object) -> None:
    if not is_right:
        raise InvalidInput(f"{what}: {value} cannot be.", remedy="docs/pools.md says what it means.")
