"""Machines as they are needed, and a fixed number of idle GPUs: what cluster autoscalers do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from glowplug.pool.identity import PoolId
from glowplug.pool.providers.port import Order
from glowplug.simulator.policies.rule import (
    FLEET,
    Actions,
    PoolNow,
    Seen,
    can_be_asked,
    order_numbers,
)


class ReactiveMachines:
    """Asks the cheapest pool that has not just refused for what replicas lack, and gives empty machines
    back.
    """

    works_at_once = True

    def __init__(self, kinds: Iterable[str], buffer_gpus: int, every_s: float) -> None:
        self.every_s = every_s
        self._kinds = sorted(set(kinds))
        self._buffer_gpus = buffer_gpus
        self._names = order_numbers()

    def step(self, now_s: float, seen: Seen) -> Actions:
        """Make idle GPUs, with those under way, as many as the buffer has."""
        requests: list[Order] = []
        terminations: list[str] = []
        for kind in self._kinds:
            free = sum(machine.free for machine in seen.machines if machine.gpu == kind)
            pending = sum(pool.pending * pool.gpus for pool in seen.pools if pool.gpu == kind)
            spare = free - seen.unplaced_gpus.get(kind, 0) - self._buffer_gpus
            requests += self._ask(kind, -spare - pending, now_s, seen)
            terminations += _give_back(kind, spare, now_s, seen)
        return Actions(requests=tuple(requests), terminations=tuple(terminations))

    def _ask(self, kind: str, lacking: int, now_s: float, seen: Seen) -> list[Order]:
        found: list[Order] = []
        asked: Counter[PoolId] = Counter()
        while lacking > 0:
            pool = cheapest(kind, asked, now_s, seen)
            if pool is None:
                break
            found.append(Order(next(self._names), FLEET, pool.id, pool.gpu, pool.gpus))
            asked[pool.id] += 1
            lacking -= pool.gpus
        return found


def cheapest(kind: str, asked: Counter[PoolId], now_s: float, seen: Seen) -> PoolNow | None:
    """The pool whose GPUs cost least, of those that can be asked."""
    able = [pool for pool in seen.pools if pool.gpu == kind and can_be_asked(pool, asked[pool.id], now_s)]
    return min(able, key=lambda pool: (pool.usd_per_gpu_h, pool.gpus, pool.id), default=None)


def _give_back(kind: str, spare: int, now_s: float, seen: Seen) -> list[str]:
    """Empty machines that are not needed, the dearest first."""
    empty = [machine for machine in seen.machines if machine.gpu == kind and machine.may_go(now_s)]
    empty.sort(key=lambda machine: (-machine.usd_per_h / machine.gpus, machine.name))
    gone = []
    for machine in empty:
        if machine.gpus <= spare:
            gone.append(machine.name)
            spare -= machine.gpus
    return gone
