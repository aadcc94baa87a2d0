"""One look at all replicas of a server: which of them count, which are on their way out, which rest.

The reconciler needs each of these lists in every pass; made one by one they are most of its work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glowplug.control.replica_entry import Replica


@dataclass(frozen=True)
class Census:
    """``live`` ones are of the active version and may stay where they are, ``outdated`` ones are live too.

    ``parked`` are of any version. ``leaving`` counts requests at replicas that are not live.
    """

    live: list[Replica]
    outdated: list[Replica]
    parked: list[Replica]
    draining: list[Replica]
    leaving: int


def take_census(replicas: Iterable[Replica], deployment_id: str) -> Census:
    """Of these replicas, where ``deployment_id`` is the active version."""
    live: list[Replica] = []
    outdated: list[Replica] = []
    parked: list[Replica] = []
    draining: list[Replica] = []
    leaving = 0
    for replica in replicas:
        if replica.is_live:
            is_wanted = replica.view.deployment_id == deployment_id and not replica.is_leaving
            (live if is_wanted else outdated).append(replica)
            continue
        leaving += len(replica.in_flight)
        if replica.drain is not None:
            draining.append(replica)
        elif replica.is_parked:
            parked.append(replica)
    return Census(live, outdated, parked, draining, leaving)
