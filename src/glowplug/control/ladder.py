"""The heat ladder: running, parked, parked with its memory in swap, stopped (its snapshot on disk).

A replica that is not needed goes down one step at a time: after ``scaledown_window_s`` it is parked, after
``parked_window_s`` more it is stopped. Where a node's memory is short, or has no room for what is to start,
one replica at a time goes down a step sooner: the one idle for longest first, in proportion to what the room
is worth that it starts in again, where the pools' planner says that. A server that somebody is using, or that
has no more than its ``min_replicas``, is left alone. Up it goes at once: parked replicas are
woken before any is started, those in memory first. Servers with GPUs take turns
(:mod:`glowplug.control.gpu_turns`).

Level-triggered like the reconciler, which calls it: every decision follows from what is there now.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

from glowplug.control.fleet import Fleet
from glowplug.control.gpu_turns import GpuTurns, says_no_gpu
from glowplug.control.heat import StepDown, has_cooled, step_down, wake_order, weights
from glowplug.control.node_link import NodeLink
from glowplug.control.replica_entry import Replica
from glowplug.control.routers import Routers
from glowplug.control.scarcity import ScarcityPrices
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, Unavailable
from glowplug.types.replica import ReplicaState

log = logging.getLogger(__name__)

_WAKE_RETRY_S = 1.0
# Below this much free swap, pushing a replica's memory out would end half way.
_WORTHWHILE_SWAP_BYTES = 256 << 20


def says_no_room(error: GlowplugError) -> bool:
    """The agent had no memory left to promise (and would have, if something made way)."""
    return error.details.get("resource") == "memory"


@dataclass(frozen=True)
class _Candidate:
    """A replica that may go down a step to free memory."""

    target: Target
    replica: Replica
    idle_s: float

    def order(self, weight: float) -> tuple[bool, float]:
        """First who frees memory by it, then who has been idle for longest, for its weight.

        Not what the step costs the next caller, as with GPUs: to be woken is much the same for all. But who
        is stopped at last starts again on GPUs that others wait for: ``weight`` is what these are worth.
        """
        return (self.replica.is_push_out_asked or self.replica.view.is_pushed_out, -self.idle_s / weight)


class HeatLadder:
    """Moves replicas up and down. ``call`` runs a call to an agent as somebody's task."""

    def __init__(
        self,
        fleet: Fleet,
        links: Sequence[NodeLink],
        routers: Routers,
        prices: ScarcityPrices,
        *,
        clock: Clock,
        timings: Timings,
        call: Callable[[Coroutine[None, None, None]], None],
    ) -> None:
        self._fleet = fleet
        self._links = links
        self._routers = routers
        self._clock = clock
        self._timings = timings
        self._call = call
        self._next_step_at_s: dict[str, float] = {}
        self._prices = prices
        self._turns = GpuTurns(fleet, prices, clock, self.step_down)

    # -- up --------------------------------------------------------------------------------------------------

    def wake(self, target: Target, missing: int) -> int:
        """Wake parked replicas of the active version; how many of ``missing`` need not be started."""
        now_s = self._clock.monotonic()
        # Who is just being frozen cannot be called back, and is there again in a moment; so is who waits.
        coming = sum(1 for r in target.replicas.values() if r.is_parking and target.is_wanted(r))
        coming += sum(1 for r in target.parked() if r.waits_for_gpu and r.wake_again_at_s > now_s)
        usable = [r for r in target.parked() if r.wake_again_at_s <= now_s and self._link_of(r) is not None]
        usable.sort(
            key=lambda r: wake_order(is_pushed_out=r.view.is_pushed_out, parked_at_s=r.parked_at_s or 0.0)
        )
        woken = usable[: max(missing - coming, 0)]
        for replica in woken:
            self._wake_one(target, replica)
        return min(coming + len(woken), missing)

    def _wake_one(self, target: Target, replica: Replica) -> None:
        link = self._link_of(replica)
        if link is not None:
            replica.is_waking = True
            self._fleet.under_way.begins(replica)
            target.take_cold_start(replica)
            self._call(self._ask_to_wake(link, target, replica))

    async def _ask_to_wake(self, link: NodeLink, target: Target, replica: Replica) -> None:
        log.info("waking replica %s", replica.id)
        try:
            view = await link.client.unpark_replica(replica.id, has_devices=_has_devices(target))
        except GlowplugError as error:
            self._not_woken(target, replica, error)
        else:
            target.counters.heat_steps["woken"] += 1
            self._fleet.answered(link.name, view)

    def _not_woken(self, target: Target, replica: Replica, error: GlowplugError) -> None:
        """It stays parked or has ended; whoever waited for it is served by a start."""
        log.warning("replica %s cannot be woken: %s", replica.id, error)
        target.counters.heat_steps["not_woken"] += 1
        if replica.id in self._fleet.replicas:
            replica.waits_for_gpu = says_no_gpu(error) and self._turns.make_room(replica.node, target, error)
            reason = None if replica.waits_for_gpu else f"waking a parked replica failed: {error.message}"
            target.give_back_cold_start(replica, reason)
            target.history.problem = error.message
            replica.is_waking = False
            replica.wake_again_at_s = self._clock.monotonic() + _WAKE_RETRY_S
        if says_no_room(error):
            self.make_room(replica.node, for_target=target)
        self._fleet.attention.pay(target.app, target.server)

    # -- down ------------------------------------------------------------------------------------------------

    def step_down(self, target: Target, replica: Replica) -> None:
        """A replica that is not needed: parked where that is wanted and possible, stopped otherwise."""
        link = self._link_of(replica)
        if link is None or self._next_step(target, replica) is StepDown.STOP:
            self._fleet.drain(replica, target.version.spec.request_timeout_s)
            return
        scaling = target.version.spec.scaling
        replica.is_parking = True
        target.recompute()
        self._call(self._ask_to_park(link, target, replica, push_out=scaling.parked_memory == "swap"))

    def cool(self, target: Target, parked: Iterable[Replica]) -> None:
        """Of its ``parked`` ones, stop what has been so for its time, or is of another version; wake who was
        parked in error.
        """
        scaling = target.version.spec.scaling
        for replica in parked:
            if not replica.is_parked:  # it was woken in this pass
                continue
            if replica.in_flight:  # frozen by an order of which we had not heard that it was followed
                self._wake_one(target, replica)
                continue
            parked_s = replica.parked_for_s(self._clock.monotonic())
            if has_cooled(scaling, parked_s) or target.is_stopped or not target.is_wanted(replica):
                self._stop(target, replica)

    def _next_step(self, target: Target, replica: Replica) -> StepDown:
        return step_down(
            target.version.spec,
            is_ready=replica.view.state is ReplicaState.READY,
            is_wanted=target.is_wanted(replica) and not target.is_stopped,
        )

    async def _ask_to_park(self, link: NodeLink, target: Target, replica: Replica, *, push_out: bool) -> None:
        if not await self._routers.let_go(replica, lambda: bool(target.held)):
            replica.is_parking = False  # somebody has requests there after all, or wants it now
            target.recompute()
            return
        log.info("parking replica %s", replica.id)
        try:
            has_devices = _has_devices(target)
            view = await link.client.park_replica(replica.id, push_out=push_out, has_devices=has_devices)
        except Unavailable as error:
            log.warning("replica %s cannot be parked now: %s", replica.id, error)
            replica.is_parking = False
            target.recompute()
        except GlowplugError as error:
            log.warning("replica %s is stopped, as it cannot be parked: %s", replica.id, error)
            replica.is_parking = False
            self._fleet.drain(replica, target.version.spec.request_timeout_s)
        else:
            target.counters.heat_steps["parked"] += 1
            if has_devices:
                self._turns.was_freed(link.name)
            self._fleet.answered(link.name, view)

    def _stop(self, target: Target, replica: Replica) -> None:
        target.counters.heat_steps["cooled"] += 1
        self._fleet.drain(replica, self._timings.stop_grace_s)

    # -- down, for lack of memory ------------------------------------------------------------------------

    def relieve_short_nodes(self) -> None:
        """On every node whose memory is short, let one replica go down a step."""
        for link in self._links:
            if link.memory is not None and link.memory.is_short:
                self.make_room(link.name)

    def find_room(self, node: str, for_target: Target, error: GlowplugError) -> None:
        """A start on the node was refused, perhaps for lack of room."""
        if says_no_gpu(error):
            self._turns.make_room(node, for_target, error)
        elif says_no_room(error):
            self.make_room(node, for_target)

    def make_room(self, node: str, for_target: Target | None = None) -> None:
        """Let the least valuable replica of the node go down a step, at most one in ``relief_step_s``.

        What belongs to ``for_target`` is left alone: it is what the room is needed for.
        """
        now_s = self._clock.monotonic()
        link = next((link for link in self._links if link.name == node and link.is_synced), None)
        if link is None or now_s < self._next_step_at_s.get(node, -math.inf):
            return
        candidates = [c for c in self._candidates(node, now_s) if c.target is not for_target]
        if candidates:
            self._next_step_at_s[node] = now_s + self._timings.relief_step_s
            self._relieve(link, self._least_valuable(candidates))

    def _least_valuable(self, candidates: list[_Candidate]) -> _Candidate:
        usd_per_h = [self._prices.of(candidate.target.version.spec.resources) for candidate in candidates]
        pairs = zip(candidates, weights(usd_per_h), strict=True)
        chosen = min(pairs, key=lambda pair: pair[0].order(pair[1]))[0]
        if None not in usd_per_h:
            chosen.target.counters.heat_steps["priced"] += 1
        return chosen

    def _relieve(self, link: NodeLink, candidate: _Candidate) -> None:
        target, replica = candidate.target, candidate.replica
        log.warning("node %s needs memory: replica %s goes down a step", link.name, replica.id)
        if not replica.is_parked:
            target.rest()
            self.step_down(target, replica)
        elif not (replica.is_push_out_asked or replica.view.is_pushed_out) and _has_swap(link):
            replica.is_push_out_asked = True
            self._call(self._ask_to_push_out(link, target, replica))
        else:
            self._stop(target, replica)

    async def _ask_to_push_out(self, link: NodeLink, target: Target, replica: Replica) -> None:
        try:
            await link.client.park_replica(replica.id, push_out=True)
        except GlowplugError as error:
            log.warning("the memory of replica %s stays where it is: %s", replica.id, error)
        else:
            target.counters.heat_steps["pushed_out"] += 1

    def _candidates(self, node: str, now_s: float) -> list[_Candidate]:
        found = []
        for target in self._fleet.targets():
            is_used = target.in_flight or target.held
            spare = sum(1 for r in target.live()) - target.version.spec.scaling.min_replicas
            for replica in target.replicas.values():
                if replica.node != node:
                    continue
                if replica.is_parked or (replica.is_serving and not is_used and spare > 0):
                    found.append(_Candidate(target, replica, self._idle_s(target, replica, now_s)))
        return found

    def _idle_s(self, target: Target, replica: Replica, now_s: float) -> float:
        if replica.view.parked_at is not None:
            return target.version.spec.scaling.scaledown_window_s + replica.parked_for_s(now_s)
        return math.inf if target.last_activity_s is None else now_s - target.last_activity_s

    def _link_of(self, replica: Replica) -> NodeLink | None:
        return next((link for link in self._links if link.name == replica.node and link.is_synced), None)


def _has_devices(target: Target) -> bool:
    return target.version.spec.resources.gpu is not None


def _has_swap(link: NodeLink) -> bool:
    return link.memory is not None and link.memory.swap_free_bytes >= _WORTHWHILE_SWAP_BYTES
