"""Finding out which ways of mounting work, and saying why others do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.image.lazy.small_image import needs_root

from glowplug.image.lazy import probe, syscalls
from glowplug.image.lazy.mount_table import read_mount_table
from glowplug.image.lazy.probe import MountSupport, Trial, mount_support, probe_mounting
from glowplug.image.lazy.syscalls import MountRefused
from glowplug.types.paths import StateDir


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "state")
    state.create()
    return state


def refuse(*_arguments: object, **_options: object) -> bool:
    raise MountRefused("not today.", errno=None)


@needs_root
def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    probe_mounting(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not any(entry.path.is_relative_to(tmp_path) for entry in read_mount_table())


@needs_root
def test_on_a_tmpfs_only_loop_devices_and_fuse_are_left() -> None:
    found = probe_mounting(Path("/dev/shm"))
    assert found.ways == ("loop", "plain_fuse")
    assert "tmpfs" in found.explain()[0]


@needs_root
def test_the_next_way_is_used_when_the_kernel_refuses_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "mount_erofs", refuse)
    found = probe_mounting(tmp_path)
    assert found.ways == ("loop", "plain_fuse")
    lines = found.explain()
    assert "no. not today." in lines[0]
    assert lines[1].endswith("works, used.")
    assert lines[2].endswith("works.")


@needs_root
def test_nothing_works_without_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "mount_fuse", refuse)
    assert probe_mounting(tmp_path).ways == ()


@needs_root
def test_no_file_is_mounted_on_where_a_read_that_is_cut_short_gives_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(target: Path) -> None:
        syscalls.detach(target)
        raise OSError("what was read back is not what was written")

    read_back = probe._read_back
    reads = iter([read_back, zeros])  # as a kernel before March 2026 does
    monkeypatch.setattr(probe, "_read_back", lambda target: next(reads, read_back)(target))
    found = probe_mounting(tmp_path)
    assert found.ways[0] == "loop"
    assert not found.can_gather
    assert "gives zeros" in found.explain()[0]


def test_it_is_tried_once_a_boot(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def count(scratch: Path) -> MountSupport:
        tried.append(scratch)
        return MountSupport(boot_id=probe._boot_id(), user_id=os.geteuid(), trials=[Trial(way="loop")])

    monkeypatch.setattr(probe, "probe_mounting", count)
    assert mount_support(state) == mount_support(state)
    assert tried == [state.lazy]
    monkeypatch.setattr(probe, "_boot_id", lambda: "another")
    mount_support(state)
    assert len(tried) == 2


@pytest.mark.parametrize("content", ["", "{}", "\0", '{"version": 9, "trials": []}', "[" * 100_000])
def test_a_damaged_answer_is_asked_for_again(
    state: StateDir, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = MountSupport(boot_id="b", trials=[Trial(way="lazy")])
    monkeypatch.setattr(probe, "probe_mounting", lambda _scratch: answer)
    state.lazy.mkdir(parents=True)
    (state.lazy / "support.json").write_text(content)
    assert mount_support(state) == answer


@needs_root
def test_somebody_who_is_not_root_is_told_so(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from glowplug.image.lazy.probe import probe_mounting\n"
        "import os; os.setgid(65534); os.setuid(65534)\n"
        "print('\\n'.join(probe_mounting(pathlib.Path(sys.argv[1])).explain()))\n"
    )
    scratch = Path("/tmp") / f"glowplug-probe-{os.getpid()}"  # pytest's own folders are root's alone
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, scratch],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert list(scratch.iterdir()) == []
    finally:
        scratch.rmdir()
    lines = done.stdout.splitlines()
    assert "Only root may" in lines[0]
    assert "No loop device" in lines[1]
