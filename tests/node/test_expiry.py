"""Snapshots that nobody uses for long go, where an operator said so; those of servers that run stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.node.cases import captured, folder_of
from tests.node.live_agent import TOOLBOX, live_agent
from tests.runtime.sandboxes import eventually

from glowplug.snapshot.expiry import VARIABLE

HOUR_S = 3600.0


def test_an_agent_removes_what_nobody_used_for_long(
    fit_machine: None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "60")
    with live_agent(root) as agent:
        unused = captured(agent, agent.server(*TOOLBOX, name="unused", snapshot={}))
        running = agent.server(*TOOLBOX, name="running", snapshot={}, env={"ANOTHER": "key"})
        kept = captured(agent, running)
        view = agent.start(running)
        agent.kill()
        for snapshot in (unused, kept):
            for file in folder_of(agent, snapshot).iterdir():
                os.utime(file, times=(time.time() - HOUR_S,) * 2)
        agent.start_again()
        eventually(lambda: not os.path.lexists(folder_of(agent, unused)), "the unused one is gone")
        eventually(
            lambda: "glowplug_snapshots_expired_total 1.0" in agent.client.get("/metrics").text, "counted"
        )
        assert folder_of(agent, kept).exists()
        agent.stop(view["id"], grace_s=0)
