"""What an agent tells on two ways, as events and as answers: the newer of two views of a replica holds."""

from __future__ import annotations

import pytest

from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.fleet import Fleet
from glowplug.control.timings import Timings
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import ReplicaState, ReplicaView

NODE = "node-1"


class NoStore:
    """Records go nowhere."""

    async def add_cold_start(self, record: ColdStartRecord) -> None:
        raise AssertionError(f"nobody asked for a replica: {record}")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fleet(clock: ManualClock) -> Fleet:
    return Fleet(clock=clock, timings=Timings(), cold_starts=ColdStartLog(NoStore(), clock, Metrics()))


def view(state: ReplicaState, revision: int) -> ReplicaView:
    return ReplicaView(
        id="r1", app="shop", server="web", deployment_id="d", state=state, created_at=0.0, revision=revision
    )


def test_an_event_that_comes_after_a_newer_answer_is_dropped(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.PARKED, 5))
    fleet.answered(NODE, view(ReplicaState.READY, 7))
    fleet.apply(NODE, view(ReplicaState.PARKED, 6))
    assert fleet.replicas["r1"].view == view(ReplicaState.READY, 7)
    fleet.apply(NODE, view(ReplicaState.PARKED, 8))
    assert fleet.replicas["r1"].is_parked


def test_an_answer_that_comes_after_newer_events_is_dropped(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 5))
    fleet.apply(NODE, view(ReplicaState.PARKED, 6))
    fleet.answered(NODE, view(ReplicaState.READY, 5))
    assert fleet.replicas["r1"].is_parked
    fleet.apply(NODE, view(ReplicaState.STOPPED, 7))
    fleet.answered(NODE, view(ReplicaState.READY, 6))
    assert not fleet.replicas, "it has ended, and no answer brings it back"


def test_what_is_listed_holds_though_the_agents_clock_was_put_back(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 5))
    fleet.apply(NODE, view(ReplicaState.PARKED, 2), is_listed=True)
    assert fleet.replicas["r1"].is_parked


OTHER = "node-2"


def test_a_second_claim_to_a_replica_is_told_and_changes_nothing(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 5))
    fleet.apply(OTHER, view(ReplicaState.READY, 9))
    assert fleet.duplicates == {(OTHER, "r1")}
    assert (fleet.replicas["r1"].node, fleet.replicas["r1"].view.revision) == (NODE, 5)
    fleet.apply(OTHER, view(ReplicaState.STOPPED, 10))
    assert "r1" in fleet.replicas, "its end elsewhere is not its end here"


def test_what_was_on_a_lost_node_is_over_and_drained_when_it_comes_back(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 5))
    fleet.apply(OTHER, view(ReplicaState.READY, 5).model_copy(update={"id": "r2"}))
    fleet.lose(NODE, "which burnt down")
    assert list(fleet.replicas) == ["r2"]
    fleet.apply(NODE, view(ReplicaState.READY, 5), is_listed=True)
    assert fleet.replicas["r1"].drain is not None
    assert not fleet.replicas["r1"].is_live
    fleet.synced(NODE, {"r1"}, listed_at_s=0.0)
    fleet.apply(NODE, view(ReplicaState.STOPPED, 6))
    fleet.synced(NODE, set(), listed_at_s=0.0)
    fleet.apply(NODE, view(ReplicaState.READY, 7), is_listed=True)
    assert fleet.replicas["r1"].drain is None, "it is forgotten once the node no longer lists it"


def test_replicas_of_a_node_that_is_drained_are_leaving_those_listed_later_too(fleet: Fleet) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 5))
    fleet.set_leaving(NODE, is_leaving=True)
    fleet.apply(NODE, view(ReplicaState.READY, 1).model_copy(update={"id": "r2"}), is_listed=True)
    fleet.apply(OTHER, view(ReplicaState.READY, 1).model_copy(update={"id": "r3"}))
    assert [replica.is_leaving for replica in fleet.replicas.values()] == [True, True, False]
    fleet.set_leaving(NODE, is_leaving=False)
    assert not any(replica.is_leaving for replica in fleet.replicas.values())


@pytest.mark.parametrize("stamp", [0.0, 1e12])
def test_how_long_one_is_parked_is_counted_by_our_clock_whatever_its_machine_stamps(
    fleet: Fleet, clock: ManualClock, stamp: float
) -> None:
    fleet.apply(NODE, view(ReplicaState.READY, 1))
    clock.advance(5.0)
    parked = view(ReplicaState.PARKED, 2).model_copy(update={"parked_at": stamp})
    fleet.apply(NODE, parked)
    clock.advance(7.0)
    fleet.apply(NODE, parked.model_copy(update={"revision": 3, "is_pushed_out": True}))
    assert fleet.replicas["r1"].parked_for_s(clock.monotonic()) == 7.0


@pytest.mark.parametrize(("ahead_s", "parked_s"), [(0.0, 20.0), (-5.0, 25.0), (3600.0, 0.0)])
def test_of_one_that_is_found_parked_only_its_machine_knows_since_when(
    fleet: Fleet, clock: ManualClock, ahead_s: float, parked_s: float
) -> None:
    stamp = clock.wall() - 20.0 + ahead_s
    fleet.apply(NODE, view(ReplicaState.PARKED, 1).model_copy(update={"parked_at": stamp}))
    assert fleet.replicas["r1"].parked_for_s(clock.monotonic()) == pytest.approx(parked_s)
