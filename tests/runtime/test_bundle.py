"""From a sandbox description to an OCI configuration: pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.runtime.bundle import DEFAULT_PATH, SANDBOX_OVERHEAD_BYTES, oci_config, write_bundle
from glowplug.runtime.port import Sandbox, SandboxMount


def described(**changes: Any) -> Sandbox:
    """A sandbox that is only ever described."""
    values: dict[str, Any] = {
        "id": "chat-1",
        "directory": Path("/state/bundle"),
        "root": Path("/images/im-1/rootfs"),
        "base": Path("/images/im-1/rootfs"),
        "args": ("vllm", "serve"),
        "env": {},
        "workdir": "/",
        "hostname": "chat-1",
        "netns": Path("/run/netns/gp-chat-1"),
        "cgroup": "/glowplug/chat-1",
        "memory_bytes": 1 << 30,
        "cpus": 2.0,
        "log": Path("/state/log"),
    }
    return Sandbox(**values | changes)


def test_the_sandboxs_own_memory_comes_on_top_of_the_applications() -> None:
    memory = oci_config(described())["linux"]["resources"]["memory"]
    assert memory == {"limit": (1 << 30) + SANDBOX_OVERHEAD_BYTES}


def test_processors_become_a_quota_and_background_work_a_small_share() -> None:
    normal = oci_config(described(cpus=1.5))["linux"]["resources"]["cpu"]
    assert normal["quota"] / normal["period"] == 1.5
    background = oci_config(described(cpu_weight=20))["linux"]["resources"]["cpu"]
    assert background["shares"] == pytest.approx(normal["shares"] / 5, abs=1)


def test_the_users_environment_wins_over_the_defaults() -> None:
    env = oci_config(described(env={"PATH": "/mine", "A": "1"}))["process"]["env"]
    assert "PATH=/mine" in env
    assert f"PATH={DEFAULT_PATH}" not in env
    assert "HOSTNAME=chat-1" in env
    assert "A=1" in env


def test_temporary_folders_are_inside_the_sandbox_and_so_part_of_a_snapshot() -> None:
    kinds = {mount["destination"]: mount["type"] for mount in oci_config(described())["mounts"]}
    assert kinds["/tmp"] == kinds["/dev/shm"] == "tmpfs"


def test_mounts_are_read_only_unless_told_otherwise() -> None:
    mounts = (SandboxMount(Path("/a"), "/in/a"), SandboxMount(Path("/b"), "/in/b", read_only=False))
    binds = {
        m["destination"]: m for m in oci_config(described(mounts=mounts))["mounts"] if m["type"] == "bind"
    }
    assert binds["/in/a"]["options"] == ["rbind", "ro"]
    assert binds["/in/b"]["options"] == ["rbind", "rw"]
    assert binds["/in/b"]["source"] == "/b"


def test_the_root_is_writable_whatever_the_sandbox() -> None:
    """A snapshot of one whose root was not could not be restored into one whose root is."""
    for sandbox in (described(), described(host_changes_volumes=True), described(merges_pages=True)):
        assert oci_config(sandbox)["root"]["readonly"] is False


def test_extra_capabilities_are_added_in_every_set() -> None:
    usual = oci_config(described())["process"]["capabilities"]
    more = oci_config(described(extra_capabilities=("CAP_SYS_ADMIN",)))["process"]["capabilities"]
    assert usual.keys() == more.keys()
    for kind, names in more.items():
        assert names == [*usual[kind], "CAP_SYS_ADMIN"]


def test_the_bundle_is_rewritten_when_a_container_is_made_anew(tmp_path: Path) -> None:
    for args in (("a",), ("b",)):
        sandbox = described(directory=tmp_path / "bundle", args=args)
        write_bundle(sandbox, oci_config(sandbox))
        assert json.loads((tmp_path / "bundle/config.json").read_text())["process"]["args"] == list(args)


@given(
    args=st.lists(st.text(), min_size=1),
    env=st.dictionaries(st.text(min_size=1), st.text()),
    cpus=st.floats(0.001, 1024),
    weight=st.integers(0, 1000),
)
def test_every_description_becomes_json_with_limits_the_kernel_takes(
    args: list[str], env: dict[str, str], cpus: float, weight: int
) -> None:
    sandbox = described(args=tuple(args), env=env, cpus=cpus, cpu_weight=weight)
    config = json.loads(json.dumps(oci_config(sandbox)))
    assert config["process"]["args"] == args
    cpu = config["linux"]["resources"]["cpu"]
    assert cpu["quota"] >= 1000
    assert cpu["shares"] >= 2
