"""Snapshots that nobody uses for long go, where an operator said so; so do those that are too many."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.node.cases import captured, folder_of
from tests.node.live_agent import TOOLBOX, LiveAgent, live_agent
from tests.runtime.sandboxes import eventually

from glowplug.snapshot.expiry import VARIABLE
from glowplug.snapshot.per_server import VARIABLE as KEPT_VARIABLE

HOUR_S = 3600.0


def test_an_agent_removes_what_nobody_used_for_long(
    fit_machine: None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "60")
    monkeypatch.setenv(KEPT_VARIABLE, "1")
    with live_agent(root) as agent:
        unused = captured(agent, agent.server(*TOOLBOX, name="unused", snapshot={}))
        older = agent.server(*TOOLBOX, name="running", snapshot={}, env={"ANOTHER": "key"})
        superseded = captured(agent, older)
        running = {**older, "env": {"ANOTHER": "version"}}
        agent.stop(agent.start(running)["id"], grace_s=0)
        kept = eventually(lambda: _another(agent, superseded), "it is captured, too", 120)
        view = agent.start(running)
        agent.kill()
        is_early = not os.path.lexists(folder_of(agent, superseded))  # it looks every minute
        for hours, snapshot in ((1, unused), (1, kept), (2, superseded)):
            for file in folder_of(agent, snapshot).glob("*"):
                os.utime(file, times=(time.time() - hours * HOUR_S,) * 2)
        agent.start_again()
        eventually(lambda: not os.path.lexists(folder_of(agent, unused)), "the unused one is gone", 30)
        one = "glowplug_snapshots_expired_total 1.0"
        eventually(lambda: one in agent.client.get("/metrics").text, "it is counted")
        eventually(lambda: not os.path.lexists(folder_of(agent, superseded)), "the older one is gone", 30)
        another = f"glowplug_snapshots_superseded_total {0 if is_early else 1}.0"
        eventually(lambda: another in agent.client.get("/metrics").text, "it is counted")
        assert folder_of(agent, kept).exists()
        agent.stop(view["id"], grace_s=0)


def _another(agent: LiveAgent, old: dict[str, Any]) -> dict[str, Any] | None:
    """The good snapshot of the same server that is not the old one."""
    views = [
        view for view in agent.snapshots() if view["server"] == old["server"] and view["id"] != old["id"]
    ]
    return next((view for view in views if view["status"] == "good"), None)
