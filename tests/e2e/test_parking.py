"""From a request to parked and back, as a user sees it: the same process answers, and everything says so."""

from __future__ import annotations

import os
import signal

import pytest
from tests.e2e.conftest import Apps
from tests.e2e.live import Live
from tests.e2e.test_examples import EXAMPLES, ask
from tests.runtime.conftest import require_runc

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import ReplicaState, ReplicaView, StartPath

pytestmark = pytest.mark.sandbox


def parked(live: Live, app: str) -> ReplicaView:
    """The app's only replica, once it is parked."""

    def look() -> ReplicaView | None:
        return next((view for view in live.replicas(app) if view.state is ReplicaState.PARKED), None)

    return live.wait_for(look, "a parked replica")


def test_the_replica_that_answered_is_parked_and_answers_again_with_its_memory(
    live: Live, apps: Apps
) -> None:
    name = apps.name("parked")
    live.deploy(EXAMPLES / "parked_index.py", name)
    first = ask(live, f"/{name}/lookup/started", None)
    live.wait_for_snapshot(name)
    before = parked(live, name)
    (shown,) = [view for view in live.listing("ps", name) if view["id"] == before.id]
    assert (shown["state"], shown["path"]) == ("parked", "cold")
    assert ask(live, f"/{name}/lookup/started", None) == first, "another process would say another time"
    woken, started = sorted(live.cold_starts(name), key=lambda record: -record.started_at)
    assert (started.path, woken.path) == (StartPath.COLD, StartPath.PARKED)
    assert (woken.outcome, woken.replica_id) == (Outcome.ANSWERED, before.id)


@pytest.mark.parametrize("runtime", ["runsc", "runc"])
def test_a_request_is_answered_by_a_copy_when_the_parked_replica_was_killed(
    live: Live, apps: Apps, runtime: str
) -> None:
    if runtime == "runc":
        require_runc()
    app = apps.deploy(word=f"killed-{runtime}", runtime=runtime, scaledown_window_s=0.5, parked_window_s=60)
    assert app.ask()["version"] == "1"
    live.wait_for_snapshot(app.name)
    victim = parked(live, app.name)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    assert app.ask()["version"] == "1"
    answered = [r for r in live.cold_starts(app.name) if r.outcome is Outcome.ANSWERED]
    assert {record.path for record in answered} <= {StartPath.COLD, StartPath.CPU_SNAPSHOT}
    assert len({record.replica_id for record in answered}) == 2
