"""What a caller is told whose patience has run out."""

from __future__ import annotations

from glowplug.control.hold_errors import stuck
from glowplug.control.replica_entry import Replica
from glowplug.control.start_history import StartHistory
from glowplug.control.timings import Timings
from glowplug.types.clock import ManualClock
from glowplug.types.replica import ReplicaState, ReplicaView, Stage


def starting(replica_id: str, stage: Stage, accepted_at_s: float | None) -> Replica:
    view = ReplicaView(
        id=replica_id, app="shop", server="web", deployment_id="shop-v1", state=ReplicaState.STARTING,
        stage=stage, created_at=1.0,
    )  # fmt: skip
    return Replica(view, "node", accepted_at_s)


def history(problem: str | None = None) -> StartHistory:
    made = StartHistory(ManualClock(), Timings())
    made.problem = problem
    return made


def test_asking_once_more_does_not_hide_why_nothing_could_be_asked_for() -> None:
    asked = starting("r1", Stage.ALLOCATE, None)
    error = stuck("web", 2.0, [asked], history("No room: 2 of 2 CPUs are taken."))
    assert (error.details["stage"], "2 of 2 CPUs" in error.message) == ("allocate", True)
    error = stuck("web", 2.0, [asked], history())
    assert (error.details["stage"], error.details["replica_id"]) == ("allocate", "r1")


def test_a_start_that_an_agent_took_is_named_whatever_went_wrong_before() -> None:
    live = [starting("r1", Stage.MOUNT, 1.0), starting("r2", Stage.ALLOCATE, None)]
    error = stuck("web", 2.0, live, history("the node's agent does not answer"))
    assert (error.details["stage"], error.details["replica_id"]) == (Stage.MOUNT.value, "r1")
