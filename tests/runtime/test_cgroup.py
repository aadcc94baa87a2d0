"""Reading and removing cgroups: the kernel's own, and a tree that looks like version 2."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.sandboxes import running

from glowplug.runtime.cgroup import CGROUP_MOUNT, ReplicaCgroup, cgroup_path


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """What a machine with only the unified hierarchy shows of the replica r-1."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    group = tmp_path / "glowplug/r-1"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("4096\n")
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n")
    return tmp_path


def test_version_2_is_read(v2: Path) -> None:
    cgroup = ReplicaCgroup("r-1", v2)
    assert cgroup.memory_bytes() == 4096
    assert cgroup.oom_kills() == 2


@pytest.mark.parametrize("controllers", [True, False])
def test_a_replica_that_is_gone_reads_as_nothing(tmp_path: Path, controllers: bool) -> None:
    if controllers:
        (tmp_path / "cgroup.controllers").touch()
    cgroup = ReplicaCgroup("absent", tmp_path)
    assert cgroup.memory_bytes() is None
    assert cgroup.oom_kills() == 0
    cgroup.kill_all()
    assert cgroup.remove()


def test_what_cannot_be_removed_is_told_and_not_waited_for_without_end(v2: Path) -> None:
    assert not ReplicaCgroup("r-1", v2).remove(timeout_s=0.05), "its files stand for processes"


def test_the_path_is_below_each_controller() -> None:
    assert cgroup_path("r-1") == "/glowplug/r-1"


@pytest.fixture
def group() -> Iterator[tuple[str, Path]]:
    """A real cgroup with a process in it, and where its processes are listed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = f"gpt-{secrets.token_hex(4)}"
    root = CGROUP_MOUNT if (CGROUP_MOUNT / "cgroup.controllers").exists() else CGROUP_MOUNT / "memory"
    folder = root / "glowplug" / name
    folder.mkdir(parents=True)
    yield name, folder
    assert ReplicaCgroup(name).remove()


@pytest.mark.sandbox
def test_memory_of_a_real_group_is_read(group: tuple[str, Path]) -> None:
    name, folder = group
    with running(["sleep", "1000"]) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert (ReplicaCgroup(name).memory_bytes() or 0) >= 0
        assert ReplicaCgroup(name).oom_kills() == 0
        ReplicaCgroup(name).kill_all()
        assert process.wait(5) == -9


@pytest.mark.sandbox
def test_removal_ends_what_runs_in_it_and_in_groups_below(group: tuple[str, Path]) -> None:
    name, folder = group
    (folder / "below").mkdir()
    with running(["sleep", "1000"]) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert ReplicaCgroup(name).remove()
        assert process.wait(5) == -9
    assert not folder.exists()
    assert ReplicaCgroup(name).remove(), "twice is fine"
