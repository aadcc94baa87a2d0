"""What runc is told beyond what every runtime is told: pure."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.test_bundle import described

from glowplug.runtime.bundle import CAPABILITIES
from glowplug.runtime.port import ContainerEdits, DeviceNode, SandboxMount
from glowplug.runtime.runc_bundle import runc_config, seccomp_profile
from glowplug.runtime.writable import WritableFolders

CONFIG = Path("/state/criu.conf")


def _config(**changes: Any) -> dict[str, Any]:
    return runc_config(described(**changes), WritableFolders(Path("/state/one")), CONFIG)


def test_every_namespace_is_private_but_that_of_users() -> None:
    kinds = {one["type"] for one in _config()["linux"]["namespaces"]}
    assert kinds == {"pid", "network", "mount", "ipc", "uts", "cgroup"}


def test_the_hosts_kernel_grants_no_more_than_the_usual_capabilities() -> None:
    granted = _config(extra_capabilities=("CAP_SYS_ADMIN",))["process"]["capabilities"]
    assert all(names == CAPABILITIES for names in granted.values())
    assert _config()["process"]["noNewPrivileges"] is True


def test_memory_is_limited_to_what_was_asked_for() -> None:
    assert _config(memory_bytes=1 << 30)["linux"]["resources"]["memory"] == {"limit": 1 << 30}


def test_root_and_temporary_folders_are_the_writable_ones_and_mounts_follow() -> None:
    config = _config(mounts=(SandboxMount(Path("/data"), "/tmp/data"),))
    assert config["root"] == {"path": "/state/one/root", "readonly": False}
    sources = {mount["destination"]: mount["source"] for mount in config["mounts"]}
    assert sources["/tmp"].startswith("/state/one/")
    assert sources["/dev/shm"].startswith("/state/one/")
    order = [mount["destination"] for mount in config["mounts"]]
    assert order.index("/tmp") < order.index("/tmp/data")
    assert order.count("/tmp") == order.count("/dev/shm") == 1


def test_criu_reads_the_configuration_that_the_annotation_names() -> None:
    assert _config(annotations={"a": "b"})["annotations"] == {"a": "b", "org.criu.config": str(CONFIG)}


def test_rings_are_absent_rather_than_forbidden() -> None:
    rules = {name: rule for rule in seccomp_profile("x86_64")["syscalls"] for name in rule["names"]}
    for name in ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3"):
        assert rules[name]["errnoRet"] == errno.ENOSYS
    for name in ("mount", "unshare", "setns", "bpf"):
        assert rules[name]["errnoRet"] == errno.EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_program_for_the_processors_older_form_gets_the_same_rules(machine: str) -> None:
    assert len(seccomp_profile(machine)["architectures"]) >= 2


def test_devices_are_shown_and_allowed_and_what_a_server_says_itself_wins() -> None:
    edits = ContainerEdits(
        env={"LD_LIBRARY_PATH": "/driver", "CUDA_VISIBLE_DEVICES": "GPU-1"},
        mounts=(SandboxMount(Path("/usr/lib/libcuda.so.1"), "/driver/libcuda.so.1"),),
        nodes=(DeviceNode(Path("/dev/nvidia1"), "/dev/nvidia1", "c", 195, 1),),
        hooks={"createContainer": [{"path": "/usr/bin/nvidia-cdi-hook"}]},
    )
    config = _config(edits=edits, env={"LD_LIBRARY_PATH": "/mine"})
    env = [entry for entry in config["process"]["env"] if entry.startswith(("LD_", "CUDA_"))]
    assert env == ["LD_LIBRARY_PATH=/mine", "CUDA_VISIBLE_DEVICES=GPU-1"]
    assert [mount["source"] for mount in config["mounts"][-2:]] == ["/usr/lib/libcuda.so.1", "/dev/nvidia1"]
    assert config["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 195, "minor": 1, "access": "rw"},
    ]
    assert config["hooks"] == edits.hooks
    assert "hooks" not in _config()
