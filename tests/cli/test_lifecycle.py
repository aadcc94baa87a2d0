"""up, status and down with the real supervisor, control plane and agent."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

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
    assert httpx.get(f"{url}/healthz").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert processes_of(state) == []
