"""New versions under load, and how many replicas there are: real sandboxes behind the real router."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.e2e.clients import Clients
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import Live

from glowplug.types.replica import ReplicaView, StartPath

pytestmark = pytest.mark.sandbox

ANSWERS = 30
COPIES = 4


def wait_for_version(clients: Clients, app: Deployed, version: str) -> None:
    """Until callers are answered by ``version``."""
    app.live.wait_for(lambda: clients.told.answers[-1]["version"] == version, f"answers of version {version}")
    clients.wait_for_answers(ANSWERS)


def test_a_new_version_and_a_rollback_under_load_lose_no_request(live: Live, apps: Apps) -> None:
    app = apps.deploy("--version", "1", word="rolling", min_replicas=1)
    with Clients(live.url, [f"{app.path}/slow?seconds=0.1"], count=8) as clients:
        clients.wait_for_answers(ANSWERS)
        apps.deploy("--version", "2", name=app.name, min_replicas=1)
        wait_for_version(clients, app, "2")
        live.cli("rollback", app.name)
        wait_for_version(clients, app, "1")
    told = clients.told
    assert told.refusals == told.broken_connections == told.unanswered == []
    assert {answer["version"] for answer in told.answers} == {"1", "2"}
    active = [item["id"] for item in live.listing("deployments", app.name) if item["active"]]
    assert active == [f"{app.name}-v1"]
    live.wait_for(
        lambda: {v.deployment_id for v in live.replicas(app.name)} == {active[0]}, "version 2 to go"
    )


def test_rolling_back_a_version_that_does_not_exist_is_refused(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="norollback")
    assert "Remedy:" in live.cli("rollback", app.name, code=1).stderr
    assert "Remedy:" in live.cli("rollback", app.name, "--to", "7", code=1).stderr
    assert app.ask()["version"] == "1"


def test_a_broken_new_version_leaves_the_old_one_serving(live: Live, apps: Apps) -> None:
    app = apps.deploy("--version", "1", word="oldserves")
    app.ask()
    apps.deploy("--exit-code", "1", name=app.name, min_replicas=1)
    live.wait_for(lambda: live.deployments(app.name)[0]["error"], "the reason of the failure")
    assert app.ask()["version"] == "1"


def test_the_minimum_is_there_before_anybody_asks_and_after_one_was_killed(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="minimum", min_replicas=1, scaledown_window_s=0)
    first = live.wait_for(lambda: live.ready(app.name), "a replica nobody asked for")[0]
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)

    def successor() -> list[ReplicaView]:
        return [view for view in live.ready(app.name) if view.id != first.id]

    second = live.wait_for(successor, "its successor")[0]
    assert app.ask("/who")["replica_id"] == second.id


def test_an_idle_server_goes_to_zero_after_its_window_and_not_before_its_requests_end(
    live: Live, apps: Apps
) -> None:
    app = apps.deploy(word="window", scaledown_window_s=0.5, parked_window_s=0, snapshot=False)
    assert app.ask("/slow?seconds=2")["version"] == "1", "a request longer than the window is not cut off"
    live.wait_until_zero(app.name)


def test_a_burst_restores_four_copies_at_once_and_all_of_them_serve(live: Live, apps: Apps) -> None:
    app = apps.deploy(word="burst", target_concurrency=1, max_replicas=COPIES)
    app.ask()
    live.wait_for_snapshot(app.name)
    live.rest(app.name)
    with ThreadPoolExecutor(COPIES) as pool:
        first = [pool.submit(app.ask, "/slow?seconds=4") for _ in range(COPIES)]
        copies = live.wait_for(
            lambda: views if len(views := live.ready(app.name)) == COPIES else None, f"{COPIES} copies"
        )
        assert {view.path for view in copies} == {StartPath.CPU_SNAPSHOT}
        for answer in first:
            assert answer.result(120)["restored"] is True
        answers = [*pool.map(app.ask, ["/slow?seconds=4"] * COPIES)]
    assert {answer["replica_id"] for answer in answers} == {view.id for view in copies}
    assert len({answer["identity"] for answer in answers}) == 1, "all are copies of one memory"
