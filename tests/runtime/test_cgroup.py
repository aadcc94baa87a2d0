"""Reading and removing cgroups: the kernel's own, and a tree that looks like version 2."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.sandboxes import running

from glowplug.runtime.cgroup import CGROUP_MOUNT, ReplicaCgroup, cgroup_path
from glowplug.types.errors import RuntimeFailed


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
        assert process.wait(60) == -9


@pytest.mark.sandbox
def test_removal_ends_what_runs_in_it_and_in_groups_below(group: tuple[str, Path]) -> None:
    name, folder = group
    (folder / "below").mkdir()
    with running(["sleep", "1000"]) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert ReplicaCgroup(name).remove()
        assert process.wait(60) == -9
    assert not folder.exists()
    assert ReplicaCgroup(name).remove(), "twice is fine"


def test_the_proportional_share_is_what_the_kernel_says_of_its_processes(v2: Path) -> None:
    cgroup = ReplicaCgroup("r-1", v2)
    (v2 / "glowplug/r-1/cgroup.procs").write_text(f"{os.getpid()}\n999999999\n")
    assert 1 << 20 < cgroup.proportional_bytes() < 4 << 30
    (v2 / "glowplug/r-1/cgroup.procs").write_text("")
    assert cgroup.proportional_bytes() == 0


# -- freezing ------------------------------------------------------------------------------------------------


def test_version_2_is_frozen_thawed_and_emptied(v2: Path) -> None:
    folder = v2 / "glowplug/r-1"
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (folder / "memory.swap.current").write_text("8192\n")
    (folder / "memory.current").write_text(f"{64 << 20}\n")
    cgroup = ReplicaCgroup("r-1", v2)
    cgroup.freeze()
    assert (folder / "cgroup.freeze").read_text() == "1"
    cgroup.push_out()
    assert (folder / "memory.reclaim").read_text() == str(64 << 20)
    assert cgroup.swapped_bytes() == 8192
    cgroup.thaw()
    assert (folder / "cgroup.freeze").read_text() == "0"


def test_what_does_not_freeze_runs_on(v2: Path) -> None:
    folder = v2 / "glowplug/r-1"
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    with pytest.raises(RuntimeFailed, match="was not frozen within"):
        ReplicaCgroup("r-1", v2).freeze(timeout_s=0.01)
    assert (folder / "cgroup.freeze").read_text() == "0"


def test_a_replica_that_is_gone_cannot_be_frozen_and_thaws_silently(tmp_path: Path) -> None:
    cgroup = ReplicaCgroup("absent", tmp_path)
    with pytest.raises(RuntimeFailed, match="cannot be frozen"):
        cgroup.freeze()
    cgroup.thaw()
    assert not cgroup.is_frozen


@pytest.mark.sandbox
def test_a_frozen_process_that_is_killed_is_told_apart_and_dies(frozen_group: tuple[str, Path]) -> None:
    name, folder = frozen_group
    cgroup = ReplicaCgroup(name)
    with running(["sleep", "1000"]) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        freezer = CGROUP_MOUNT / "freezer" / "glowplug" / name
        if freezer.exists():
            (freezer / "cgroup.procs").write_text(str(process.pid))
        cgroup.freeze()
        assert cgroup.is_frozen
        assert not cgroup.has_kill_pending()
        cgroup.kill_all()
        assert process.wait(60) == -9


@pytest.fixture
def frozen_group(group: tuple[str, Path]) -> tuple[str, Path]:
    """The same, with a freezer where that is a hierarchy of its own."""
    name, folder = group
    if (CGROUP_MOUNT / "freezer").is_dir():
        (CGROUP_MOUNT / "freezer" / "glowplug" / name).mkdir(parents=True)
    return name, folder
