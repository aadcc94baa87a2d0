"""Larger pieces of memory while something is restored, and the host's own settings afterwards."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.runtime.sandboxes import eventually

from glowplug.node.host_settings import read_setting
from glowplug.node.large_pages import SIZES_KIB, THP, LargePages

CHOICES = ("always", "inherit", "madvise", "never")


def _choose(file: Path, value: str) -> None:
    """What the kernel shows of a choice, which is not what is written."""
    file.write_text(" ".join(f"[{choice}]" if choice == value else choice for choice in CHOICES) + "\n")


@pytest.fixture
def thp(tmp_path: Path) -> Path:
    """The kernel's files, as a folder."""
    for size_kib in (*SIZES_KIB, 2048):
        (tmp_path / f"hugepages-{size_kib}kB").mkdir()
        for switch in ("enabled", "shmem_enabled"):
            _choose(tmp_path / f"hugepages-{size_kib}kB" / switch, "never")
    return tmp_path


def settings(thp: Path) -> dict[str, str]:
    return {str(file.relative_to(thp)): read_setting(file) for file in sorted(thp.glob("*/*enabled"))}


def test_they_are_on_while_anybody_restores_and_off_afterwards(thp: Path) -> None:
    pages, before = LargePages(thp / "record", thp), settings(thp)
    with pages.given():
        with pages.given():
            pass
        during = settings(thp)
    assert {
        during[f"hugepages-{size}kB/{switch}"]
        for size in SIZES_KIB
        for switch in ("enabled", "shmem_enabled")
    } == {"always"}
    assert during["hugepages-2048kB/enabled"] == "never"
    assert settings(thp) == before
    assert not (thp / "record").exists()


def test_a_size_that_the_hosts_owner_has_chosen_is_left_alone(thp: Path) -> None:
    _choose(thp / "hugepages-64kB/enabled", "madvise")
    with LargePages(thp / "record", thp).given():
        assert settings(thp)["hugepages-64kB/enabled"] == "madvise"
        assert settings(thp)["hugepages-32kB/enabled"] == "always"
    assert settings(thp)["hugepages-64kB/enabled"] == "madvise"


def test_what_is_changed_meanwhile_is_not_undone(thp: Path) -> None:
    with LargePages(thp / "record", thp).given():
        _choose(thp / "hugepages-64kB/enabled", "inherit")
    assert settings(thp)["hugepages-64kB/enabled"] == "inherit"
    assert settings(thp)["hugepages-32kB/enabled"] == "never"


def test_the_successor_of_a_killed_agent_puts_the_hosts_settings_back(thp: Path) -> None:
    before = settings(thp)
    killed = LargePages(thp / "record", thp).given()
    killed.__enter__()
    assert settings(thp) != before
    LargePages(thp / "record", thp).put_back()
    assert settings(thp) == before


def test_a_failing_restore_puts_them_back_too(thp: Path) -> None:
    before = settings(thp)
    with pytest.raises(ZeroDivisionError), LargePages(thp / "record", thp).given():
        _ = 1 // 0
    assert settings(thp) == before


def test_restores_side_by_side_share_them(thp: Path) -> None:
    pages, before = LargePages(thp / "record", thp), settings(thp)
    barrier, wrong = threading.Barrier(8), []

    def restore() -> None:
        barrier.wait()
        for _ in range(20):
            with pages.given():
                wrong.extend(k for k, v in settings(thp).items() if "2048" not in k and v != "always")

    threads = [threading.Thread(target=restore) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert settings(thp) == before


@pytest.mark.parametrize("kind", ["absent", "not writable"])
def test_a_kernel_that_has_no_such_sizes_is_no_failure(tmp_path: Path, kind: str) -> None:
    if kind == "not writable":
        (tmp_path / "hugepages-64kB").mkdir()
        (tmp_path / "hugepages-64kB/enabled").symlink_to("/proc/version")
    with LargePages(tmp_path / "record", tmp_path).given():
        pass


@pytest.mark.skipif(not (THP / "hugepages-64kB").exists(), reason="this kernel has one size of pages only")
def test_the_kernel_takes_what_we_write(tmp_path: Path) -> None:
    """The files are the whole machine's: agents of other workers change them too, while they restore."""

    def is_changed_and_put_back() -> bool:
        before = settings(THP)
        with LargePages(tmp_path / "record").given():
            during = settings(THP)
        changed = {name for name in before if before[name] != during[name]}
        ours = {name for name in before if any(f"-{size}kB/" in name for size in SIZES_KIB)}
        wanted = {name for name in ours if before[name] == "never"}
        return changed == wanted and settings(THP) == before

    eventually(is_changed_and_put_back, lambda: f"they are {settings(THP)}")
