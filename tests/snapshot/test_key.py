from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glowplug.snapshot.gpu.inventory import Device, Inventory
from glowplug.snapshot.key import (
    FIELD_NAMES,
    NONE,
    MachineIdentity,
    SnapshotKey,
    explain_differences,
)
from glowplug.types.errors import InvalidInput, SystemUnfit
from glowplug.types.identity import RuntimeIdentity
from glowplug.types.key_fields import KEY_FIELD_WORDS
from glowplug.types.spec import HttpCall, SnapshotSpec

from .conftest import MACHINE, RUNTIME, make_key, make_server

CODE = {
    "local_dir": "/srv/code",
    "module": "app.py",
    "target": "Embedder",
    "target_kind": "cls",
    "code_digest": "aa",
}
VOLUME = {"host_path": "/srv/models", "mount_path": "/models"}


def test_equal_servers_on_equal_machines_have_one_id() -> None:
    assert make_key() == make_key()
    assert make_key().id == make_key().id
    assert len({make_key(), make_key()}) == 1


def test_the_fields_come_in_the_documented_order() -> None:
    assert tuple(make_key().fields) == FIELD_NAMES


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("command", {"command": ["vllm", "serve", "/models/other"]}),
        ("port", {"port": 8001}),
        ("env", {"env": {"HF_HUB_OFFLINE": "0"}}),
        ("secrets", {"secrets": ["HF_TOKEN"]}),
        ("code", {"code": CODE}),
        ("volumes", {"volumes": [VOLUME]}),
        ("volumes", {"volumes": [VOLUME | {"read_only": True}]}),
        ("snapshot", {"snapshot": {"warmup": [{"path": "/warm"}]}}),
        ("snapshot", {"snapshot": {"canary": [{"path": "/canary"}]}}),
        ("snapshot", {"snapshot": {"before_snapshot": {"signal": "SIGUSR1"}}}),
        ("snapshot", {"snapshot": {"weights": "stream"}}),
        ("resources", {"resources": {"cpus": 2}}),
        ("resources", {"resources": {"memory_bytes": 1 << 30}}),
    ],
)
def test_what_shapes_the_memory_changes_exactly_one_field(field: str, changes: dict[str, Any]) -> None:
    differences = make_key(**changes).difference(make_key().fields)
    assert [name for name, _, _ in differences] == [field]
    assert make_key(**changes).id != make_key().id


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"scaling": {"max_replicas": 9}},
        {"ready": {"path": "/health"}},
        {"startup_timeout_s": 5},
        {"snapshot": {"after_restore": {"signal": "SIGHUP"}}},
    ],
)
def test_what_does_not_shape_the_memory_leaves_the_key_alone(changes: dict[str, Any]) -> None:
    assert make_key(**changes) == make_key()


def test_changed_code_is_another_key() -> None:
    assert make_key(code=CODE).id != make_key(code=CODE | {"code_digest": "bb"}).id


@pytest.mark.parametrize(
    ("field", "runtime"),
    [
        ("runtime", RuntimeIdentity("runsc", "20250101.0", RUNTIME.flags)),
        ("runtime_flags", RuntimeIdentity("runsc", "20240729.0", ("--platform=kvm",))),
    ],
)
def test_another_runtime_is_another_key(field: str, runtime: RuntimeIdentity) -> None:
    other = SnapshotKey.compute(make_server(), "im-1", runtime, MACHINE)
    assert [name for name, _, _ in other.difference(make_key().fields)] == [field]


def test_a_gpu_matters_only_to_servers_that_use_one() -> None:
    with_gpu = MachineIdentity("Example CPU", "0123456789abcdef", "6.18", "NVIDIA H100", "580.82")
    without = SnapshotKey.compute(make_server(), "im-1", RUNTIME, with_gpu)
    assert without == make_key()
    server = make_server(resources={"gpu": "H100"})
    key = SnapshotKey.compute(server, "im-1", RUNTIME, with_gpu)
    assert (key.fields["gpu_chip"], key.fields["gpu_driver"]) == ("NVIDIA H100", "580.82")


def test_secrets_enter_by_name_in_any_order() -> None:
    assert make_key(secrets=["A", "B"]) == make_key(secrets=["B", "A"])
    assert make_key(secrets=["A", "B"]) != make_key(secrets=["A"])


def test_a_snapshot_that_holds_secrets_is_never_shared_between_owners() -> None:
    server = make_server(secrets=["HF_TOKEN"], snapshot={"secrets_in_snapshot": True})

    def key(scope: str) -> SnapshotKey:
        return SnapshotKey.compute(server, "im-1", RUNTIME, MACHINE, secrets_scope=scope)

    assert key("chat-v1") != key("other-v1")
    with pytest.raises(InvalidInput, match="nobody said whose"):
        key("")


def test_a_request_nested_beyond_reason_is_the_caller_s_mistake() -> None:
    body: list[object] = []
    for _ in range(5000):
        body = [body]
    call = HttpCall(path="/").model_copy(update={"json_body": body})
    server = make_server().model_copy(update={"snapshot": SnapshotSpec(warmup=[call])})
    with pytest.raises(InvalidInput, match="snapshot key"):
        SnapshotKey.compute(server, "im-1", RUNTIME, MACHINE)


def test_differences_are_told_in_one_line_in_the_documented_order() -> None:
    other = SnapshotKey.compute(
        make_server(command=["x" * 200]), "im-2", RUNTIME, MachineIdentity("C", "f", "6.12")
    )
    line = explain_differences(make_key().difference(other.fields))
    assert line.startswith("image is im-1, was im-2; command is [")
    assert "kernel is 6.18, was 6.12" in line
    assert "x" * 61 not in line


def test_another_processor_is_told_by_the_features_that_differ() -> None:
    other = {**make_key().fields, "cpu_model": "Big CPU", "cpu_features": "amx avx sse"}
    here = SnapshotKey({**make_key().fields, "cpu_features": "avx fma sse"})
    line = explain_differences(here.difference(other))
    assert line == "cpu_model is Example CPU, was Big CPU; cpu_features lacks amx, also has fma"
    many = {**here.fields, "cpu_features": " ".join(f"f{number:02}" for number in range(40))}
    assert "f11 and 28 more" in explain_differences(here.difference(many))


def test_of_long_values_the_part_that_differs_is_shown() -> None:
    paths = [f"{'x' * 500}/{name}/{'y' * 500}" for name in ("one", "two")]
    line = explain_differences([("command", *paths)])
    assert re.fullmatch(r"command is \.\.x+/one/y+\.\., was \.\.x+/two/y+\.\.", line)


def test_every_field_has_words() -> None:
    assert set(make_key().fields) == set(KEY_FIELD_WORDS)


def test_a_field_of_another_version_shows_as_absent() -> None:
    fields = dict(make_key().fields)
    del fields["kernel"]
    differences = make_key().difference(fields | {"phase_of_moon": "full"})
    assert differences == [("kernel", "6.18", ""), ("phase_of_moon", "", "full")]
    assert "was (absent)" in explain_differences(differences)


def test_this_machine_can_be_read_twice_alike() -> None:
    machine = MachineIdentity.read()
    assert machine == MachineIdentity.read()
    assert len(machine.cpu_features.split()) > 5
    assert machine.kernel.count(".") == 1


def _fake_proc(root: Path, cpuinfo: str) -> Path:
    (root / "sys/kernel").mkdir(parents=True)
    (root / "sys/kernel/osrelease").write_text("6.1.0-18-amd64\n")
    (root / "cpuinfo").write_text(cpuinfo)
    return root


def test_features_are_those_every_core_has_in_any_order(tmp_path: Path) -> None:
    one = _fake_proc(tmp_path / "a", "model name\t: Big\nflags\t\t: avx sse amx\n\nflags\t\t: sse avx\n")
    two = _fake_proc(tmp_path / "b", "model name\t: Big\nflags\t\t: avx sse\n\nflags\t\t: sse avx\n")
    assert MachineIdentity.read(one) == MachineIdentity.read(two)
    assert MachineIdentity.read(one).kernel == "6.1"
    assert MachineIdentity.read(one).gpu_chip == NONE


def test_an_arm_processor_is_understood(tmp_path: Path) -> None:
    proc = _fake_proc(tmp_path, "processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd40\n")
    assert MachineIdentity.read(proc).cpu_model == "0xd40"


def test_gpus_and_their_driver_are_those_of_the_inventory() -> None:
    devices = [
        Device(
            index=index, uuid=f"GPU-{index}", chip=chip, memory_bytes=memory_bytes, free_bytes=0,
            is_persistent=True, is_mig=False,
        )
        for index, (chip, memory_bytes) in enumerate([("H100", 80), ("H100", 80), ("A100", 40), ("H100", 96)])
    ]  # fmt: skip
    machine = MachineIdentity.read(gpus=Inventory(driver="580.82.07", cuda="13.0", devices=devices))
    assert machine.gpu_chip == "A100 (40 bytes) + H100 (80 bytes) + H100 (96 bytes)"
    assert machine.gpu_driver == "580.82.07"
    assert MachineIdentity.read().gpu_driver == NONE


@pytest.mark.parametrize("cpuinfo", ["", "flags\t:\n", "garbage"])
def test_a_processor_that_does_not_say_what_it_can_is_unfit(tmp_path: Path, cpuinfo: str) -> None:
    with pytest.raises(SystemUnfit, match="features"):
        MachineIdentity.read(_fake_proc(tmp_path, cpuinfo))


def test_a_machine_without_proc_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(SystemUnfit, match="Cannot read"):
        MachineIdentity.read(tmp_path)
