"""What is known of the GPUs: listed, refused, and named by what their driver can do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from glowplug.node.gpus import Gpus
from glowplug.snapshot.gpu.features import FEATURES, UNSUPPORTED, can, features_of
from glowplug.snapshot.gpu.inventory import read_inventory
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, SystemUnfit

from .conftest import MakeMachine
from .machine import H100, IS_REAL, Machine, running

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "gpu.md"
needs_fake = pytest.mark.skipif(IS_REAL, reason="needs the fake driver")


def test_devices_are_listed_with_what_they_hold(machine: Machine) -> None:
    inventory = read_inventory()
    assert inventory is not None
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", inventory.driver)
    assert re.fullmatch(r"\d+\.\d+", inventory.cuda)
    before = inventory.devices[0]
    assert before.chip.startswith("NVIDIA")
    assert before.uuid.startswith("GPU-")
    assert before.is_fit
    with running(machine, 1, size_bytes=8 << 20):
        after = read_inventory()
    assert after is not None
    assert after.devices[0].free_bytes <= before.free_bytes - (8 << 20)
    assert after.devices[0].memory_bytes == before.memory_bytes


@needs_fake
def test_a_device_that_is_not_fit_is_refused_and_counted(machine: Machine, tmp_path: Path) -> None:
    (machine.folder / "health" / "1").write_text("recovery 1\n")
    inventory = read_inventory()
    assert inventory is not None
    assert [device.state for device in inventory.devices] == [
        "ok",
        "it must be reset (`nvidia-smi --gpu-reset`)",
    ]
    registry = CollectorRegistry()
    found = Gpus(registry, ManualClock(), driver=tmp_path)
    assert [device.index for device in found.fit] == [0]
    assert registry.get_sample_value("glowplug_gpus_refused") == 1


@needs_fake
def test_a_device_that_is_lost_does_not_hide_the_others(machine: Machine) -> None:
    (machine.folder / "health" / "0").write_text("lost 1\n")
    inventory = read_inventory()
    assert inventory is not None
    assert [device.is_fit for device in inventory.devices] == [False, True]
    assert inventory.devices[0].problem.startswith("it does not answer")


@needs_fake
def test_mig_and_persistence_mode_are_told(machine: Machine) -> None:
    (machine.folder / "health" / "0").write_text("mig 1\n")
    (machine.folder / "health" / "1").write_text("persistence 0\n")
    inventory = read_inventory()
    assert inventory is not None
    assert [device.is_fit for device in inventory.devices] == [False, True]
    assert "MIG" in inventory.devices[0].state
    assert "persistence mode off" in inventory.devices[1].state


@needs_fake
def test_a_machine_without_a_driver_has_no_inventory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    assert read_inventory() is None
    registry = CollectorRegistry()
    assert Gpus(registry, ManualClock(), driver=tmp_path / "absent").fit == []
    assert registry.get_sample_value("glowplug_gpus_refused") == 0


def test_a_library_that_does_not_answer_is_not_waited_for(machine: Machine) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer within"):
        read_inventory(timeout_s=0.001)


def test_a_node_whose_driver_cannot_be_asked_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit() -> None:
        raise SystemUnfit("nvidia-ml-py is not installed.")

    monkeypatch.setattr("glowplug.node.gpus.read_inventory", unfit)
    registry = CollectorRegistry()
    assert Gpus(registry, ManualClock(), driver=tmp_path).fit == []
    assert registry.get_sample_value("glowplug_gpus_refused") == 1


def test_what_a_driver_can_do_grows_with_its_version() -> None:
    assert features_of("550.54.14") == features_of("none") == []
    assert [feature.name for feature in features_of("580.82.07")] == ["checkpoint", "device_map"]
    assert can("610.1", "legacy_ipc")
    assert not can("570.86.10", "device_map")


def test_the_table_for_operators_is_that_of_the_code() -> None:
    text = DOCUMENTATION.read_text()
    for feature in FEATURES:
        assert f"| {feature.branch} | {feature.words} |" in text
    for what in UNSUPPORTED:
        assert f"- {what}" in text


@needs_fake
def test_the_fake_machine_is_as_it_was_described(make_machine: MakeMachine) -> None:
    machine = make_machine(H100, "NVIDIA L4", memory_bytes=5 << 20)
    inventory = read_inventory()
    assert inventory is not None
    assert [(device.uuid, device.chip) for device in inventory.devices] == list(
        zip(machine.uuids, (H100, "NVIDIA L4"), strict=True)
    )
    assert {device.memory_bytes for device in inventory.devices} == {5 << 20}
