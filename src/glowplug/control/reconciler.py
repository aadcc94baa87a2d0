"""Makes what is there what should be there: starts, replaces and drains replicas through the agents.

Level-triggered: every pass compares the whole table with the autoscaler's wishes, so a lost event, a restart
of an agent or of this process changes nothing. It never starts anything on a node whose list of replicas it
has not seen, and never stops a replica with requests in flight unless somebody asked for that.

A pass is made in slices, between which requests go on, and servers that something happened to are looked at
first: what a request waits for does not grow with what else there is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence

from glowplug.control.census import Census
from glowplug.control.fleet import Fleet
from glowplug.control.heat import shrink_order
from glowplug.control.image_care import ImageCare
from glowplug.control.ladder import HeatLadder
from glowplug.control.node_link import NodeLink
from glowplug.control.placer import Placer
from glowplug.control.replica_entry import Replica
from glowplug.control.routers import Routers
from glowplug.control.scarcity import ScarcityPrices
from glowplug.control.slices import Slices
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.node.answers import NoAnswer, NotConnected
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, NotFound, ResourceExhausted, Unavailable
from glowplug.types.ids import new_replica_id
from glowplug.types.replica import ErrorInfo, ReplicaState, ReplicaView, Stage, StartReplica

log = logging.getLogger(__name__)

_STOP_RETRY_S = 1.0
# Each is placed anew: a hundred at once would keep requests waiting. The rest follow a slice later.
_STARTS_A_LOOK = 4


class Reconciler:
    """Owns the tasks that talk to agents. :meth:`run` is somebody's task; :meth:`wake` hurries it."""

    def __init__(
        self,
        fleet: Fleet,
        links: Sequence[NodeLink],
        placer: Placer,
        images: ImageCare,
        routers: Routers,
        prices: ScarcityPrices,
        *,
        clock: Clock,
        timings: Timings,
        new_id: Callable[[str, str], str] = new_replica_id,
    ) -> None:
        self._fleet = fleet
        self._links = links
        self._placer = placer
        self._images = images
        self._routers = routers
        self._clock = clock
        self._timings = timings
        self._new_id = new_id
        self._wake = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._ladder = HeatLadder(
            fleet, links, routers, prices, clock=clock, timings=timings, call=self._call
        )
        self._slices = Slices()
        fleet.attention.on_paid = self._wake.set

    async def run(self) -> None:
        """Pass after pass until cancelled; then the calls under way are cancelled too."""
        now_s = asyncio.get_running_loop().time
        try:
            while True:
                began_s = now_s()
                await self._look_at_all()
                # However many there are, passes over all take no more than half of the time.
                soonest_s = 2 * now_s() - began_s
                latest_s = max(began_s + self._timings.tick_s, soonest_s)
                while (due_s := soonest_s if self._fleet.attention.is_to_all else latest_s) > now_s():
                    await self._wait_until(due_s)
                    await self._look_at_touched()
        finally:
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    async def _wait_until(self, due_s: float) -> None:
        """Or until something happens."""
        try:
            async with asyncio.timeout_at(due_s):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _look_at_all(self) -> None:
        self._fleet.attention.take_all()
        for target in list(self._fleet.targets()):
            if await self._slices.rest():
                await self._look_at_touched()
            if self._fleet.apps.get(target.app, {}).get(target.server) is target:
                self._look_at(target)
        self._stop_orphans()
        self._stop_duplicates()
        self._ladder.relieve_short_nodes()

    async def _look_at_touched(self) -> None:
        for app, server in self._fleet.attention.take():
            await self._slices.rest()
            target = self._fleet.apps.get(app, {}).get(server)
            if target is not None:
                self._look_at(target)
        self._stop_orphans()
        self._stop_duplicates()

    # -- one target ----------------------------------------------------------------------------------------

    def _look_at(self, target: Target) -> None:
        """Starts calls to agents, waits for none."""
        census = target.census()
        if any(link.is_synced for link in self._links) and all(link.is_settled for link in self._links):
            self._scale(target, census)
        else:
            # We do not know what exists. Requests wait; starting copies of what is there would be worse.
            target.history.problem = "the node's agent does not answer"
        for replica in census.draining:
            self._stop_if_drained(replica)

    def _scale(self, target: Target, census: Census) -> None:
        live, outdated = census.live, census.outdated
        self._reach(live)
        self._reach(outdated)
        self._settle(target, live)
        wanted = self._wanted(target, census)
        surplus = max(len(live) - wanted, 0)
        if wanted > len(live):
            self._grow(target, wanted - len(live))
        elif surplus:
            surplus -= self._shrink(target, live, surplus)
        target.spare(surplus)
        self._ladder.cool(target, census.parked)
        self._retire(target, outdated, has_successor=any(r.is_serving for r in live), wanted=wanted)

    def _wanted(self, target: Target, census: Census) -> int:
        load = target.load(census)
        decision = target.autoscaler.decide(load, target.last_activity_s)
        wanted = decision.desired
        if target.is_stopped and not load.concurrency:
            wanted = 0
        nobody_waits = not target.held and not census.live and not census.outdated
        if target.history.is_crash_looping and nobody_waits and not target.version.spec.scaling.min_replicas:
            # A further attempt is made for the next request.
            wanted = 0
        target.desired = wanted
        return wanted

    def _settle(self, target: Target, live: list[Replica]) -> None:
        """Release who waited for a suspicion to pass; close records that no answer will close."""
        if target.held:
            if target.pick() is not None:
                target.release_held()
            return
        for replica in live:
            if replica.cold_start is not None and replica.is_serving and not replica.in_flight:
                target.nobody_waits_for(replica)

    def _reach(self, live: list[Replica]) -> None:
        """Try again to open the way to replicas that are ready but could not be reached."""
        for replica in live:
            if replica.channel is None and replica.view.state is ReplicaState.READY:
                self._fleet.open_way(replica)

    def _grow(self, target: Target, missing: int) -> None:
        missing -= self._ladder.wake(target, missing)
        if not target.history.wait_s:
            for _ in range(min(missing, _STARTS_A_LOOK)):
                self._start(target)
            if missing > _STARTS_A_LOOK:
                self._fleet.attention.pay(target.app, target.server)

    def _shrink(self, target: Target, live: list[Replica], surplus: int) -> int:
        """Idle ones step down; how many of ``surplus`` did."""
        idle = [replica for replica in live if not replica.in_flight and not replica.is_waking]
        idle.sort(
            key=lambda r: shrink_order(
                is_starting=r.is_starting,
                suspect_until_s=r.suspect_until_s,
                created_at_s=r.view.created_at,
            )
        )
        for replica in idle[:surplus]:
            self._ladder.step_down(target, replica)
        return min(len(idle), surplus)

    def _retire(self, target: Target, outdated: list[Replica], *, has_successor: bool, wanted: int) -> None:
        for replica in outdated:
            is_needed = wanted and not has_successor and not replica.is_starting
            if not is_needed and (has_successor or not replica.in_flight):
                self._fleet.drain(replica, target.version.spec.request_timeout_s)

    # -- one replica ----------------------------------------------------------------------------------------

    def _start(self, target: Target) -> None:
        scores = self._placer.rank(target)
        by_name = {link.name: link for link in self._links}
        links = [by_name[score.node] for score in scores if score.why_not is None]
        if not links:
            reasons = "; ".join(f"{score.node} is {score.why_not}" for score in scores)
            target.history.postponed(f"no node can take it: {reasons}")
            return
        view = ReplicaView(
            id=self._new_id(target.app, target.server),
            app=target.app,
            server=target.server,
            deployment_id=target.version.deployment_id,
            state=ReplicaState.STARTING,
            stage=Stage.ALLOCATE,
            created_at=self._clock.wall(),
        )
        order = target.order(view.id)
        self._placer.remember(view.id, scores)
        replica = Replica(
            view,
            links[0].name,
            resources=target.version.spec.resources,
            begun_at_s=self._clock.monotonic(),
        )
        self._fleet.expect(replica)
        target.take_cold_start(replica)
        self._call(self._ask_to_start(links, target, replica, order))

    async def _ask_to_start(
        self, links: Sequence[NodeLink], target: Target, replica: Replica, order: StartReplica
    ) -> None:
        """Ask one node after the other, best first, until one takes it."""
        refusals: dict[str, GlowplugError] = {}
        for link in links:
            self._place(replica, link, refusals)
            is_asked = False
            try:
                await self._images.ensure(link, order.server.image, order.image_id)
                async with link.asking:
                    if replica.id not in self._fleet.replicas:
                        return  # its node was given up meanwhile
                    is_asked = True
                    view = await link.client.start_replica(order)
            except GlowplugError as error:
                refusals[link.name] = error
                may_have_begun = isinstance(error, NoAnswer) and not isinstance(error, NotConnected)
                if is_asked and (may_have_begun or replica.accepted_at_s is not None):
                    break  # what has one id must not run twice
            else:
                self._fleet.answered(link.name, view)
                return
            if replica.id not in self._fleet.replicas:
                return  # its node was given up meanwhile
        self._not_started(target, replica, refusals)

    def _place(self, replica: Replica, link: NodeLink, refusals: dict[str, GlowplugError]) -> None:
        log.info("starting replica %s on node %s", replica.id, link.name)
        replica.node = link.name
        if replica.cold_start is not None:
            replica.cold_start.node = link.name
        if refusals:
            said = {node: error.message for node, error in refusals.items()}
            self._placer.moved(replica.id, link.name, said)

    def _not_started(self, target: Target, replica: Replica, refusals: dict[str, GlowplugError]) -> None:
        """No node took it. Of several reasons one counts that may pass."""
        if replica.id not in self._fleet.replicas or replica.accepted_at_s is not None:
            return
        passing = [n for n, error in refusals.items() if isinstance(error, Unavailable | ResourceExhausted)]
        node = (passing or list(refusals))[0]
        error = refusals[node]
        if passing:
            # No fault of the server: capacity or the agent. Try again soon, keep the callers.
            self._refused(target, replica, node, error)
            return
        log.warning("replica %s was refused: %s", replica.id, error)
        self._fleet.forget(replica)
        target.start_failed(replica, ErrorInfo.of(error))

    def _refused(self, target: Target, replica: Replica, node: str, error: GlowplugError) -> None:
        log.warning("replica %s cannot be started now: %s", replica.id, error)
        self._fleet.forget(replica)
        target.give_back_cold_start(replica)
        target.history.postponed(error.message)
        older = [r for r in target.outdated() if not target.is_current(r)]
        idle = [r for r in older if r.is_serving and not r.in_flight]
        if idle:
            # The old version may be what takes the room: it makes way as soon as it has nothing to do.
            self._fleet.drain(idle[0], target.version.spec.request_timeout_s)
        else:
            self._ladder.find_room(node, target, error)

    def _stop_if_drained(self, replica: Replica) -> None:
        now_s = self._clock.monotonic()
        drain = replica.drain
        if drain is None or now_s < drain.next_stop_at_s:
            return
        if now_s < drain.deadline_s and (replica.in_flight or not self._routers.has_let_go(replica)):
            return
        link = next((link for link in self._links if link.name == replica.node), None)
        if link is None or not link.is_synced:
            return
        drain.next_stop_at_s = now_s + _STOP_RETRY_S
        if replica.view.state is not ReplicaState.DRAINING:
            self._call(self._ask_to_stop(link, replica))

    async def _ask_to_stop(self, link: NodeLink, replica: Replica) -> None:
        log.info("stopping replica %s", replica.id)
        try:
            view = await link.client.stop_replica(replica.id, grace_s=self._timings.stop_grace_s)
        except NotFound:
            gone = replica.view.model_copy(update={"state": ReplicaState.STOPPED})
            self._fleet.apply(link.name, gone)
        except GlowplugError as error:
            log.warning("replica %s cannot be stopped now: %s", replica.id, error)
        else:
            self._fleet.answered(link.name, view)

    def _stop_orphans(self) -> None:
        for replica in list(self._fleet.orphans.values()):
            if replica.drain is None:
                self._fleet.drain(replica, self._timings.stop_grace_s)
            self._stop_if_drained(replica)

    def _stop_duplicates(self) -> None:
        for node, replica_id in list(self._fleet.duplicates):
            link = self._placer.link(node)
            self._fleet.duplicates.discard((node, replica_id))
            if link is not None:
                self._call(self._ask_to_stop_duplicate(link, replica_id))

    async def _ask_to_stop_duplicate(self, link: NodeLink, replica_id: str) -> None:
        try:
            await link.client.stop_replica(replica_id, grace_s=0.0)
        except GlowplugError as error:  # its node lists it again, and it is tried again
            log.warning("the second copy of %s on %s cannot be stopped: %s", replica_id, link.name, error)

    def _call(self, call: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._call_ended)

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call to an agent broke", exc_info=error)
