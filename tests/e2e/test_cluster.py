"""Two machines, as far as the network goes: real agents, a real gateway, a cable that is really cut."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from tests.e2e.cluster import SecondMachine, nodes, second_machine, wait_for_state
from tests.e2e.conftest import Apps
from tests.e2e.live import Live

from glowplug.engine.processes import processes_of

OWN = socket.gethostname()


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    """One that other machines reach."""
    with Live(host="0.0.0.0") as live:
        failed_before = request.session.testsfailed
        yield live
        live.keeps_logs = request.session.testsfailed > failed_before


@pytest.fixture
def beta(live: Live) -> Iterator[SecondMachine]:
    with second_machine(live) as machine:
        yield machine
        for name in (OWN, *(name for name in nodes(live) if name != "here")):
            live.cli("cluster", "drain", name, "--undo")
        if "beta" in nodes(live):
            live.cli("cluster", "remove", "beta", "--force")


def _on_beta(live: Live, apps: Apps, **options: object) -> str:
    """An app whose replica is on the second machine; its name."""
    live.cli("cluster", "drain", OWN)
    app = apps.deploy(word="clu", snapshot=False, **options)
    assert app.ask("/who")["replica_id"] == live.ready(app.name)[0].id
    assert live.ready(app.name)[0].node == "beta"
    return app.name


def test_a_machine_joins_answers_is_drained_and_leaves(live: Live, beta: SecondMachine, apps: Apps) -> None:
    address = f"{beta.here}:{live.url.rpartition(':')[2]}"
    of_another_cluster = f"gpj1.{'ab' * 32}.{'s' * 43}"
    refused = beta.cli("cluster", "join", address, "--token", of_another_cluster, code=1)
    assert "join token" in refused.stderr
    assert "has not joined" in beta.cli("cluster", "join", code=1).stderr
    assert list(nodes(live)) == ["here"]

    beta.join("--label", "zone=east")
    wait_for_state(live, "beta", "ready")
    name = _on_beta(live, apps)
    there = live.ready(name)[0]
    assert "beta" in live.cli("ps").stdout
    assert beta.ask(f"/{name}/web/who")["replica_id"] == there.id, "its own router reaches it"
    assert live.listing("cluster", "status")[1]["router"]["address"] == "127.0.0.1:8080"
    scores = live.listing("explain", there.id)["scores"]
    assert [score["node"] for score in scores] == ["beta", OWN]
    assert live.listing("cluster", "status")[1]["labels"] == {"zone": "east"}
    assert live.cli("exec", there.id, "--", "echo", "from beta").stdout.strip() == "from beta"

    live.cli("cluster", "drain", OWN, "--undo")
    live.cli("cluster", "drain", "beta")
    live.wait_for(lambda: [one.node for one in live.ready(name)] == [OWN], "a successor on the first machine")
    assert live.get(f"/{name}/web/who")["replica_id"] != there.id
    live.wait_for(lambda: not nodes(live)["beta"]["replicas"], "nothing to be left on beta")
    live.cli("cluster", "remove", "beta")
    assert list(nodes(live)) == ["here"]


@pytest.mark.nightly
def test_whatever_of_it_dies_callers_are_answered(live: Live, beta: SecondMachine, apps: Apps) -> None:
    beta.join()
    wait_for_state(live, "beta", "ready")
    name = _on_beta(live, apps)
    there = live.get(f"/{name}/web/who")["replica_id"]

    os.kill(beta.pid_of("glowplug.node"), signal.SIGKILL)
    for _ in range(20):
        assert live.get(f"/{name}/web/who")["replica_id"] == there
        time.sleep(0.05)
    wait_for_state(live, "beta", "ready")
    os.kill(beta.pid_of("glowplug.node.gateway"), signal.SIGKILL)
    assert live.get(f"/{name}/web/who")["replica_id"] == there
    wait_for_state(live, "beta", "ready")

    live.cli("cluster", "drain", OWN, "--undo")
    beta.cut()
    assert wait_for_state(live, "beta", "unreachable") < 5.0
    began_s = time.monotonic()
    assert live.get(f"/{name}/web/who")["replica_id"] != there, "answered elsewhere"
    assert time.monotonic() - began_s < 60.0
    assert nodes(live)["beta"]["state"] == "lost"
    beta.mend()
    wait_for_state(live, "beta", "ready")
    live.wait_for(
        lambda: [one.node for one in live.ready(name)] == [OWN], "the one that came back to be stopped"
    )


@pytest.mark.nightly
def test_a_router_serves_what_is_ready_while_there_is_no_control_plane(
    live: Live, beta: SecondMachine, apps: Apps
) -> None:
    beta.join()
    wait_for_state(live, "beta", "ready")
    name = _on_beta(live, apps)
    there = live.get(f"/{name}/web/who")["replica_id"]
    live.wait_for(lambda: beta.ask(f"/{name}/web/who")["replica_id"] == there, "the router knows it")
    (control,) = [one.pid for one in processes_of(live.state) if "glowplug.control" in one.argv]
    os.kill(control, signal.SIGSTOP)
    try:
        for _ in range(20):
            assert beta.ask(f"/{name}/web/who")["replica_id"] == there
    finally:
        os.kill(control, signal.SIGKILL)
    for _ in range(20):
        assert beta.ask(f"/{name}/web/who")["replica_id"] == there
    wait_for_state(live, "beta", "ready")
    assert live.ready(name)[0].id == there


@pytest.mark.nightly
def test_a_machine_that_was_switched_off_is_the_same_node_again(
    live: Live, beta: SecondMachine, apps: Apps
) -> None:
    beta.join()
    wait_for_state(live, "beta", "ready")
    beta.cli("down")
    wait_for_state(live, "beta", "lost")
    beta.cli("cluster", "join")
    wait_for_state(live, "beta", "ready")
    name = _on_beta(live, apps)
    assert live.ready(name)[0].node == "beta"
