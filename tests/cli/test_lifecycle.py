"""up, status and down with the real supervisor, control plane and agent."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from glowplug.cli.checks_tools import find_runsc
from glowplug.cli.machine import LocalMachine
from glowplug.engine.processes import processes_of
from glowplug.engine.record import read_record
from glowplug.types.paths import StateDir

from .conftest import Glowplug

Start = Callable[..., "subprocess.Popen[bytes]"]

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(
        os.geteuid() != 0 or find_runsc(LocalMachine()) is None, reason="needs root and runsc"
    ),
]


@pytest.fixture
def state(glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateDir]:
    monkeypatch.delenv("GLOWPLUG_URL")
    with tempfile.TemporaryDirectory(prefix="gp-") as directory:
        monkeypatch.setenv("GLOWPLUG_STATE", directory)
        yield StateDir(Path(directory))
        glowplug("down")


def test_up_status_and_down_of_the_whole_thing(glowplug: Glowplug, state: StateDir) -> None:
    started = glowplug("up", "--port", "0")
    record = read_record(state)
    assert record is not None
    assert started.stdout == f"Glowplug answers at {record.url} (state: {state.root})\n"
    assert glowplug("up").exit_code == 0
    (node,) = json.loads(glowplug("status", "--json").stdout)["nodes"]
    assert node["is_reachable"]
    assert glowplug("ps", "--json").stdout == "[]\n"
    assert glowplug("down").stderr == "Stopped.\n"
    assert processes_of(state) == []
    logs = {name: (state.logs / f"{name}.log").read_text() for name in ("supervisor", "control", "agent")}
    assert "killing it" not in logs["supervisor"], logs
    assert glowplug("down").stderr == "Nothing was running.\n"


def test_up_elsewhere_is_refused_while_it_runs(glowplug: Glowplug, state: StateDir) -> None:
    glowplug("up", "--port", "0")
    result = glowplug("up", "--host", "0.0.0.0")
    assert result.exit_code == 1
    assert "already runs on 127.0.0.1" in result.stderr


def test_up_without_runsc_shows_what_the_agent_said(
    glowplug: Glowplug, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOWPLUG_RUNSC", "/nowhere/runsc")
    result = glowplug("up", "--port", "0", "--timeout", "12")
    assert result.exit_code == 1
    assert "The agent did not answer within 12 s." in result.stderr
    assert "`glowplug doctor --fix`" in result.stderr
    assert processes_of(state) == []


def test_foreground_stays_and_ends_with_ctrl_c(start_glowplug: Start, state: StateDir) -> None:
    process = start_glowplug("--state", str(state.root), "up", "--port", "0", "--foreground")
    assert process.stdout is not None
    url = process.stdout.readline().decode().split()[3]
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0
    assert processes_of(state) == []


def test_the_planner_takes_this_machine_and_asks_its_control_plane_what_it_does(
    glowplug: Glowplug, state: StateDir, start_glowplug: Start, tmp_path: Path
) -> None:
    """A machine of one's own that is a node already: checked, ready, and demand read from the router."""
    name = socket.gethostname()
    file = tmp_path / "own.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "horizon": {"periods": 6, "first_s": 15, "last_s": 600, "length_s": 900},
                "pools": [
                    {
                        "cloud": "own", "region": "here", "machine": "box", "purchase": "own", "gpu": "cpu",
                        "gpus": 1, "price_usd_per_h": 0, "quota": 1, "lead_time_s": 1, "min_rental_s": 0,
                    }
                ],
                "demand": [{"gpu": "cpu", "floor": 1, "live": {"apps": ["chat"]}}],
                "run": {
                    "fleet": "own", "every_s": 1, "watch_nodes": True,
                    "providers": {
                        "own": {
                            "kind": "own",
                            "machines": [
                                {"host": name, "region": "here", "machine": "box", "is_local": True},
                            ],
                        }
                    },
                },
            }
        )
    )  # fmt: skip
    glowplug("up", "--port", "0")
    record = read_record(state)
    assert record is not None
    planner = start_glowplug(
        "--state", str(state.root), "--url", record.url, "pool", "run", str(file), stderr=subprocess.DEVNULL
    )
    deadline_s, machines = time.monotonic() + 200, []
    while not any(held["state"] == "ready" for held in machines):
        assert planner.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
        found = glowplug("pool", "status", "--json")
        machines = json.loads(found.stdout)["machines"] if found.exit_code == 0 else []
    assert [held["address"] for held in machines] == [name]
    planner.terminate()
    assert planner.wait(60) == 0
    metrics = (state.pools / "metrics.prom").read_text()
    assert 'what="workforce"' not in metrics
    assert 'what="inputs"' not in metrics
