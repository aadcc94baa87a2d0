"""``gpu ls|check`` on a machine without a GPU, and on a fake one with its real guard and helper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.snapshot.gpu.machine import H100, Machine, build_driver

from .conftest import Glowplug


@pytest.fixture
def machine(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    libraries = build_driver(tmp_path_factory.getbasetemp().parent)
    machine = Machine(tmp_path / "gpus", libraries, (H100, H100), 1 << 30)
    for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, machine.environment[name])
    return machine


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a driver")
def test_a_machine_without_a_gpu_is_told_so(glowplug: Glowplug) -> None:
    listed = glowplug("gpu", "ls")
    assert (listed.exit_code, listed.stderr) == (0, "No GPU: CPU only.\n")
    assert glowplug("gpu", "ls", "--json").stdout == "null\n"
    checked = glowplug("gpu", "check")
    assert checked.exit_code == 1
    assert "no GPU" in checked.stderr


def test_gpus_are_listed_with_what_their_driver_can_do(glowplug: Glowplug, machine: Machine) -> None:
    shown = glowplug("gpu", "ls").stdout
    assert all(uuid in shown for uuid in machine.uuids)
    assert "Driver 580.82.07 (CUDA 13.0) can\n  suspend and resume" in shown
    inventory = json.loads(glowplug("gpu", "ls", "--json").stdout)
    assert [device["uuid"] for device in inventory["devices"]] == machine.uuids
    assert inventory["features"] == ["checkpoint", "device_map"]


def test_a_gpu_is_tried_with_memory_that_moves(glowplug: Glowplug, machine: Machine) -> None:
    answer = glowplug("gpu", "check", "--device", "1", "--bytes", "2000000", "--json")
    assert answer.exit_code == 0
    [trial] = json.loads(answer.stdout)["trials"]
    assert trial["device"]["uuid"] == machine.uuids[1]
    assert trial["freed_bytes"] == 2000000
    assert set(trial["seconds"]) == {"lock_s", "checkpoint_s", "restore_s", "unlock_s"}
    assert [call for call, _, _ in machine.calls() if call != "init"] == [
        "lock", "checkpoint", "restore", "unlock"
    ]  # fmt: skip


def test_a_driver_that_fails_is_told_with_its_words(glowplug: Glowplug, machine: Machine) -> None:
    machine.fail("checkpoint", "failed")
    result = glowplug("gpu", "check", "--device", "0", "--bytes", "1000000")
    assert result.exit_code == 1
    assert "CUDA_ERROR_UNKNOWN" in result.stderr
    assert "killed" in result.stderr


def test_a_gpu_that_is_not_fit_or_not_there_is_not_tried(glowplug: Glowplug, machine: Machine) -> None:
    (machine.folder / "health" / "0").write_text("recovery 2\n")
    assert "must be rebooted" in glowplug("gpu", "check", "--device", "0").stderr
    assert "There is no GPU 7" in glowplug("gpu", "check", "--device", "7").stderr
    assert machine.calls() == []
