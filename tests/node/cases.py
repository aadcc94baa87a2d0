"""Servers with a snapshot of their own, and their snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import require_runc


@contextmanager
def in_runtime(agent: LiveAgent, runtime: str) -> Iterator[LiveAgent]:
    """An agent that starts everything in this runtime, unless told otherwise, until the end of the block."""
    if runtime == "runc":
        require_runc()
    agent.runtime = runtime
    yield agent
    agent.runtime = "auto"


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


def folder_of(agent: LiveAgent, snapshot: dict[str, Any]) -> Path:
    """What is said about a snapshot."""
    return agent.state.snapshots / snapshot["id"]


def served_class(agent: LiveAgent, module: str, target: str, **changes: Any) -> dict[str, Any]:
    """A class of a module in servers/, served by our runner."""
    code = {
        "local_dir": str(Path(__file__).parent / "servers"),
        "module": module,
        "target": target,
        "target_kind": "cls",
        "code_digest": "1",
    }
    command = (
        f"python3 -m glowplug.sdk.runner --module /app/{module} --target {target} --kind cls --port 8000"
    )
    wanted = {"code": code, "snapshot": {}, "ready": {"path": "/.glowplug/ready"}, **changes}
    return agent.server(*command.split(), **wanted)


def class_server(agent: LiveAgent) -> dict[str, Any]:
    """The class in servers/copies.py, with a secret."""
    return served_class(agent, "copies.py", "Copies", name=f"copies-{agent.runtime}", secrets=["TOKEN"])
