"""kill -9 of everything we run, while twenty callers ask: nobody goes unanswered, nothing warm is lost."""

from __future__ import annotations

import os
import signal

import pytest
from tests.e2e.clients import Clients
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live

from glowplug.types.replica import ReplicaView

pytestmark = pytest.mark.sandbox

KILLS = 3
ANSWERS_BETWEEN = 60
PATHS = ["/who", "/slow?seconds=0.3"]


@pytest.fixture
def app(live: Live, apps: Apps) -> Deployed:
    """Two warm replicas, and a snapshot."""
    app = apps.deploy(word="chaos", min_replicas=2, max_replicas=2)
    app.ask()
    live.wait_for(lambda: len(live.ready(app.name)) == 2, "two replicas")
    live.wait_for_snapshot(app.name)
    return app


def clients_of(app: Deployed) -> Clients:
    return Clients(app.live.url, [app.path + path for path in PATHS])


def identities(replicas: list[ReplicaView]) -> set[tuple[str, int | None]]:
    return {(replica.id, replica.pid) for replica in replicas}


def repeated_attempts(live: Live, app: Deployed) -> float:
    """How often the router sent a request again."""
    metrics = live.http.get("/metrics").text.splitlines()
    name = f'glowplug_requests_retried_total{{app="{app.name}"'
    return sum(float(line.split()[-1]) for line in metrics if line.startswith(name))


def test_killing_the_agent_disturbs_no_caller_and_no_replica(live: Live, app: Deployed) -> None:
    before = identities(live.ready(app.name))
    with clients_of(app) as clients:
        for _ in range(KILLS):
            killed = live.pid_of("node")
            os.kill(killed, signal.SIGKILL)
            clients.wait_for_answers(ANSWERS_BETWEEN)
            live.wait_for(lambda killed=killed: live.pid_of("node") != killed, "another agent")
            live.wait_for(
                lambda: live.get("/api/v1/status")["nodes"][0]["is_reachable"], "the agent to answer"
            )
    assert clients.told.unanswered == clients.told.refusals == clients.told.broken_connections == []
    live.wait_for(lambda: identities(live.ready(app.name)) == before, "the same two replicas")
    assert {answer["replica_id"] for answer in clients.told.answers} == {name for name, _ in before}


def test_killing_the_control_plane_loses_no_request_and_no_replica(live: Live, app: Deployed) -> None:
    before = identities(live.ready(app.name))
    with clients_of(app) as clients:
        for _ in range(KILLS):
            killed = live.pid_of("control")
            os.kill(killed, signal.SIGKILL)
            live.wait_for(lambda killed=killed: live.pid_of("control") != killed, "another control plane")
            clients.wait_for_answers(ANSWERS_BETWEEN)
    assert clients.told.unanswered == clients.told.refusals == []
    live.wait_for(lambda: identities(live.ready(app.name)) == before, "the same two replicas")
    assert {answer["replica_id"] for answer in clients.told.answers} == {name for name, _ in before}


def test_killing_sandboxes_goes_unnoticed_by_callers(live: Live, app: Deployed) -> None:
    killed: set[str] = set()
    with clients_of(app) as clients:
        for _ in range(KILLS):
            clients.wait_for_answers(ANSWERS_BETWEEN)
            victim = live.wait_for(lambda: live.ready(app.name), "a replica to kill")[0]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            killed.add(victim.id)
            live.wait_for(
                lambda: len({view.id for view in live.ready(app.name)} - killed) == 2, "its successor"
            )
    assert clients.told.unanswered == clients.told.refusals == clients.told.broken_connections == []
    assert repeated_attempts(live, app) > 0, "no request was in flight on a killed sandbox"
    assert not killed & {view.id for view in live.ready(app.name)}


def test_killing_every_sandbox_at_once_holds_the_callers_until_one_is_back(live: Live, app: Deployed) -> None:
    with clients_of(app) as clients:
        clients.wait_for_answers(ANSWERS_BETWEEN)
        victims = live.ready(app.name)
        for victim in victims:
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
        clients.wait_for_answers(ANSWERS_BETWEEN)
    assert clients.told.unanswered == clients.told.refusals == clients.told.broken_connections == []
    assert not {victim.id for victim in victims} & {view.id for view in live.ready(app.name)}
