"""Whose turn it is on a GPU: the least valuable idle replica gives its own to one that somebody waits for.

A GPU has one replica at a time that is awake. Where all of a kind are taken, the agent refuses to wake or to
start another; then one that nobody uses goes down a step: parked, its device memory lies on the host and
comes back by one copy; where that cannot be, it is stopped. It is the one whose absence costs callers least:
recent requests a second times how long the next of them will wait, over what its GPUs are worth to others,
where the pools' planner says what that is. A server in use is never interrupted, and ``min_replicas`` stay
up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from glowplug.control.chips import is_alike
from glowplug.control.fleet import Fleet
from glowplug.control.heat import keep_value, wake_cost_s, weights
from glowplug.control.replica_entry import Replica
from glowplug.control.scarcity import ScarcityPrices
from glowplug.control.target import Target
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError
from glowplug.types.replica import ReplicaState

log = logging.getLogger(__name__)


def says_no_gpu(error: GlowplugError) -> bool:
    """The agent had no GPU left to promise, or too little memory free on it."""
    return error.details.get("resource") == "gpu"


@dataclass(frozen=True)
class _Holder:
    """A replica that has GPUs which the one in need could use."""

    target: Target
    replica: Replica

    @property
    def is_idle(self) -> bool:
        """Nobody uses its server, which has more replicas than it wants to keep."""
        spare = len(self.target.live()) - self.target.version.spec.scaling.min_replicas
        is_used = self.target.in_flight or self.target.held
        return self.replica.is_serving and not is_used and spare > 0

    @property
    def is_leaving(self) -> bool:
        """It is giving them up already."""
        return self.replica.is_parking or self.replica.drain is not None

    @property
    def value(self) -> float:
        """What it is worth to leave them with it."""
        cost_s = wake_cost_s(self.target.version.spec, self.replica.view)
        return keep_value(requests_per_s=self.target.demand.per_s(), cost_s=cost_s)


class GpuTurns:
    """Makes room on GPUs. ``step_down`` begins to park a replica, or to stop it."""

    def __init__(
        self,
        fleet: Fleet,
        prices: ScarcityPrices,
        clock: Clock,
        step_down: Callable[[Target, Replica], None],
    ) -> None:
        self._fleet = fleet
        self._prices = prices
        self._clock = clock
        self._step_down = step_down

    def make_room(self, node: str, for_target: Target, refusal: GlowplugError) -> bool:
        """Have one replica of the node give its GPUs up, unless somebody is at it already.

        Whether any of ours has GPUs there that ``for_target`` could use: else nobody will give up anything.
        """
        captures = refusal.details.get("captures")
        return captures == "give_way" or self._step_aside(node, for_target) or captures == "go_on"

    def _step_aside(self, node: str, for_target: Target) -> bool:
        holders = self._holders(node, for_target)
        idle = [holder for holder in holders if holder.is_idle]
        if idle and not any(holder.is_leaving for holder in holders):
            chosen = self._least_valuable(idle)
            log.warning("replica %s gives its GPU to %s", chosen.replica.id, for_target.name)
            chosen.target.counters.heat_steps["made_way"] += 1
            chosen.target.rest()
            self._step_down(chosen.target, chosen.replica)
        return bool(holders)

    def _least_valuable(self, idle: list[_Holder]) -> _Holder:
        """By what each saves its callers, for what it occupies; of equal ones who is idle for longest."""
        usd_per_h = [self._prices.of(holder.target.version.spec.resources) for holder in idle]
        weighed = [
            (holder.value / weight, holder.target.last_activity_s or 0.0)
            for holder, weight in zip(idle, weights(usd_per_h), strict=True)
        ]
        chosen = idle[weighed.index(min(weighed))]
        if None not in usd_per_h:
            chosen.target.counters.heat_steps["priced"] += 1
        return chosen

    def was_freed(self, node: str) -> None:
        """A GPU of the node is free: who waits for one tries at once."""
        for target in self._fleet.targets():
            if not target.held or not target.version.spec.resources.gpu_count:
                continue
            target.history.hurry()
            self._fleet.attention.pay(target.app, target.server)
            for replica in target.parked():
                if replica.node == node and replica.waits_for_gpu:
                    replica.wake_again_at_s = self._clock.monotonic()

    def _holders(self, node: str, for_target: Target) -> list[_Holder]:
        chip = for_target.version.spec.resources.gpu_chip
        return [
            _Holder(target, replica)
            for target in self._fleet.targets()
            if target is not for_target and is_alike(target.version.spec.resources.gpu_chip, chip)
            for replica in target.replicas.values()
            if replica.node == node and replica.view.state is not ReplicaState.PARKED
        ]
