"""All routers on nodes: who is followed, what they are told, and whether a replica may go.

A replica that routers know is taken out of their tables before it is parked or stopped, and goes once each of
them has said that it has heard that, and has no request there. A router that cannot be asked may be sending
some: it is waited for, up to :attr:`~glowplug.control.timings.Timings.router_patience_s`, unless its process
or its machine is known to be gone. A late scale-down costs less than a lost request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.fleet import Fleet
from glowplug.control.leadership import Leadership
from glowplug.control.messages import RouterState, RouterStatus
from glowplug.control.node_link import NodeLink
from glowplug.control.own_node import OwnNode
from glowplug.control.replica_entry import Replica
from glowplug.control.route_book import RouteBook
from glowplug.control.router_link import RouterLink
from glowplug.control.timings import Timings
from glowplug.node.address import RemoteNode
from glowplug.types.clock import Clock

log = logging.getLogger(__name__)

_GATHER_S = 0.02
"""After a change it is waited so long for more: a node that lists a hundred replicas is one update."""
_LOOK_AGAIN_S = 0.1


class Routers(Collector):
    """Owns the links to routers and their tasks. :meth:`run` is somebody's task.

    ``own``: control's own machine, where that has a gateway through which routers reach its replicas.
    """

    def __init__(
        self,
        nodes: Sequence[NodeLink],
        fleet: Fleet,
        keys: ClusterKeys,
        leadership: Leadership,
        *,
        own: OwnNode | None,
        clock: Clock,
        timings: Timings,
    ) -> None:
        self._nodes = nodes
        self._fleet = fleet
        self._keys = keys
        self._leadership = leadership
        self._clock = clock
        self._timings = timings
        self._book = RouteBook(fleet, own)
        self._links: dict[str, RouterLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reported = asyncio.Event()
        self._times_given_up = 0

    # -- whether a replica may go ----------------------------------------------------------------------------

    def has_let_go(self, replica: Replica) -> bool:
        """No router gives this replica any more requests; those that it has are among its own in flight."""
        waited_for = [link for link in self._links.values() if link.may_have_requests]
        if not waited_for:
            return True
        self._publish()
        version = self._book.closed_in(replica)
        return version is not None and all(link.has_acknowledged(version) for link in waited_for)

    async def let_go(self, replica: Replica, is_wanted: Callable[[], bool]) -> bool:
        """Wait until the replica, which gets no more requests here, gets none from anywhere and has none.

        False if a router still has some there, or as soon as it ``is_wanted`` again.
        """
        if not self._links:
            return True
        until_s = self._clock.monotonic() + self._timings.router_patience_s
        while not self.has_let_go(replica):
            if is_wanted() or self._clock.monotonic() >= until_s:
                return False
            self._reported.clear()
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._reported.wait()
            except TimeoutError:
                continue
        return not replica.in_flight

    # -- following -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the routers of all nodes until cancelled. Raises what a bug in following one raises."""
        try:
            with self._fleet.changes.watch() as changed:
                beat_at_s = 0.0
                while True:
                    self.follow_members()
                    self._publish()
                    if self._clock.monotonic() >= beat_at_s:
                        beat_at_s = self._clock.monotonic() + self._timings.router_beat_s
                        self._tell_outstanding()
                    await self._sleep(changed)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def follow_members(self) -> None:
        """Follow the router of every node there is, and of no other."""
        members = {
            node.name: (node, address)
            for node in self._nodes
            if isinstance(address := node.client.address, RemoteNode)
        }
        for name, task in self._tasks.items():
            if task.done() and not task.cancelled():
                task.result()
            if name not in members or members[name][1] != self._links[name].address:
                task.cancel()
        for name in [name for name, task in self._tasks.items() if task.cancelling() or task.done()]:
            self._links.pop(name).forget()
            del self._tasks[name]
        for name, (node, address) in members.items():
            if name not in self._links:
                self._links[name] = link = self._new_link(address)
                self._tasks[name] = asyncio.get_running_loop().create_task(link.run())
            if node.is_lost or not self._links[name].may_have_requests:
                self._give_up(self._links[name])

    def status(self, node: str) -> RouterStatus | None:
        """The router of that node."""
        link = self._links.get(node)
        return None if link is None else link.status()

    def collect(self) -> Iterable[Metric]:
        """Routers by state, and how often one was not waited for."""
        routers = GaugeMetricFamily("glowplug_routers", "Routers on nodes by state.", labels=("state",))
        states = Counter(link.state for link in self._links.values())
        for state in RouterState:
            routers.add_metric((state.value,), states[state])
        yield routers
        yield CounterMetricFamily(
            "glowplug_routers_not_waited_for",
            "Times that a router could not be asked for so long that replicas may go without its word.",
            value=self._times_given_up,
        )

    async def _sleep(self, changed: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._timings.tick_s):
                await changed.wait()
            await asyncio.sleep(_GATHER_S)
        except TimeoutError:
            pass
        finally:
            changed.clear()

    def _publish(self) -> None:
        if self._links and self._book.refresh():
            for link in self._links.values():
                link.hurry()

    def _tell_outstanding(self) -> None:
        if self._links and (changed := self._book.changed_outstanding()):
            for link in self._links.values():
                link.note_outstanding(changed)

    def _give_up(self, link: RouterLink) -> None:
        if link.is_given_up or link.state is not RouterState.AWAY:
            return
        log.warning("the router of node %s cannot be asked: nothing waits for it", link.address.name)
        link.is_given_up = True
        self._times_given_up += 1
        link.forget()

    def _new_link(self, address: RemoteNode) -> RouterLink:
        return RouterLink(
            address,
            self._fleet,
            self._book,
            self._keys,
            term=self._leadership.term or 0,
            control_url=self._leadership.shared_address,
            is_settled=lambda: all(node.is_settled for node in self._nodes),
            on_report=self._reported.set,
            clock=self._clock,
            timings=self._timings,
        )
