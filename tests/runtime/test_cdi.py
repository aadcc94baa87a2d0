"""The node's GPUs as its Container Device Interface files describe them: as NVIDIA's toolkit writes one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.runtime.cdi import cdi_folders, describes_gpus, read_gpu_edits
from glowplug.runtime.port import DeviceNode, SandboxMount
from glowplug.types.errors import SystemUnfit

# Shortened from `nvidia-ctk cdi generate`; /dev/null and /dev/zero stand for what is not here.
NVIDIA = """
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
    hostPath: /dev/null
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07
    options: [ro, nosuid, nodev, rbind, rprivate]
  - containerPath: /run/nvidia-persistenced/socket
    hostPath: /run/nvidia-persistenced/socket
    options: [nosuid, nodev, rbind, noexec]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/zero
"""


def test_nodes_libraries_and_hooks_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(NVIDIA)
    edits = read_gpu_edits([tmp_path])
    assert edits.env == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert edits.nodes == (
        DeviceNode(Path("/dev/null"), "/dev/nvidiactl", "c", 1, 3),
        DeviceNode(Path("/dev/zero"), "/dev/nvidia0", "c", 1, 5),
    )
    library = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.82.07"
    assert edits.mounts == (
        SandboxMount(Path(library), library, read_only=True),
        SandboxMount(
            Path("/run/nvidia-persistenced/socket"), "/run/nvidia-persistenced/socket", read_only=False
        ),
    )
    [hook] = edits.hooks["createContainer"]
    assert hook["path"] == "/usr/bin/nvidia-cdi-hook"
    assert hook["args"][1] == "update-ldcache"


def test_without_a_device_that_is_all_of_them_every_one_is_taken(tmp_path: Path) -> None:
    devices = [
        {"name": str(number), "containerEdits": {"deviceNodes": [{"path": path}]}}
        for number, path in enumerate(("/dev/null", "/dev/zero"))
    ]
    spec = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}
    (tmp_path / "nvidia.json").write_text(json.dumps(spec))
    assert [node.destination for node in read_gpu_edits([tmp_path]).nodes] == ["/dev/null", "/dev/zero"]


def test_files_of_other_devices_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cdiVersion": "0.5.0", "kind": "example.com/net", "devices": 7}')
    assert not describes_gpus([tmp_path])
    with pytest.raises(SystemUnfit, match="describes this node's GPUs") as raised:
        read_gpu_edits([tmp_path, tmp_path / "absent"])
    assert "nvidia-ctk cdi generate" in raised.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nvidia.json", "{", "cannot be read"),
        ("nvidia.yaml", "kind: [", "cannot be read"),
        ("nvidia.json", '{"kind": "nvidia.com/gpu", "devices": 7}', "valid list"),
        (
            "nvidia.json",
            '{"kind": "nvidia.com/gpu", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such"}]}}',
            "names /dev/no-such",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemUnfit, match=said) as raised:
        read_gpu_edits([tmp_path])
    assert name in raised.value.message


@given(st.binary(max_size=200))
def test_nothing_but_system_unfit_comes_of_any_file(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"cdi-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    for name in ("nvidia.json", "nvidia.yaml"):
        (folder / name).write_bytes(raw)
        with pytest.raises(SystemUnfit):
            read_gpu_edits([folder])
        (folder / name).unlink()


def test_folders_are_the_usual_ones_or_those_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOWPLUG_CDI", raising=False)
    assert cdi_folders() == (Path("/etc/cdi"), Path("/var/run/cdi"))
    monkeypatch.setenv("GLOWPLUG_CDI", "/a:/b")
    assert cdi_folders() == (Path("/a"), Path("/b"))
