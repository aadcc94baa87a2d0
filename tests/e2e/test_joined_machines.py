"""Idle capacity before the burst: the planner, a provider with a lead time, and real agents on its machines.

The machines are simulated (namespaces of this one); control plane, planner, agents, replicas and requests are
not.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.cluster import nodes
from tests.e2e.conftest import Apps
from tests.e2e.live import GLOWPLUG, UP_TIMEOUT_S, Live
from tests.e2e.test_cluster import OWN

from glowplug.pool.providers.namespaces import NamespaceHosts

EXAMPLE = Path(__file__).parents[2] / "examples" / "pools" / "joined_nodes.yaml"
BURST = 24
LEAD_S = 10.0
KNOWN_BEFORE_S = 60.0

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    """One that other machines reach, and whose own runs no replicas."""
    with Live(host="0.0.0.0") as live:
        failed_before = request.session.testsfailed
        live.cli("cluster", "drain", OWN)
        yield live
        live.keeps_logs = request.session.testsfailed > failed_before


@pytest.fixture
def network() -> IPv4Network:
    return IPv4Network(f"10.216.{secrets.randbelow(256)}.0/24")


def pool_file(folder: Path, live: Live, network: IPv4Network, begins_s: float, **simulated: Any) -> Path:
    """The example's, with a busy minute that begins at ``begins_s``."""
    text = yaml.safe_load(EXAMPLE.read_text())
    at = [f"{datetime.fromtimestamp(begins_s + after_s, UTC):%H:%M}" for after_s in (0, 60)]
    text["demand"][0]["schedules"] = [{"slots": 1, "from": at[0], "to": at[1], "timezone": "UTC"}]
    text["pools"][0]["lead_time_s"] = KNOWN_BEFORE_S
    text["run"] |= {"every_s": 2, "release_after_s": 4, "lost_after_s": 20, "solve_s": 60}
    text["run"]["join"]["options"] += ["--timeout", UP_TIMEOUT_S]
    text["run"]["join"]["control"] = f"{network[1]}:{live.url.rpartition(':')[2]}"
    text["run"]["providers"]["sim"] |= {
        "network": str(network), "lead_time_s": LEAD_S, "lead_time_spread": 0.0, **simulated
    }  # fmt: skip
    file = folder / "joined.yaml"
    file.write_text(yaml.safe_dump(text))
    return file


@contextmanager
def planner(live: Live, file: Path, network: IPv4Network) -> Iterator[subprocess.Popen[bytes]]:
    """``glowplug pool run``; afterwards no machine is left, whatever happened."""
    log = file.with_suffix(".log")
    process = subprocess.Popen(
        [str(GLOWPLUG), "pool", "run", str(file)], env=live.environment, stderr=log.open("wb")
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)
        hosts = NamespaceHosts(live.state.pools / "m-sim", network)
        for machine in hosts.running():
            hosts.end(machine)


def pool_status(live: Live) -> dict[str, Any]:
    done = live.cli("pool", "status", "--events", "100", "--json", code=None)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {"machines": [], "events": []}


def ready_machine(live: Live) -> dict[str, Any] | None:
    return next((dict(held) for held in pool_status(live)["machines"] if held["state"] == "ready"), None)


def happened(live: Live, since_s: float) -> list[str]:
    return [event["kind"] for event in pool_status(live)["events"] if event["at_s"] >= since_s]


def next_minute_s(at_least_s: float) -> float:
    return (time.time() + at_least_s) // 60 * 60 + 60


def test_a_machine_is_a_node_before_the_burst_that_it_answers_and_is_given_back_afterwards(
    live: Live, apps: Apps, network: IPv4Network, tmp_path: Path
) -> None:
    app = apps.deploy(word="burst", snapshot=False, scaledown_window_s=3, max_replicas=1)
    began_s, begins_s = time.time(), next_minute_s(45)
    with planner(live, pool_file(tmp_path, live, network, begins_s), network) as process:
        held = live.wait_for(lambda: ready_machine(live), "a machine", 150)
        assert time.time() < begins_s, "idle capacity comes before the burst"
        node = nodes(live)[held["node"]]
        assert (node["state"], node["replicas"]) == ("ready", 0)
        assert node["labels"] | {"simulated": "yes", "team": "chat"} == node["labels"]
        assert node["address"] == f"{held['address']}:7443"
        assert happened(live, began_s) == ["asked", "granted"]

        time.sleep(max(begins_s - time.time(), 0.0))
        with ThreadPoolExecutor(BURST) as callers:
            answers = list(callers.map(lambda _number: app.ask("/who"), range(BURST)))
        (replica,) = live.ready(app.name)
        assert replica.node == held["node"]
        assert {answer["replica_id"] for answer in answers} == {replica.id}
        (record,) = live.cold_starts(app.name)
        assert record.node == held["node"]
        assert record.total_s < LEAD_S, "nobody waited for a machine"

        live.wait_for(lambda: not pool_status(live)["machines"], "the machine to be given back", 150)
        assert time.time() >= begins_s + 60, "not while it is wanted"
        assert happened(live, began_s) == ["asked", "granted", "draining", "given_back"]
        assert held["node"] not in nodes(live)
        assert process.poll() is None
    left = [path.name for path in (live.state.pools / "m-sim").iterdir()]
    assert left == []


def test_a_machine_that_loses_its_power_is_replaced_and_no_request_is_lost(
    live: Live, apps: Apps, network: IPv4Network, tmp_path: Path
) -> None:
    """Its provider goes on listing it, but its node is silent: it is given back, and another one joins."""
    app = apps.deploy(word="spot", snapshot=False, scaledown_window_s=60, max_replicas=1)
    began_s = time.time()
    file = pool_file(tmp_path, live, network, began_s)
    text = yaml.safe_load(file.read_text())
    text["demand"][0] = {"gpu": "cpu", "floor": 1}
    text["pools"][0]["quota"] = 1
    file.write_text(yaml.safe_dump(text))
    with planner(live, file, network):
        first = live.wait_for(lambda: ready_machine(live), "a machine", 150)
        assert app.ask("/who")
        hosts = NamespaceHosts(live.state.pools / "m-sim", network)
        assert live.ready(app.name)[0].node == first["node"]
        hosts.end(first["machine"], is_cut=True)
        assert app.ask("/who"), "held until there is a machine again"
        (replica,) = live.ready(app.name)
        assert replica.node not in (None, first["node"])
        assert happened(live, began_s).count("granted") == 2
        assert "lost" in happened(live, began_s)
