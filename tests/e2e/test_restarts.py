"""Stopping, upgrading and crashing all of Glowplug: warm replicas outlive us, or leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import leftovers
from tests.e2e.conftest import Apps, Deployed
from tests.e2e.live import UP_TIMEOUT_S, Live
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc

from glowplug.types.replica import Purpose

pytestmark = pytest.mark.sandbox


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Live]:
    """A Glowplug that the test may stop as it likes."""
    with Live() as own:
        yield own


@pytest.fixture(params=RUNC_BY_NIGHT)
def app(own: Live, tmp_path: Path, request: pytest.FixtureRequest) -> Deployed:
    """A warm replica and no capture under way."""
    if request.param == "runc":
        require_runc()
    app = Apps(own, tmp_path).deploy(word="restart", snapshot=False, runtime=request.param)
    app.ask()
    return app


def supervisor_pid(live: Live) -> int:
    return int(json.loads(live.state.supervisor.read_text())["pid"])


def up_again(live: Live) -> None:
    """``glowplug up`` where it was before."""
    live.cli("up", "--port", live.url.rpartition(":")[2], "--timeout", UP_TIMEOUT_S)


def kill_all_of_ours(live: Live) -> None:
    """SIGKILL the supervisor first, so that it restarts nothing, then its children."""
    control, agent = live.pid_of("control"), live.pid_of("node")
    for pid in (supervisor_pid(live), control, agent):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # children end with the supervisor
            continue
    live.wait_for(
        lambda: not {control, agent} & {int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()},
        "our processes to end",
    )


def test_an_upgrade_keeps_warm_replicas(own: Live, app: Deployed) -> None:
    before = own.ready(app.name)
    identity = app.ask()["identity"]
    own.cli("down", "--keep-replicas")
    assert leftovers.of_apps(own.state, own.apps), "the sandbox runs on"
    up_again(own)
    assert app.ask()["identity"] == identity
    assert [(v.id, v.pid) for v in own.ready(app.name)] == [(v.id, v.pid) for v in before]
    assert len(own.cold_starts(app.name)) == 1


def test_everything_killed_comes_back_with_its_warm_replicas(own: Live, app: Deployed) -> None:
    before = own.ready(app.name)
    identity = app.ask()["identity"]
    kill_all_of_ours(own)
    up_again(own)
    assert app.ask()["identity"] == identity
    assert [(v.id, v.pid) for v in own.ready(app.name)] == [(v.id, v.pid) for v in before]


def test_down_cleans_up_after_everything_was_killed(own: Live, app: Deployed) -> None:
    kill_all_of_ours(own)
    assert leftovers.of_apps(own.state, own.apps), "the sandbox outlived us"
    assert "Stopped." in own.cli("down").stderr
    assert leftovers.of_apps(own.state, own.apps) + leftovers.of_state(own.state) == []


def test_an_agent_killed_while_it_captures_leaves_no_half_snapshot(own: Live, tmp_path: Path) -> None:
    app = Apps(own, tmp_path).deploy(word="halfway")
    app.ask()
    # The capture replica stands: whatever it is doing, the agent dies in the middle of it.
    own.wait_for(
        lambda: [
            view
            for view in own.get("/api/v1/replicas")
            if view["purpose"] == Purpose.CAPTURE and view["pid"] is not None
        ],
        "a capture under way",
    )
    os.kill(own.pid_of("node"), signal.SIGKILL)
    own.wait_for(lambda: own.get("/api/v1/status")["nodes"][0]["is_reachable"], "the next agent")
    own.rest(app.name)
    own.wait_for(lambda: not leftovers.of_apps(own.state, own.apps), "the capture's traces to go")
    assert app.ask()["version"] == "1"
    own.wait_for_snapshot(app.name)
