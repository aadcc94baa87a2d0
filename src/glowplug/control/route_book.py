"""The table that routers on nodes follow: every server's replicas, and in which version each last changed.

Made from the fleet by looking at what has moved, so that a change of one server costs its own replicas only;
the lines that say what is new since a version are made once for all routers. Nothing here waits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from glowplug.control.fleet import Fleet
from glowplug.control.own_node import OwnNode
from glowplug.control.replica_entry import Replica
from glowplug.control.target import Target
from glowplug.node.address import RemoteNode
from glowplug.types.replica import ReplicaState
from glowplug.types.routes import NodeRoute, ReplicaRoute, RouteUpdate, ServerName, ServerRoutes

_REMEMBERED_REMOVALS = 1000
_LISTED = (ReplicaState.READY, ReplicaState.PARKED, ReplicaState.DRAINING)


@dataclass(frozen=True)
class _Entry:
    target: Target
    changes: int
    version: int
    routes: ServerRoutes


class RouteBook:
    """One table. ``version`` grows with every change that :meth:`refresh` finds.

    ``own``: control's own machine, if it has a gateway.
    """

    def __init__(self, fleet: Fleet, own: OwnNode | None = None) -> None:
        self.version = 1
        self._fleet = fleet
        self._servers: dict[tuple[str, str], _Entry] = {}
        self._removed: dict[tuple[str, str], int] = {}
        self._own = {} if own is None else {own.name: NodeRoute(name=own.name, host=own.host, port=own.port)}
        self._nodes: dict[str, NodeRoute] = {}
        self._nodes_version = 0
        self._forgotten_version = 0
        """Removals up to this version are not remembered: who is behind it gets the whole table."""
        self._closed: dict[str, int | None] = {}
        """Replicas of the table: since which version they are closed, None for those that are open."""
        self._lines: dict[int, bytes] = {}
        self._outstanding: dict[str, int] = {}

    def refresh(self) -> bool:
        """Look at the fleet; whether there is a new version."""
        version = self.version + 1
        has_changed = self._refresh_nodes(version)
        is_forced = has_changed
        seen = set()
        for target in self._fleet.targets():
            name = (target.app, target.server)
            seen.add(name)
            known = self._servers.get(name)
            if known and known.target is target and known.changes == target.changes and not is_forced:
                continue
            routes = self._routes_of(target)
            if known is not None and known.routes == routes:
                version_of_it = known.version
            else:
                version_of_it, has_changed = version, True
                self._note_closed(known, routes, version)
                self._removed.pop(name, None)
            self._servers[name] = _Entry(target, target.changes, version_of_it, routes)
        for name in self._servers.keys() - seen:
            self._note_closed(self._servers.pop(name), None, version)
            self._removed[name] = version
            has_changed = True
        if has_changed:
            self.version = version
            self._lines.clear()
            self._forget_old_removals()
        return has_changed

    def closed_in(self, replica: Replica) -> int | None:
        """The version that closes it to requests; None while it is open, 0 where no router ever knew it."""
        return self._closed.get(replica.id, 0)

    def line_since(self, version: int | None, *, term: int, control_url: str | None) -> bytes:
        """What to tell who has that version, or nothing yet, so that it has this one."""
        since = -1 if version is None or version < self._forgotten_version else version
        line = self._lines.get(since)
        if line is None:
            update = self._update(since, term, control_url)
            line = self._lines[since] = update.model_dump_json(exclude_defaults=True).encode() + b"\n"
        return line

    def changed_outstanding(self) -> dict[str, int]:
        """How many requests all routers have at replicas of servers with several, where that has changed."""
        present: dict[str, int] = {}
        for entry in self._servers.values():
            if len(entry.routes.replicas) > 1 and entry.target.in_flight:
                replicas = entry.target.replicas.values()
                present.update((one.id, len(one.in_flight)) for one in replicas if one.in_flight)
        before, self._outstanding = self._outstanding, present
        changed = {name: count for name, count in present.items() if before.get(name) != count}
        changed.update((name, 0) for name in before.keys() - present.keys())
        return changed

    # -- inside ------------------------------------------------------------------------------------

    def _refresh_nodes(self, version: int) -> bool:
        nodes = self._own | {
            name: NodeRoute(name=name, host=address.host, port=address.port)
            for name, address in self._fleet.addresses.items()
            if isinstance(address, RemoteNode)
        }
        if nodes == self._nodes:
            return False
        self._nodes, self._nodes_version = nodes, version
        return True

    def _routes_of(self, target: Target) -> ServerRoutes:
        may_have_requests = {one.id for one in target.ready if one.suspect_until_s != math.inf}
        return ServerRoutes(
            app=target.app,
            server=target.server,
            request_timeout_s=target.request_timeout_s,
            target_concurrency=target.version.spec.scaling.target_concurrency,
            replicas=[
                ReplicaRoute(
                    id=replica.id,
                    node=replica.node,
                    endpoint=replica.view.endpoint,
                    is_open=replica.id in may_have_requests,
                )
                for replica in target.replicas.values()
                if replica.view.state in _LISTED
                and replica.view.endpoint is not None
                and replica.node in self._nodes
            ],
            has_others=any(replica.node not in self._nodes for replica in target.ready),
        )

    def _note_closed(self, before: _Entry | None, after: ServerRoutes | None, version: int) -> None:
        listed = {} if after is None else {route.id: route for route in after.replicas}
        for route in [] if before is None else before.routes.replicas:
            if route.id not in listed:
                self._closed.pop(route.id, None)
        for route in listed.values():
            if route.is_open:
                self._closed[route.id] = None
            elif self._closed.get(route.id) is None:
                self._closed[route.id] = version

    def _forget_old_removals(self) -> None:
        surplus = len(self._removed) - _REMEMBERED_REMOVALS
        for name in list(islice(self._removed, max(surplus, 0))):
            self._forgotten_version = max(self._forgotten_version, self._removed.pop(name))

    def _update(self, since: int, term: int, control_url: str | None) -> RouteUpdate:
        removed = [name for name, version in self._removed.items() if version > since >= 0]
        return RouteUpdate(
            term=term,
            version=self.version,
            is_whole=since < 0,
            control_url=control_url,
            nodes=list(self._nodes.values()) if self._nodes_version > since else None,
            servers=[entry.routes for entry in self._servers.values() if entry.version > since],
            gone=[ServerName(app=app, server=server) for app, server in removed],
        )
