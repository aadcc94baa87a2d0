"""Machines as SkyServe's SpotHedge keeps them (Mao et al., EuroSys 2025), as far as it says how.

Spot machines for what is wanted and ``extra_gpus`` more, spread over the pools that have not just taken one
away or refused; on-demand ones for whatever of that is not up. It never goes to zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import Order
from glowplug.simulator.policies.rule import (
    FLEET,
    Actions,
    MachineNow,
    PoolNow,
    Seen,
    can_be_asked,
    order_numbers,
)

_PREEMPTED_WAIT_S = 1_800.0
"""So long a pool that took a machine away is asked only when no other can be."""


class SpotHedgeMachines:
    """Of each kind."""

    works_at_once = True

    def __init__(self, kinds: Iterable[str], extra_gpus: int, every_s: float) -> None:
        self.every_s = every_s
        self._kinds = sorted(set(kinds))
        self._extra_gpus = extra_gpus
        self._names = order_numbers()

    def step(self, now_s: float, seen: Seen) -> Actions:
        """Bring spot to what is wanted and the extra, on-demand to what of it is not up."""
        requests: list[Order] = []
        terminations: list[str] = []
        for kind in self._kinds:
            target = seen.wanted_gpus.get(kind, 0)
            spot = [pool for pool in seen.pools if pool.gpu == kind and pool.id.purchase is Purchase.SPOT]
            firm = [pool for pool in seen.pools if pool.gpu == kind and pool.id.purchase is not Purchase.SPOT]
            spot_up = sum(pool.up * pool.gpus for pool in spot)
            wishes = (
                (spot, target + self._extra_gpus, _by_spread(now_s)),
                (firm, min(target, max(target + self._extra_gpus - spot_up, 0)), _by_price),
            )
            for pools, wanted, order in wishes:
                surplus = sum(pool.held_gpus for pool in pools) - wanted
                requests += self._ask(pools, -surplus, now_s, order)
                terminations += _give_back({pool.id for pool in pools}, surplus, now_s, seen)
        return Actions(requests=tuple(requests), terminations=tuple(terminations))

    def _ask(
        self,
        pools: list[PoolNow],
        lacking: int,
        now_s: float,
        order: Callable[[PoolNow, int], tuple[object, ...]],
    ) -> list[Order]:
        found: list[Order] = []
        asked: Counter[PoolId] = Counter()
        while lacking > 0:
            able = [pool for pool in pools if can_be_asked(pool, asked[pool.id], now_s)]
            if not able:
                break
            pool = min(able, key=lambda pool: order(pool, asked[pool.id]))
            found.append(Order(next(self._names), FLEET, pool.id, pool.gpu, pool.gpus))
            asked[pool.id] += 1
            lacking -= pool.gpus
        return found


def _by_spread(now_s: float) -> Callable[[PoolNow, int], tuple[object, ...]]:
    def order(pool: PoolNow, asked: int) -> tuple[object, ...]:
        was_taken = pool.lost_at_s is not None and now_s - pool.lost_at_s < _PREEMPTED_WAIT_S
        return (was_taken, pool.held_gpus + asked * pool.gpus, pool.usd_per_gpu_h, pool.id)

    return order


def _by_price(pool: PoolNow, asked: int) -> tuple[object, ...]:
    return (pool.usd_per_gpu_h, pool.id)


def _give_back(pools: set[PoolId], surplus: int, now_s: float, seen: Seen) -> list[str]:
    gone: list[str] = []
    empty: list[MachineNow] = [m for m in seen.machines if m.pool in pools and m.may_go(now_s)]
    for machine in sorted(empty, key=lambda m: (-m.usd_per_h / m.gpus, m.name)):
        if machine.gpus <= surplus:
            gone.append(machine.name)
            surplus -= machine.gpus
    return gone
