"""The control plane in one piece: every part made, wired and started in order, and released in reverse.

Nothing here depends on how it is served: tests run it in their own event loop, ``server.py`` behind uvicorn.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.deployer import Deployer
from glowplug.control.fleet import Fleet
from glowplug.control.messages import AppStatus, NodeStatus, ServerStatus, StatusView
from glowplug.control.metrics import FleetCollector, OverheadHistogram
from glowplug.control.node_link import NodeLink
from glowplug.control.reconciler import Reconciler
from glowplug.control.router import Router
from glowplug.control.server_heat import server_heat
from glowplug.control.store import Store
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.control.usage import UsageRecorder
from glowplug.node.client import NodeClient
from glowplug.observe.metrics import Metrics
from glowplug.observe.tracing import tracer_from_environment
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, NotFound, Unavailable
from glowplug.types.replica import HeatView

log = logging.getLogger(__name__)

_STOP_WAIT_S = 60.0


class ControlPlane:
    """Owns everything between the database and the agents. Use as an async context manager."""

    def __init__(
        self,
        *,
        database_url: str,
        agent_socket: Path,
        clock: Clock | None = None,
        timings: Timings | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._timings = timings or Timings()
        self._started_at_s = self._clock.monotonic()
        self.metrics = Metrics()
        self.store = Store(database_url)
        tracer = tracer_from_environment(os.environ)
        self.cold_starts = ColdStartLog(self.store, self._clock, self.metrics, tracer)
        self.fleet = Fleet(clock=self._clock, timings=self._timings, cold_starts=self.cold_starts)
        client = NodeClient(agent_socket)
        self.links = [
            NodeLink(socket.gethostname(), client, self.fleet, clock=self._clock, timings=self._timings)
        ]
        self.deployer = Deployer(self.store, self.fleet, self.links, self._clock)
        self.reconciler = Reconciler(self.fleet, self.links, clock=self._clock, timings=self._timings)
        overhead = OverheadHistogram()
        self.metrics.registry.register(FleetCollector(self.fleet, overhead))
        self.usage = UsageRecorder(self.fleet, self.store, self._clock, self.metrics.registry)
        self.router = Router(self.fleet, timings=self._timings, clock=self._clock, overhead=overhead)
        self.on_broken: Callable[[], None] = lambda: None
        """Called when a part has ended by a bug: whoever serves us should end too, and be restarted."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.deployer.load()
        jobs = [
            self.reconciler.run(),
            self.cold_starts.run(),
            self.usage.run(),
            *(link.run() for link in self.links),
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
        await self.usage.save()
        for link in self.links:
            await link.client.close()
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
            await self.fleet.wait_until(
                lambda: not any(replica_id in self.fleet.replicas for replica_id in ids),
                _STOP_WAIT_S,
                f"Stopping {app}",
            )
        return ids

    async def status(self, *, with_heat: bool = False) -> StatusView:
        """Everything at a glance; ``with_heat``, nodes are asked about every server at zero."""
        targets = list(self.fleet.targets()) if with_heat else []
        heats = await asyncio.gather(*(server_heat(target, self.links) for target in targets))
        known = dict(zip(targets, heats, strict=True))
        return StatusView(
            version=importlib.metadata.version("glowplug"),
            uptime_s=self._clock.monotonic() - self._started_at_s,
            nodes=[await _node_status(link) for link in self.links],
            apps=[_app_status(app, servers, known) for app, servers in sorted(self.fleet.apps.items())],
        )


async def _node_status(link: NodeLink) -> NodeStatus:
    try:
        view = await link.client.node()
    except GlowplugError:
        return NodeStatus(name=link.name, is_reachable=False)
    return NodeStatus(name=view.name, is_reachable=True, view=view)


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
