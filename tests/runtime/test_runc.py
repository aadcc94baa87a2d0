"""The runc adapter with the real runc and CRIU: the contract, and what is peculiar to it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.conftest import OrphanReaper, sandboxes_of_runc
from tests.runtime.contract import RuntimeContract
from tests.runtime.sandboxes import COUNTER, HOLDER, Sandboxes, ask, eventually, failure, is_alive, running

from glowplug.node import page_merging
from glowplug.runtime import runc, runc_bundle
from glowplug.runtime.cgroup import CGROUP_MOUNT, ReplicaCgroup
from glowplug.runtime.port import Sandbox
from glowplug.runtime.runc import Runc
from glowplug.runtime.runc_image import DESCRIPTION, FILES_ARCHIVE
from glowplug.types.errors import DeadlineExceeded, ResourceExhausted, RuntimeFailed

pytestmark = pytest.mark.sandbox


@pytest.fixture
def sandboxes(folder: Path, reaper: OrphanReaper) -> Iterator[Sandboxes]:
    with sandboxes_of_runc(folder) as made:
        yield made


class TestRuncKeepsTheContract(RuntimeContract):
    """All of it."""


# -- what a server may hold ----------------------------------------------------------------------------------


def _hold(sandboxes: Sandboxes, kind: str, **changes: Any) -> Sandbox:
    """A running holder of that kind of state."""
    sandbox, _ = sandboxes.run("python3", "-c", HOLDER, kind, **changes)
    eventually(lambda: ask(sandbox), f"{kind} answers")
    return sandbox


def _processes(sandbox: Sandbox) -> int:
    folders = [
        CGROUP_MOUNT / sandbox.cgroup.lstrip("/"),
        CGROUP_MOUNT / "memory" / sandbox.cgroup.lstrip("/"),
    ]
    return len(next(f for f in folders if f.exists()).joinpath("cgroup.procs").read_text().split())


def _limit(sandbox: Sandbox, v1: str, v2: str) -> int | None:
    """A number from the cgroup of ``sandbox``, in the hierarchy's own file; None when it is gone."""
    pattern = v2 if (CGROUP_MOUNT / "cgroup.controllers").exists() else v1.rpartition("/")[2]
    folders = [
        CGROUP_MOUNT / sandbox.cgroup.lstrip("/"),
        CGROUP_MOUNT / "memory" / sandbox.cgroup.lstrip("/"),
    ]
    texts = [(folder / pattern).read_text() for folder in folders if (folder / pattern).exists()]
    return int(texts[0]) if texts else None


@pytest.mark.parametrize(
    "kind",
    [
        "anonymous_shared_memory",
        "deleted_file",
        "engine_processes",
        "event_loop",
        "file_locks",
        "files",
        "process_pool",
        "shared_memory_file",
        "threads",
        "tiles",
        "unix_socket",
        "unix_socket_connected",
    ],
)
def test_a_copy_holds_what_the_original_held(sandboxes: Sandboxes, folder: Path, kind: str) -> None:
    original = _hold(sandboxes, kind)
    expected = ask(original)
    assert ask(original) == expected
    copies = sandboxes.copies(original, folder / "image", 2)
    assert [eventually(lambda copy=copy: ask(copy)) for copy in copies] == [expected, expected]
    assert ask(copies[0]) == expected


def test_eight_copies_run_side_by_side_in_namespaces_of_their_own(sandboxes: Sandboxes, folder: Path) -> None:
    original = sandboxes.run_counter()
    count = int(ask(original) or 0)
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda _: sandboxes.restore(original, folder / "image"), range(8)))
    assert [eventually(lambda copy=copy: ask(copy)) for copy in copies] == [str(count + 1)] * 8
    pids = [int((copy.directory / "sandbox.pid").read_text()) for copy in copies]
    for kind in ("pid", "net", "mnt", "ipc", "uts", "cgroup"):
        names = {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for pid in [*pids, os.getpid()]}
        assert len(names) == 9, kind


def test_a_copy_has_its_own_host_name_and_the_environment_of_the_original(
    sandboxes: Sandboxes, folder: Path
) -> None:
    original = _hold(sandboxes, "identity", env={"COLOUR": "red"})
    answer = ask(original)
    (copy,) = sandboxes.copies(original, folder / "image", 1)
    eventually(lambda: ask(copy))
    assert ask(copy) == str(answer).replace(original.hostname, copy.hostname)
    assert socket.gethostname() != copy.hostname


def test_a_copys_memory_limit_and_share_are_those_of_its_own_description(
    sandboxes: Sandboxes, folder: Path
) -> None:
    original = sandboxes.run_counter()
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    copy = sandboxes.restore(original, folder / "image", memory_bytes=128 << 20, cpu_weight=20)
    assert _limit(copy, "memory/*/memory.limit_in_bytes", "memory.max") == 128 << 20
    assert _limit(original, "memory/*/memory.limit_in_bytes", "memory.max") is None, "it has ended"
    assert eventually(lambda: ask(copy))


@pytest.mark.usefixtures("no_swap")
def test_more_memory_than_allowed_ends_the_container_and_is_counted(
    sandboxes: Sandboxes, reaper: OrphanReaper
) -> None:
    hog = "block = bytearray(b'x') * (300 << 20)"
    sandbox, pid = sandboxes.run("python3", "-c", hog, memory_bytes=64 << 20)
    assert reaper.exit_code(pid) == -9
    assert ReplicaCgroup(sandbox.id).oom_kills() >= 1


def test_system_calls_that_criu_cannot_checkpoint_do_not_exist(sandboxes: Sandboxes) -> None:
    assert ask(_hold(sandboxes, "no_io_uring")) == "['Function not implemented']"


def test_a_container_cannot_leave_its_namespaces(sandboxes: Sandboxes) -> None:
    attempts = ("unshare -U true", "unshare -n true", "mount -t tmpfs x /tmp")
    script = "".join(f"{attempt} && echo BAD\n" for attempt in attempts) + "echo end"
    sandbox, _ = sandboxes.run("sh", "-c", script, extra_capabilities=("CAP_SYS_ADMIN",))
    eventually(lambda: "end" in sandbox.log.read_text())
    assert "BAD" not in sandbox.log.read_text()


def test_a_pid_that_is_not_the_containers_is_not_signalled(sandboxes: Sandboxes) -> None:
    sandbox, _ = sandboxes.run("sleep", "1000")
    with running(["sleep", "1000"]) as stranger:
        with pytest.raises(RuntimeFailed, match="not in"):
            sandboxes.runtime.signal(sandbox.id, "SIGKILL", stranger.pid)
        assert stranger.poll() is None


def test_commands_that_a_dead_agent_left_running_are_ended_and_containers_are_not(
    sandboxes: Sandboxes, folder: Path
) -> None:
    sandbox, pid = sandboxes.run("sleep", "1000")
    argv = sandboxes.runtime.exec_argv(sandbox.id, ["sleep", "1000"], tty=False)
    with running(argv) as left_running:
        Runc(folder / "another").end_commands()
        assert left_running.poll() is None, "commands on another state folder are not ours"
        sandboxes.runtime.end_commands()
        assert left_running.wait(60) == -9
    assert is_alive(pid)


# -- what fails ----------------------------------------------------------------------------------------------


@pytest.fixture
def captured(sandboxes: Sandboxes, folder: Path) -> tuple[Sandbox, Path]:
    """A counter that has ended, and its image."""
    original = sandboxes.run_counter()
    image = folder / "image"
    image.mkdir()
    sandboxes.runtime.checkpoint(original.id, image)
    return original, image


def _assert_refused(error: BaseException | None, what: str) -> None:
    assert isinstance(error, RuntimeFailed), repr(error)
    assert "\n" not in error.message
    assert what in error.message
    assert len(error.message) < 700
    assert error.remedy


@pytest.mark.parametrize(
    "pattern", ["core-1", "files", "inventory", "mm-1", "pagemap-1", "pages-1", "pstree"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_image_is_refused_in_one_readable_line(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path], pattern: str, damage: str
) -> None:
    original, image = captured
    path = image / f"{pattern}.img"
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    _assert_refused(failure(lambda: sandboxes.restore(original, image)), f"{pattern}.img")


@pytest.mark.parametrize("pattern", ["core-1", "mm-1", "pagemap-1", "pstree"])
def test_flipped_bits_in_the_state_are_refused_in_one_readable_line(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path], pattern: str
) -> None:
    original, image = captured
    path = image / f"{pattern}.img"
    content = bytearray(path.read_bytes())
    first = len(content) // 4
    for position in range(first, min(first + 64, len(content))):
        content[position] ^= 0xFF
    path.write_bytes(content)
    _assert_refused(failure(lambda: sandboxes.restore(original, image)), "")


@pytest.mark.parametrize("file", [FILES_ARCHIVE, DESCRIPTION])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damage_to_our_own_part_of_an_image_is_refused_too(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path], file: str, damage: str
) -> None:
    original, image = captured
    if damage == "missing":
        (image / file).unlink()
    else:
        os.truncate(image / file, (image / file).stat().st_size // 3)
    _assert_refused(failure(lambda: sandboxes.restore(original, image)), "")


def test_an_empty_image_folder_is_refused(sandboxes: Sandboxes, folder: Path) -> None:
    (folder / "empty").mkdir()
    copy = sandboxes.describe("sleep", "1")
    _assert_refused(
        failure(lambda: sandboxes.runtime.restore(copy, folder / "empty")), "no memory image of runc"
    )


def test_what_criu_cannot_dump_is_named_and_the_application_lives_on(
    sandboxes: Sandboxes, folder: Path
) -> None:
    landlock = "import ctypes\nctypes.CDLL(None).syscall(444, ctypes.byref(ctypes.c_uint64(1)), 8, 0)\n"
    original, _ = sandboxes.run("python3", "-c", landlock + COUNTER)
    eventually(lambda: ask(original))
    (folder / "image").mkdir()
    error = failure(lambda: sandboxes.runtime.checkpoint(original.id, folder / "image"))
    _assert_refused(error, "landlock")
    assert ask(original)


def test_a_ring_of_io_uring_is_refused_where_the_profile_lets_it_through(
    sandboxes: Sandboxes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runc_bundle, "_ABSENT_CALLS", [])
    ring = "import ctypes\nctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120))\n"
    original, _ = sandboxes.run("python3", "-c", ring + COUNTER)
    eventually(lambda: ask(original))
    (folder / "image").mkdir()
    error = failure(lambda: sandboxes.runtime.checkpoint(original.id, folder / "image"))
    _assert_refused(error, "Can't retrieve FDs")
    assert "io_uring" in str(error)
    assert ask(original)


def test_a_checkpoint_while_something_was_started_by_exec_is_refused(
    sandboxes: Sandboxes, folder: Path
) -> None:
    sandbox = sandboxes.run_counter()
    (folder / "image").mkdir()
    with running(sandboxes.runtime.exec_argv(sandbox.id, ["sleep", "1000"], tty=False)):
        eventually(lambda: _processes(sandbox) == 2)
        error = failure(lambda: sandboxes.runtime.checkpoint(sandbox.id, folder / "image"))
        _assert_refused(error, "exec")
        assert ask(sandbox)


def test_an_image_folder_that_was_used_is_refused_and_the_application_lives_on(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path]
) -> None:
    another = sandboxes.run_counter()
    with pytest.raises(RuntimeFailed, match="exists"):
        sandboxes.runtime.checkpoint(another.id, captured[1])
    assert ask(another)


def test_a_full_disk_at_checkpoint_is_named_as_such(sandboxes: Sandboxes, folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
    try:
        (small / "image").mkdir()
        sandbox = sandboxes.run_counter()
        error = failure(lambda: sandboxes.runtime.checkpoint(sandbox.id, small / "image"))
    finally:  # the sandbox lets go of its half image a moment after the command has failed
        eventually(lambda: subprocess.run(["umount", str(small)], check=False).returncode == 0, "unmounted")
    assert isinstance(error, ResourceExhausted), repr(error)
    assert "full" in error.message
    assert error.remedy


@pytest.mark.usefixtures("no_swap")
def test_a_restore_into_too_little_memory_is_an_error(sandboxes: Sandboxes, folder: Path) -> None:
    hog = "import time; block = bytearray(b'x') * (300 << 20); print('full', flush=True); time.sleep(1000)"
    original, _ = sandboxes.run("python3", "-c", hog, memory_bytes=400 << 20)
    eventually(lambda: "full" in original.log.read_text())
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    error = failure(lambda: sandboxes.restore(original, folder / "image", memory_bytes=32 << 20))
    _assert_refused(error, "`runc restore` failed")


def test_a_failed_restore_leaves_its_id_free(sandboxes: Sandboxes, captured: tuple[Sandbox, Path]) -> None:
    original, image = captured
    pages = image / "pages-1.img"
    content = pages.read_bytes()
    pages.unlink()
    copy = sandboxes.describe(*original.args)
    assert failure(lambda: sandboxes.runtime.restore(copy, image))
    pages.write_bytes(content)
    sandboxes.runtime.restore(copy, image)
    sandboxes.open_gateway(copy)
    assert eventually(lambda: ask(copy))


def test_what_a_killed_runc_left_of_its_pid_file_is_in_nobodys_way(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path]
) -> None:
    original, image = captured
    copy = sandboxes.describe(*original.args)
    copy.directory.mkdir(exist_ok=True)
    (copy.directory / ".sandbox.pid").write_text("12")
    sandboxes.runtime.restore(copy, image)
    assert (copy.directory / "sandbox.pid").read_text().isdigit()


@pytest.mark.parametrize("deadline_s", [0.01, 0.04, 0.07, 0.1])
def test_a_restore_that_was_killed_leaves_nothing_and_its_id_free(
    sandboxes: Sandboxes, captured: tuple[Sandbox, Path], monkeypatch: pytest.MonkeyPatch, deadline_s: float
) -> None:
    original, image = captured
    copy = sandboxes.describe(*original.args)
    with monkeypatch.context() as hurried:
        hurried.setattr(runc, "_MEMORY_S", deadline_s)
        error = failure(lambda: sandboxes.runtime.restore(copy, image))
    if error is None:  # it was quicker
        sandboxes.runtime.delete(copy.id)
    else:
        assert isinstance(error, DeadlineExceeded), repr(error)
    assert copy.id not in Path("/proc/self/mountinfo").read_text().replace(str(copy.netns), "")
    assert ReplicaCgroup(copy.id).remove()
    sandboxes.runtime.restore(copy, image)
    sandboxes.open_gateway(copy)
    assert eventually(lambda: ask(copy))


@pytest.mark.parametrize("deadline_s", [0.01, 0.05, 0.1])
def test_a_checkpoint_that_was_killed_is_no_image(
    sandboxes: Sandboxes, folder: Path, monkeypatch: pytest.MonkeyPatch, deadline_s: float
) -> None:
    original = sandboxes.run_counter()
    image = folder / "image"
    image.mkdir()
    with monkeypatch.context() as hurried:
        hurried.setattr(runc, "_MEMORY_S", deadline_s)
        error = failure(lambda: sandboxes.runtime.checkpoint(original.id, image))
    if error is None:  # it was quicker
        assert (image / DESCRIPTION).exists()
        return
    assert isinstance(error, DeadlineExceeded), repr(error)
    _assert_refused(failure(lambda: sandboxes.restore(original, image)), "no memory image of runc")


# -- pages that copies share ---------------------------------------------------------------------------------


def _may_merge(sandbox: Sandbox) -> set[str]:
    """What the kernel says of each process of it."""
    told = set()
    for pid in ReplicaCgroup(sandbox.id).pids():
        lines = Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()
        told |= {line for line in lines if line.startswith("ksm_merge_any")}
    return told


def test_only_copies_whose_pages_may_be_merged_are_open_to_the_kernels_scanner(
    sandboxes: Sandboxes, folder: Path
) -> None:
    if not page_merging.is_possible():
        pytest.skip("this kernel merges no pages")
    original = _hold(sandboxes, "engine_processes")
    assert _may_merge(original) == {"ksm_merge_any: no"}
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    merged = sandboxes.restore(original, folder / "image", merges_pages=True)
    plain = sandboxes.restore(original, folder / "image")
    assert eventually(lambda: ask(merged)) == eventually(lambda: ask(plain))
    assert _may_merge(merged) == {"ksm_merge_any: yes"}
    assert _may_merge(plain) == {"ksm_merge_any: no"}
