"""An engine beside the control plane: one more child of the supervisor, and what it stands on another."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import pytest

from glowplug.engine import embedded
from glowplug.engine.port import Machine, MachineState
from glowplug.engine.ray import up as on_ray
from glowplug.engine.ray.settings import RaySettings
from glowplug.engine.record import read_record
from glowplug.engine.status import read_status, write_status
from glowplug.types.errors import Conflict, Unavailable
from glowplug.types.paths import StateDir

from .conftest import HERE, eventually, stand_ins

STAND_IN = (sys.executable, str(HERE / "stand_in_engine.py"))
COMMANDS = replace(stand_ins(), engine_name="ray", engine=(*STAND_IN, "engine"), base=(*STAND_IN, "base"))


def told(state: StateDir, what: str) -> dict[str, Any]:
    file = state.root / what
    eventually(lambda: file.exists() and file.read_text())
    return dict(json.loads(file.read_text()))


def test_engine_and_base_are_started_kept_and_ended_in_order(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "rays-own")
    monkeypatch.setenv("PGPASSWORD", "secret")
    embedded.up(state, port=0, commands=COMMANDS, timeout_s=60)
    record = read_record(state)
    assert record is not None
    assert record.engine == "ray"
    first = told(state, "engine-start")
    assert "RAY_AUTH_TOKEN" in first["environment"]
    assert "PGPASSWORD" not in first["environment"]
    os.kill(first["pid"], signal.SIGKILL)
    eventually(lambda: told(state, "engine-start")["pid"] != first["pid"])
    told(state, "base-start")
    embedded.down(state, commands=COMMANDS)
    assert told(state, "engine-end") == {"signal": "SIGINT", "agent_is_over": False}
    assert told(state, "base-end") == {"signal": "SIGTERM", "agent_is_over": True}


def test_keeping_replicas_leaves_the_machines_of_the_engine_as_they_are(state: StateDir) -> None:
    embedded.up(state, port=0, commands=COMMANDS, timeout_s=60)
    told(state, "engine-start")
    embedded.down(state, keep_replicas=True, commands=COMMANDS)
    assert told(state, "engine-end") == {"signal": "SIGTERM", "agent_is_over": False}


def test_glowplug_that_runs_without_ray_is_not_silently_given_one(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "check_installed", lambda: None)
    embedded.up(state, port=0, commands=stand_ins(), timeout_s=60)
    with pytest.raises(Conflict, match="without Ray"):
        on_ray.prepare(state, RaySettings(address="10.0.0.1:6379", starts_head=True))
    assert not state.engine_settings.exists()


def test_what_the_engine_saw_is_read_as_it_was_written(state: StateDir) -> None:
    state.create()
    assert read_status(state) is None
    machines = [
        Machine("a", "ray-a", MachineState.RUNNING),
        Machine("b", "ray-b", MachineState.GONE, "Ray has lost it", labels={"zone": "east"}),
        Machine("c", "ray-a", MachineState.GONE, "the same machine, before it started Ray again"),
        Machine("d", "ray-d", MachineState.PENDING),
    ]
    write_status(state, "ray", "10.0.0.1:6379", 1.0, machines=machines)
    status = read_status(state)
    assert status is not None
    assert status.machines == machines
    assert [one.id for one in status.missing] == ["b", "d"]
    assert not status.is_over
    write_status(state, "ray", "10.0.0.1:6379", 1.0, error=Unavailable("It is away.", remedy="Wait."))
    status = read_status(state)
    assert status is not None
    assert status.error is not None
    state.engine_status.write_text("{")
    assert read_status(state) is None


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"left": {}}, []),
        ({"left": {"ab": "it hangs"}}, ["ab"]),
        ({"error": Unavailable("Ray is away.", remedy="Wait.")}, ["all machines"]),
        ({"machines": [Machine("a", "ray-a", MachineState.RUNNING)]}, ["all machines"]),
    ],
)
def test_down_says_which_machines_kept_their_agents(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], left: list[str]
) -> None:
    state.create()
    monkeypatch.setattr(embedded, "down", lambda *arguments, **options: True)
    write_status(state, "ray", "10.0.0.1:6379", 1.0, **fields)
    did_run, kept = on_ray.down(state)
    assert did_run
    assert list(kept) == left
    monkeypatch.undo()
