"""What a policy sees of machines, and what it may do about them.

Baselines see the truth that the planner has to find out from listings: who has room, what is refused. Where
they are given more than such systems know, the comparison is in their favour.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.identity import PoolId
from glowplug.pool.providers.port import Order, Sighting
from glowplug.simulator.scenario_file import DemandSource

FLEET = "simulated"
REFUSED_WAIT_S = 120.0
"""Baselines leave a pool alone for so long after a refusal, as cluster autoscalers do."""


@dataclass(frozen=True)
class PoolNow:
    """A pool at this moment. ``up`` and ``pending`` count machines; ``refused_at_s``, ``lost_at_s``: the last
    time.
    """

    id: PoolId
    gpu: str
    gpus: int
    usd_per_h: float
    quota: int
    min_rental_s: float
    up: int
    pending: int
    refused_at_s: float | None
    lost_at_s: float | None

    @property
    def usd_per_gpu_h(self) -> float:
        """Of one GPU."""
        return self.usd_per_h / self.gpus

    @property
    def held_gpus(self) -> int:
        """GPUs that are up or under way."""
        return (self.up + self.pending) * self.gpus


@dataclass(frozen=True)
class MachineNow:
    """A machine that is up. ``free``: GPUs that no replica has."""

    name: str
    pool: PoolId
    gpu: str
    gpus: int
    usd_per_h: float
    free: int
    up_at_s: float
    min_rental_s: float

    def may_go(self, now_s: float) -> bool:
        """It is empty, and longer here than it is paid for in any case."""
        return self.free == self.gpus and now_s - self.up_at_s >= self.min_rental_s


@dataclass(frozen=True, eq=False)
class Seen:
    """The state of a run. GPUs by kind; ``busy_gpus`` by machine; ``demand`` and ``waiting_slot_s`` by class
    of the plan.
    """

    pools: tuple[PoolNow, ...]
    machines: tuple[MachineNow, ...]
    unplaced_gpus: Mapping[str, int]
    wanted_gpus: Mapping[str, int]
    busy_gpus: Callable[[], Mapping[str, float]]
    demand: Callable[[DemandSource], tuple[DemandSeries, ...]]
    waiting_slot_s: Callable[[], tuple[float, ...]]
    listings: Callable[[], Mapping[str, tuple[Sighting, ...]]]


@dataclass(frozen=True)
class Actions:
    """What to do. ``works`` and ``drains``: machines that take replicas from now on, or take none any
    more.
    """

    requests: tuple[Order, ...] = ()
    cancellations: tuple[str, ...] = ()
    terminations: tuple[str, ...] = ()
    works: tuple[str, ...] = ()
    drains: tuple[str, ...] = ()


class MachineRule(Protocol):
    """Decides about machines every ``every_s``. ``works_at_once``: a machine takes replicas as soon as it is
    up.
    """

    every_s: float
    works_at_once: bool

    def step(self, now_s: float, seen: Seen) -> Actions:
        """Look, and say what to do."""
        ...


def order_numbers() -> Iterator[str]:
    """Names for the orders of one run."""
    return (f"{FLEET}-{number}" for number in itertools.count())


def can_be_asked(pool: PoolNow, asked: int, now_s: float) -> bool:
    """The quota is not used up, and it has not just refused. ``asked``: of it, in this step."""
    has_waited = pool.refused_at_s is None or now_s - pool.refused_at_s >= REFUSED_WAIT_S
    return pool.up + pool.pending + asked < pool.quota and has_waited
