"""Servers with a snapshot of their own, and their snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.node.live_agent import LiveAgent


def case_server(
    agent: LiveAgent, name: str, *, snapshot: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A server with a snapshot key of its own: the name is part of its environment."""
    name = f"{name}-{agent.runtime}"
    env = {"CASE": name, **changes.pop("env", {})}
    return agent.server(name=name, snapshot=snapshot or {}, env=env, **changes)


def captured(agent: LiveAgent, server: Any, **changes: Any) -> dict[str, Any]:
    """The good snapshot of a server that was started cold once; nothing of it runs any more."""
    view = agent.start(server, **changes)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "good", snapshot
    agent.stop(view["id"], grace_s=0)
    return snapshot


def files_of(agent: LiveAgent, snapshot: dict[str, Any]) -> Path:
    return agent.state.snapshots / snapshot["id"]


def class_server(agent: LiveAgent) -> dict[str, Any]:
    """The class in servers/copies.py, served by our runner."""
    code = {
        "local_dir": str(Path(__file__).parent / "servers"),
        "module": "copies.py",
        "target": "Copies",
        "target_kind": "cls",
        "code_digest": "1",
    }
    command = "python3 -m glowplug.sdk.runner --module /app/copies.py --target Copies --kind cls --port 8000"
    return agent.server(
        *command.split(),
        name=f"copies-{agent.runtime}",
        code=code,
        snapshot={},
        secrets=["TOKEN"],
        ready={"path": "/.glowplug/ready"},
    )
