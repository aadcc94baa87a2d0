"""Replica objects show what `glowplug ps` shows, with few writes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.engine.kubernetes.conftest import NAMESPACE
from tests.engine.kubernetes.fake_api import FakeApi
from tests.engine.kubernetes.fake_control import replica

from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.names import REPLICAS
from glowplug.engine.kubernetes.replica_mirror import (
    BURST_WRITES,
    GONE_AFTER_S,
    MEMORY_EVERY_S,
    RELOAD_EVERY_S,
    WRITES_PER_S,
    ReplicaMirror,
)
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Unavailable
from glowplug.types.replica import ErrorInfo, Purpose, ReplicaState, ReplicaView, Stage, StartPath

NAME = "shop-web-000001"


@pytest.fixture
def counters() -> OperatorCounters:
    return OperatorCounters()


@pytest.fixture
def mirror(api: FakeApi, clock: ManualClock, counters: OperatorCounters) -> ReplicaMirror:
    return ReplicaMirror(api, NAMESPACE, clock, counters)


def shown(api: FakeApi, name: str = NAME) -> dict[str, Any]:
    return api.objects[REPLICAS, NAMESPACE, name]


def names(api: FakeApi) -> set[str]:
    return {one["metadata"]["name"] for one in api.list(REPLICAS, NAMESPACE)}


def test_a_replica_has_an_object_in_the_words_of_ps(api: FakeApi, mirror: ReplicaMirror) -> None:
    mirror.follow([replica(node="n1", purpose=Purpose.CAPTURE, path=StartPath.CPU_SNAPSHOT)])
    made = shown(api)
    assert made["spec"] == {
        "server": "shop/web (capture)", "runtime": "runsc", "node": "n1", "deploymentId": "shop-v1",
        "createdAt": "1970-01-12T13:46:40Z",
    }  # fmt: skip
    assert made["status"] == {
        "state": "ready", "path": "cpu_snapshot", "start": "500 ms", "memory": "1.96 GB",
    }  # fmt: skip
    assert made["metadata"]["labels"] == {"glowplug.dev/app": "shop", "glowplug.dev/server": "web"}


def test_changes_of_state_are_written_at_once(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica(state=ReplicaState.STARTING, stage=Stage.MOUNT, ready_at=None)])
    assert shown(api)["status"]["state"] == "starting (mount)"
    mirror.follow([replica()])
    assert shown(api)["status"]["state"] == "ready"
    error = ErrorInfo(code="replica_failed", message="It exited with 1.")
    mirror.follow([replica(state=ReplicaState.FAILED, error=error)])
    assert shown(api)["status"]["error"] == "It exited with 1."


def test_how_much_memory_it_takes_is_written_now_and_then(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica()])
    writes = len(api.writes)
    for count in range(20):
        clock.advance(1.0)
        mirror.follow([replica(memory_bytes=2_000_000_000 + count * 100_000_000)])
    assert len(api.writes) == writes
    clock.advance(MEMORY_EVERY_S)
    mirror.follow([replica(memory_bytes=3_000_000_000)])
    assert shown(api)["status"]["memory"] == "3.00 GB"
    assert len(api.writes) == writes + 1


def test_a_replica_that_is_over_has_no_object(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica(), replica("shop-web-000002")])
    stopped = replica(state=ReplicaState.STOPPED)
    for _ in range(2):
        mirror.follow([stopped])
        clock.advance(GONE_AFTER_S)
    assert names(api) == set()


def test_a_replica_that_is_missing_once_keeps_its_object(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica()])
    mirror.follow([])  # its node did not answer
    clock.advance(1.0)
    mirror.follow([replica()])
    clock.advance(GONE_AFTER_S)
    mirror.follow([])
    assert api.written("delete", REPLICAS) == []


def test_writes_are_bounded_and_what_is_over_comes_next(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock, counters: OperatorCounters
) -> None:
    many = [replica(f"shop-web-{number:06d}") for number in range(BURST_WRITES)]  # two writes each
    mirror.follow(many)
    assert len(api.writes) == BURST_WRITES
    assert counters.registry.get_sample_value("glowplug_operator_delayed_writes_total") == BURST_WRITES // 2
    clock.advance(1.0)
    mirror.follow(many)
    assert len(api.writes) == BURST_WRITES + WRITES_PER_S
    clock.advance(BURST_WRITES / WRITES_PER_S)
    mirror.follow(many)
    assert names(api) == {one.id for one in many}


def test_a_mirror_that_was_killed_in_the_middle_converges(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock, counters: OperatorCounters
) -> None:
    mirror.follow([replica(), replica("shop-web-000002")])
    del shown(api)["status"]  # killed between both halves of a write
    api.put(REPLICAS, {"metadata": {"name": "shop-web-0000ff"}, "spec": {}}, NAMESPACE)  # and one from before
    writes = len(api.writes)
    successor = ReplicaMirror(api, NAMESPACE, clock, counters)
    for _ in range(2):
        successor.follow([replica(), replica("shop-web-000002")])
        clock.advance(GONE_AFTER_S)
    assert names(api) == {NAME, "shop-web-000002"}
    assert shown(api)["status"]["state"] == "ready"
    assert len(api.writes) == writes + 2, "what is as it should be is not written again"


def test_what_somebody_changed_by_hand_is_put_right(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica()])
    shown(api)["status"]["state"] = "wonderful"
    del api.objects[REPLICAS, NAMESPACE, NAME]["spec"]["server"]
    clock.advance(RELOAD_EVERY_S)
    mirror.follow([replica()])
    assert shown(api)["status"]["state"] == "ready"
    assert shown(api)["spec"]["server"] == "shop/web"


def test_an_object_that_vanished_is_made_again(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica()])
    api.objects.clear()
    changed = replica(state=ReplicaState.PARKED, is_pushed_out=True)
    mirror.follow([changed])
    clock.advance(1.0)
    mirror.follow([changed])
    assert shown(api)["status"]["state"] == "parked (in swap)"


def test_an_api_server_that_is_away_costs_nothing_but_time(
    api: FakeApi, mirror: ReplicaMirror, clock: ManualClock
) -> None:
    mirror.follow([replica()])
    api.away = Unavailable("The API server does not answer.")
    with pytest.raises(Unavailable):
        mirror.follow([replica(state=ReplicaState.DRAINING)])
    mirror.forget()
    api.away = None
    mirror.follow([replica(state=ReplicaState.DRAINING)])
    assert shown(api)["status"]["state"] == "draining"


def test_a_replica_that_came_to_a_node_says_where(api: FakeApi, mirror: ReplicaMirror) -> None:
    mirror.follow([replica()])
    mirror.follow([replica(node="n2")])
    assert shown(api)["spec"]["node"] == "n2"


def test_an_endless_error_is_cut(api: FakeApi, mirror: ReplicaMirror) -> None:
    view: ReplicaView = replica(fallback_reason="x" * 10_000)
    mirror.follow([view])
    assert len(shown(api)["status"]["error"]) == 512
