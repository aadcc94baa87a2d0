"""Where requests go when there are more replicas than there should be: so that those fall idle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.control.conftest import server_spec

from glowplug.control.replica_entry import Replica
from glowplug.control.server_version import ServerVersion
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.types.clock import ManualClock
from glowplug.types.replica import ReplicaState, ReplicaView
from glowplug.types.spec import ServerSpec


def target_with(*in_flight: int, target_concurrency: int = 2) -> tuple[Target, list[Replica]]:
    """A server and its ready replicas, the oldest first, with so many requests each."""
    spec = ServerSpec.model_validate(server_spec(scaling={"target_concurrency": target_concurrency}))
    target = Target(
        "shop",
        ServerVersion("d1", spec, "image", {}),
        clock=ManualClock(1_000.0),
        timings=Timings(),
        cold_starts=cast(Any, SimpleNamespace()),
        on_demand=lambda: None,
    )
    replicas = []
    for place, count in enumerate(in_flight):
        view = ReplicaView(
            id=f"r{place}", app="shop", server="web", deployment_id="d1", state=ReplicaState.READY,
            created_at=float(place),
        )  # fmt: skip
        replica = Replica(view, "node", channel=cast(Any, object()))
        replica.in_flight = {cast(Any, f"{place}.{number}") for number in range(count)}
        target.replicas[view.id] = replica
        replicas.append(replica)
    target.recompute()
    return target, replicas


def test_requests_go_to_the_least_busy_while_there_are_as_many_as_there_should_be() -> None:
    target, replicas = target_with(2, 1, 3)
    target.spare(0)
    assert target.pick() is replicas[1]


def test_one_too_many_gets_nothing_while_others_have_room_and_helps_when_they_have_not() -> None:
    target, replicas = target_with(1, 0, 1)
    replicas[1].in_flight = {cast(Any, "a request")}
    target.spare(1)
    assert [replica.is_spare for replica in replicas] == [True, False, False]
    assert target.pick() is replicas[1]
    for replica in replicas[1:]:
        replica.in_flight |= {cast(Any, "another")}
    assert target.pick() is replicas[0]
    replicas[0].in_flight |= {cast(Any, "1"), cast(Any, "2")}
    assert target.pick() is replicas[1]


def test_who_is_to_spare_stays_it_until_as_many_are_wanted_again() -> None:
    target, replicas = target_with(3, 1, 2, target_concurrency=4)
    target.spare(1)
    assert replicas[1].is_spare
    replicas[1].in_flight |= {cast(Any, number) for number in range(5)}
    target.spare(1)
    assert [replica.is_spare for replica in replicas] == [False, True, False]
    target.spare(0)
    assert not any(replica.is_spare for replica in replicas)


@pytest.mark.parametrize("surplus", [1, 2, 3])
def test_an_idle_replica_is_no_spare_and_not_all_can_be_left_alone(surplus: int) -> None:
    target, replicas = target_with(1, 0, 2)
    target.spare(surplus)
    assert not replicas[1].is_spare
    assert target.pick() is replicas[1]
    replicas[1].suspect_until_s = 1e9
    assert target.pick() in (replicas[0], replicas[2])
