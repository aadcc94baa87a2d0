"""The control plane in one piece: every part made, wired and started in order, and released in reverse.

Nothing here depends on how it is served: tests run it in their own event loop, ``server.py`` behind uvicorn.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from prometheus_client import Counter as CounterMetric

from glowplug.control.cluster_keys import ClusterKeys
from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.deployer import Deployer
from glowplug.control.fleet import Fleet
from glowplug.control.image_care import ImageCare
from glowplug.control.leadership import Leadership
from glowplug.control.membership import Membership
from glowplug.control.messages import AppStatus, NodeStatus, ServerStatus, StatusView
from glowplug.control.metrics import FleetCollector
from glowplug.control.node_link import NodeLink
from glowplug.control.overhead import OverheadHistogram
from glowplug.control.own_node import OwnNode
from glowplug.control.placer import Placer
from glowplug.control.reconciler import Reconciler
from glowplug.control.router import Router
from glowplug.control.routers import Routers
from glowplug.control.scarcity import ScarcityPrices
from glowplug.control.server_heat import server_heats
from glowplug.control.store import Store
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.control.usage import UsageRecorder
from glowplug.node.address import LocalNode, RemoteNode
from glowplug.node.client import NodeClient
from glowplug.observe.metrics import Metrics
from glowplug.observe.tracing import tracer_from_environment
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, NotFound, Unavailable
from glowplug.types.paths import IdentityDir
from glowplug.types.replica import HeatView, NodeView

log = logging.getLogger(__name__)

_STOP_WAIT_S = 60.0
_LOOK_WAIT_S = 2.0


class ControlPlane:
    """Owns everything between the database and the agents. Use as an async context manager, once we lead.

    Without ``agent_socket`` the machine that we run on is no node: those that join do all the work. ``pools``
    is where the planner of this machine, if one runs, says what GPUs are worth.
    """

    def __init__(
        self,
        *,
        store: Store,
        leadership: Leadership,
        agent_socket: Path | None,
        identity: IdentityDir,
        pools: Path,
        own: OwnNode | None = None,
        clock: Clock | None = None,
        timings: Timings | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._timings = timings or Timings()
        self._started_at_s = self._clock.monotonic()
        self.metrics = Metrics()
        self._own = own
        self.store = store
        self.leadership = leadership
        self.metrics.registry.register(leadership)
        tracer = tracer_from_environment(os.environ)
        self.cold_starts = ColdStartLog(self.store, self._clock, self.metrics, tracer)
        self.fleet = Fleet(clock=self._clock, timings=self._timings, cold_starts=self.cold_starts)
        self._version = importlib.metadata.version("glowplug")
        self.images = ImageCare(self._clock, self._timings)
        own_node = None if agent_socket is None else self._own_node(own, agent_socket, leadership)
        self.membership = Membership(
            own_node,
            self.store,
            self.fleet,
            ClusterKeys(identity, self.store, self._clock),
            self.images,
            leadership,
            clock=self._clock,
            timings=self._timings,
            version=self._version,
        )
        self.links = self.membership.links
        self.deployer = Deployer(self.store, self.fleet, self.links, self._clock)
        self.placer = Placer(self.fleet, self.links, self.images, self._clock)
        self.routers = Routers(
            self.links,
            self.fleet,
            self.membership.keys,
            leadership,
            own=own,
            clock=self._clock,
            timings=self._timings,
        )
        self.metrics.registry.register(self.routers)
        self.reconciler = Reconciler(
            self.fleet,
            self.links,
            self.placer,
            self.images,
            self.routers,
            ScarcityPrices(pools, self._clock),
            clock=self._clock,
            timings=self._timings,
        )
        self.refused_joins = CounterMetric(
            "glowplug_joins_refused",
            "Machines that asked to join, or for a certificate, and were refused.",
            registry=self.metrics.registry,
        )
        overhead = OverheadHistogram()
        self.metrics.registry.register(FleetCollector(self.fleet, self.links, overhead))
        self.usage = UsageRecorder(self.fleet, self.store, self._clock, self.metrics.registry)
        self.router = Router(self.fleet, timings=self._timings, clock=self._clock, overhead=overhead)
        self.on_broken: Callable[[], None] = lambda: None
        """Called when a part has ended by a bug: whoever serves us should end too, and be restarted."""
        self._tasks: list[asyncio.Task[None]] = []

    def _own_node(self, own: OwnNode | None, agent_socket: Path, leadership: Leadership) -> NodeLink:
        return NodeLink(
            own.name if own else socket.gethostname(),
            NodeClient(LocalNode(agent_socket), leadership),
            self.fleet,
            clock=self._clock,
            timings=self._timings,
        )

    async def __aenter__(self) -> Self:
        await self.deployer.load()
        await self.membership.load()
        self.routers.follow_members()  # before anything is parked or stopped
        jobs = [
            self.reconciler.run(),
            self.cold_starts.run(),
            self.usage.run(),
            self.membership.run(),
            self.routers.run(),
            *([self.membership.find_members()] if self.leadership.shared_address else []),
        ]
        self._tasks = [asyncio.get_running_loop().create_task(job) for job in jobs]
        for task in self._tasks:
            task.add_done_callback(self._part_ended)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.fleet.close()
        await self.cold_starts.flush()
        await self.usage.save_last()
        await self.membership.close()
        await self.store.close()

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a part of the control plane has ended", exc_info=error)
            self.on_broken()

    def refuse_held(self) -> None:
        """We are about to end: whoever still waits is told to come back."""
        for target in self.fleet.targets():
            target.fail_held(
                lambda: Unavailable(
                    "The control plane is being restarted.", remedy="Send it again.", retry_after_s=1
                )
            )

    async def stop(self, app: str, server: str | None, *, remove: bool, wait: bool) -> list[str]:
        """Stop an app's (or one server's) replicas; with ``remove``, undeploy it. Returns their ids.

        The next request wakes a stopped server. Raises NotFound, Conflict, DeadlineExceeded.
        """
        if server is not None:
            targets = [self.fleet.target(app, server)]
        elif app in self.fleet.apps:
            targets = list(self.fleet.apps[app].values())
        else:
            raise NotFound(f"No app {app!r} is deployed.", remedy="See glowplug status.", app=app)
        replicas = [replica for target in targets for replica in target.replicas.values()]
        if remove:
            await self.deployer.remove(app)
        for target in targets:
            target.is_stopped = True
        for replica in replicas:
            self.fleet.drain(replica, self._timings.stop_grace_s)
        ids = [replica.id for replica in replicas]
        if wait:
            await self.fleet.changes.wait_until(
                lambda: not any(replica_id in self.fleet.replicas for replica_id in ids),
                _STOP_WAIT_S,
                f"Stopping {app}",
            )
        return ids

    async def nodes(self) -> list[NodeStatus]:
        """All machines, and what they may be used for; those that do not answer, as they were last."""
        replicas = Counter(replica.node for replica in self.fleet.replicas.values())
        return list(
            await asyncio.gather(*(self._node_status(link, replicas[link.name]) for link in self.links))
        )

    async def node_status(self, link: NodeLink) -> NodeStatus:
        """One machine."""
        replicas = sum(1 for replica in self.fleet.replicas.values() if replica.node == link.name)
        return await self._node_status(link, replicas)

    async def _node_status(self, link: NodeLink, replicas: int) -> NodeStatus:
        address = link.client.address
        view = await self._view_of(link)
        # Our own is called what the machine calls itself; others are called what they joined as.
        name = view.name if view is not None and link.is_own and self._own is None else link.name
        return NodeStatus(
            name=name,
            is_reachable=view is not None,
            view=None if view is None else view.model_copy(update={"name": name}),
            state=link.state,
            why=link.why,
            address=f"{address.host}:{address.port}" if isinstance(address, RemoteNode) else None,
            labels=link.labels,
            router=self.routers.status(link.name),
            replicas=replicas,
        )

    async def _view_of(self, link: NodeLink) -> NodeView | None:
        """What the machine says it has; None if it says nothing. Another machine is not waited for long, and
        not asked if it was a moment ago.
        """
        if link.is_silent:
            return None
        if link.is_synced and not link.is_own and link.view is not None:
            return link.view
        try:
            async with asyncio.timeout(None if link.is_own else _LOOK_WAIT_S):
                return await link.client.node()
        except (GlowplugError, TimeoutError):
            return None

    async def status(self, *, with_heat: bool = False) -> StatusView:
        """Everything at a glance; ``with_heat``, a few nodes are asked about every server at zero."""
        known = await server_heats(self.fleet.targets(), self.links) if with_heat else {}
        return StatusView(
            version=self._version,
            uptime_s=self._clock.monotonic() - self._started_at_s,
            nodes=await self.nodes(),
            apps=[_app_status(app, servers, known) for app, servers in sorted(self.fleet.apps.items())],
            leadership=self.leadership.view(),
        )


def _app_status(app: str, servers: dict[str, Target], heats: Mapping[Target, HeatView | None]) -> AppStatus:
    deployment_id = next(iter(servers.values())).version.deployment_id
    return AppStatus(
        name=app,
        deployment_id=deployment_id,
        version=int(deployment_id.rpartition("-v")[2]),
        servers=[
            ServerStatus(
                name=target.server,
                url=f"/{app}/{target.server}",
                ready=len(target.ready),
                starting=sum(1 for replica in target.replicas.values() if replica.is_starting),
                parked=len(target.parked()),
                desired=target.desired,
                in_flight=target.in_flight,
                held=len(target.held),
                heat=heats.get(target),
                error=target.history.error,
            )
            for target in servers.values()
        ],
    )
