"""What one router on a node has told of its requests, as part of what control itself counts.

Its requests in flight stand among those of each replica, so that whoever decides about a replica by them
(parking, stopping, placing, accounting) need not know whose they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from glowplug.control.fleet import Fleet
from glowplug.control.replica_entry import Replica
from glowplug.control.target import Target
from glowplug.types.routes import MAX_IN_FLIGHT, RouterReport, ServerReport


class RoutedElsewhere:
    """A request that a router on a node has at a replica. That router learns of the replica's end itself."""

    def interrupt(self, reason: Exception) -> None:
        """Nothing to do here."""


@dataclass
class _Known:
    target: Target
    started: int
    in_flight: int = 0
    requests: dict[str, list[RoutedElsewhere]] = field(default_factory=dict)
    """By replica."""


class RouterCounts:
    """The counts of one life of a router. :meth:`clear` when it cannot have any request any more."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: dict[tuple[str, str], _Known] = {}
        self._total = 0

    @property
    def in_flight(self) -> int:
        """Requests that it had when it told last."""
        return self._total

    def apply(self, report: RouterReport, *, is_first: bool) -> None:
        """``is_first``: nothing was known of this life of the router; what it did before does not count."""
        for server in report.servers:
            name = (server.app, server.server)
            target = self._fleet.apps.get(server.app, {}).get(server.server)
            known = self._known.get(name)
            if known is not None and known.target is not target:
                self._end_all(self._known.pop(name))
                known = None
            if target is None:
                continue
            if known is None:
                known = self._known[name] = _Known(target, server.started if is_first else 0)
            self._count(known, server)

    def clear(self) -> None:
        """None of its requests is under way any more; what it has begun stays known."""
        for known in self._known.values():
            self._end_all(known)

    def _count(self, known: _Known, server: ServerReport) -> None:
        before = known.in_flight
        self._total -= before
        known.in_flight = 0
        for replica_id in known.requests.keys() - server.in_flight.keys():
            self._set(known, replica_id, 0)
        for replica_id, count in server.in_flight.items():
            if replica_id in known.target.replicas:
                room = MAX_IN_FLIGHT - self._total - known.in_flight
                known.in_flight += self._set(known, replica_id, min(count, room))
        self._total += known.in_flight
        started = max(server.started - known.started, 0)
        known.started = server.started
        known.target.reported(started=started, in_flight=known.in_flight, peak=server.peak, before=before)

    def _set(self, known: _Known, replica_id: str, count: int) -> int:
        requests = known.requests.setdefault(replica_id, [])
        replica: Replica | None = self._fleet.replicas.get(replica_id)
        added = [RoutedElsewhere() for _ in range(count - len(requests))]
        ended, requests[count:] = requests[count:], []
        requests += added
        if not requests:
            del known.requests[replica_id]
        if replica is not None:
            replica.in_flight.difference_update(ended)
            replica.in_flight.update(added)
        return count

    def _end_all(self, known: _Known) -> None:
        for replica_id in list(known.requests):
            self._set(known, replica_id, 0)
        before, known.in_flight = known.in_flight, 0
        self._total -= before
        known.target.reported(started=0, in_flight=0, peak=0, before=before)
