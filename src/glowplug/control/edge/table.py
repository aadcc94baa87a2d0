"""The table that a router on a node follows: kept as it was told last, however long nobody tells anything."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
from collections.abc import Callable
from pathlib import Path

from glowplug.control.channel import ExchangeBroken, ReplicaChannel
from glowplug.control.edge.server import EdgeServer
from glowplug.control.edge.upstream import Upstream
from glowplug.control.replica_entry import Replica
from glowplug.node.address import LocalNode, NodeAddress, RemoteNode
from glowplug.types.clock import Clock
from glowplug.types.replica import ReplicaState, ReplicaView
from glowplug.types.routes import NodeRoute, ReplicaRoute, RouterReport, RouteUpdate, ServerRoutes

log = logging.getLogger(__name__)

# For a server that we do not know, and control may.
_UNKNOWN_TIMEOUT_S = 86_400.0


class RouteTable:
    """All servers by name. Replicas of ``own_node`` are reached directly, others through their gateways.

    ``tunnel`` gives the TLS context for that, as soon as there is one. Owns the connections: :meth:`close`.
    """

    def __init__(
        self,
        own_node: str,
        agent_socket: Path,
        upstream: Upstream,
        tunnel: Callable[[], ssl.SSLContext | None],
        *,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.servers: dict[tuple[str, str], EdgeServer] = {}
        self.is_known = False
        """Control has told all there is, once at least."""
        self._own_node = own_node
        self._agent_socket = agent_socket
        self._upstream = upstream
        self._tunnel = tunnel
        self._clock = clock
        self._rng = rng
        self._nodes: dict[str, NodeRoute] = {}
        self._heard_at_s = -math.inf
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def age_s(self) -> float:
        """How long ago control has said that it is up to date; infinite before."""
        return self._clock.monotonic() - self._heard_at_s

    def target(self, app: str, server: str) -> EdgeServer:
        """The named server; one that is not known here is control's to know."""
        known = self.servers.get((app, server))
        if known is not None:
            return known
        nothing = ServerRoutes(
            app=app, server=server, request_timeout_s=_UNKNOWN_TIMEOUT_S, target_concurrency=1
        )
        return EdgeServer(nothing, self._upstream, self._clock, self._rng)

    # -- what control tells ----------------------------------------------------------------------------------

    def heard(self) -> None:
        """Control has spoken: what it told before still holds."""
        self._heard_at_s = self._clock.monotonic()

    def apply(self, update: RouteUpdate) -> None:
        """Follow a change of the table."""
        if update.nodes is not None:
            self._nodes = {node.name: node for node in update.nodes}
        gone = {(one.app, one.server) for one in update.gone}
        if update.is_whole:
            gone |= self.servers.keys() - {(one.app, one.server) for one in update.servers}
            self.is_known = True
        for name in gone & self.servers.keys():
            server = self.servers.pop(name)
            for replica in list(server.replicas.values()):
                self._end(server, replica)
            server.recompute()
        for routes in update.servers:
            self._follow(routes)
        if update.nodes is not None:
            self.open_ways()

    def note_outstanding(self, counts: dict[str, int]) -> None:
        """What all routers together have at replicas; that of the others counts when one is chosen."""
        if not counts:
            return
        for server in self.servers.values():
            ours = server.told.in_flight if server.told else {}
            for replica_id in counts.keys() & server.replicas.keys():
                others = counts[replica_id] - ours.get(replica_id, 0)
                server.replicas[replica_id].elsewhere = max(others, 0)

    def open_ways(self) -> None:
        """Open the ways that are not open yet, or that lead where a node is no more."""
        for server in self.servers.values():
            for replica in server.replicas.values():
                self._open_way(server, replica)
            server.recompute()

    # -- what control is told --------------------------------------------------------------------------------

    def report(self, version: int, *, is_first: bool) -> RouterReport:
        """What has changed since the report before; in the ``is_first`` one of a connection all there is."""
        changed = []
        for server in self.servers.values():
            said, now = server.told, server.report()
            server.told = now
            is_news = said is None or now.started != said.started or now.in_flight != said.in_flight
            if (is_news or is_first) and (now.started or now.in_flight):
                changed.append(now)
        return RouterReport(version=version, servers=changed)

    async def close(self) -> None:
        """Close every connection."""
        for server in self.servers.values():
            for replica in server.replicas.values():
                self._close_way(replica)
        await asyncio.gather(*self._closing, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------

    def _follow(self, routes: ServerRoutes) -> None:
        name = (routes.app, routes.server)
        server = self.servers.get(name)
        if server is None:
            server = self.servers[name] = EdgeServer(routes, self._upstream, self._clock, self._rng)
        server.routes = routes
        listed = {route.id for route in routes.replicas}
        for replica in [one for one in server.replicas.values() if one.id not in listed]:
            self._end(server, replica)
        for route in routes.replicas:
            replica = server.replicas.get(route.id) or Replica(_view(routes, route), route.node)
            server.replicas[route.id] = replica
            replica.view, replica.node = _view(routes, route), route.node
            replica.is_parking = not route.is_open
            self._open_way(server, replica)
        server.recompute()

    def _open_way(self, server: EdgeServer, replica: Replica) -> None:
        endpoint, address = replica.view.endpoint, self._address_of(replica.node)
        known = replica.channel
        if endpoint is None or (known and known.endpoint == endpoint and known.node == address):
            return
        self._close_way(replica)
        if address is None:
            return
        try:
            replica.channel = ReplicaChannel(
                replica.id, endpoint, address, silence_limit_s=server.request_timeout_s
            )
        except OSError as error:  # it ends at this moment: control will tell
            log.warning("replica %s cannot be reached: %s", replica.id, error)

    def _address_of(self, node: str) -> NodeAddress | None:
        if node == self._own_node:
            return LocalNode(self._agent_socket)
        tunnel, route = self._tunnel(), self._nodes.get(node)
        if tunnel is None or route is None:
            return None
        # Agents are none of a router's business: with its certificate they would not even listen.
        return RemoteNode(route.name, route.host, route.port, http=tunnel, tunnel=tunnel)

    def _end(self, server: EdgeServer, replica: Replica) -> None:
        del server.replicas[replica.id]
        self._close_way(replica)
        replica.interrupt_all(
            ExchangeBroken(
                f"Replica {replica.id} ended before it answered.",
                remedy=f"See its log: glowplug logs {replica.id}.",
                replica_id=replica.id,
            )
        )

    def _close_way(self, replica: Replica) -> None:
        channel, replica.channel = replica.channel, None
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _view(routes: ServerRoutes, route: ReplicaRoute) -> ReplicaView:
    return ReplicaView(
        id=route.id,
        app=routes.app,
        server=routes.server,
        deployment_id="",
        state=ReplicaState.READY,
        endpoint=route.endpoint,
        created_at=0.0,
    )
