"""The runsc adapter against the real program: the contract, and what is peculiar to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.contract import RuntimeContract
from tests.runtime.sandboxes import Sandboxes, ask, eventually, failure, is_alive, running

from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.runtime.runsc import Runsc, find_runsc
from glowplug.types.errors import ResourceExhausted, RuntimeFailed, SystemUnfit

pytestmark = pytest.mark.sandbox


class TestRunscKeepsTheContract(RuntimeContract):
    """All of it."""


@pytest.fixture
def captured(sandboxes: Sandboxes, folder: Path) -> Path:
    """The image of a counter."""
    image = folder / "image"
    image.mkdir()
    sandboxes.runtime.checkpoint(sandboxes.run_counter().id, image)
    return image


def _restore(sandboxes: Sandboxes, image: Path) -> Callable[[], None]:
    original = sandboxes._made[0]

    def restore() -> None:
        copy = sandboxes.describe(*original.args)
        sandboxes.runtime.restore(copy, image)

    return restore


@pytest.mark.parametrize("file", ["checkpoint.img", "pages_meta.img", "pages.img"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_image_is_refused_in_one_readable_line(
    sandboxes: Sandboxes, captured: Path, file: str, damage: str
) -> None:
    path = captured / file
    if damage == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    _assert_refused(failure(_restore(sandboxes, captured)))


@pytest.mark.parametrize("file", ["checkpoint.img", "pages_meta.img"])
def test_flipped_bits_in_the_state_are_refused_in_one_readable_line(
    sandboxes: Sandboxes, captured: Path, file: str
) -> None:
    path = captured / file
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 4, len(content) // 4 + 64):
        content[position] ^= 0xFF
    path.write_bytes(content)
    _assert_refused(failure(_restore(sandboxes, captured)))


def test_an_empty_image_folder_is_refused(sandboxes: Sandboxes, captured: Path, folder: Path) -> None:
    (folder / "empty").mkdir()
    _assert_refused(failure(_restore(sandboxes, folder / "empty")))


def _assert_refused(error: BaseException | None) -> None:
    assert isinstance(error, RuntimeFailed)
    assert error.message.startswith("`runsc restore` failed (exit code ")
    assert "\n" not in error.message
    assert len(error.message) < 700
    assert not error.message.endswith(": "), "it says why"
    assert error.details["sandbox"]


def test_an_image_folder_that_was_used_is_refused_and_the_application_lives_on(
    sandboxes: Sandboxes, captured: Path
) -> None:
    another = sandboxes.run_counter()
    with pytest.raises(RuntimeFailed, match="exists"):
        sandboxes.runtime.checkpoint(another.id, captured)
    assert ask(another)


def test_a_full_disk_at_checkpoint_is_named_as_such(sandboxes: Sandboxes, folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=True)
    try:
        (small / "image").mkdir()
        sandbox = sandboxes.run_counter()
        with pytest.raises(ResourceExhausted, match="full") as caught:
            sandboxes.runtime.checkpoint(sandbox.id, small / "image")
    finally:  # the sandbox lets go of its half image a moment after the command has failed
        eventually(lambda: subprocess.run(["umount", str(small)], check=False).returncode == 0, "unmounted")
    assert caught.value.remedy


@pytest.mark.usefixtures("no_swap")
def test_a_restore_into_too_little_memory_is_an_error(sandboxes: Sandboxes, folder: Path) -> None:
    hog = "import time; block = bytearray(b'x') * (300 << 20); print('full', flush=True); time.sleep(1000)"
    original, _ = sandboxes.run("python3", "-c", hog, memory_bytes=400 << 20)
    eventually(lambda: "full" in original.log.read_text())
    (folder / "image").mkdir()
    sandboxes.runtime.checkpoint(original.id, folder / "image")
    copy = replace(sandboxes.describe(*original.args), memory_bytes=32 << 20)
    error = failure(lambda: sandboxes.runtime.restore(copy, folder / "image"))
    assert isinstance(error, RuntimeFailed)
    assert "\n" not in error.message


def test_an_image_made_while_exec_ran_cannot_be_restored_though_its_checkpoint_succeeded(
    sandboxes: Sandboxes, folder: Path
) -> None:
    """Why no snapshot is good before a trial restore, and why a capture leaves no `exec` running."""
    original = sandboxes.run_counter()
    (folder / "image").mkdir()
    pid_file = folder / "pid"
    argv = sandboxes.runtime.exec_argv(original.id, ["sleep", "1000"], tty=False, pid_file=pid_file)
    with running(argv):
        eventually(lambda: pid_file.exists() and pid_file.read_text(), "it runs inside")
        sandboxes.runtime.checkpoint(original.id, folder / "image")
    error = failure(lambda: sandboxes.restore(original, folder / "image"))
    assert isinstance(error, RuntimeFailed)


def test_flags_that_change_what_is_in_an_image_are_another_identity(
    sandboxes: Sandboxes,
) -> None:
    """As systrap and ptrace, whose images kill each other's copies: the key of a snapshot holds the flags."""
    usual = sandboxes.runtime.identity()
    assert "--platform=systrap" in usual.flags
    assert any(flag.startswith("--overlay2") for flag in usual.flags)


def test_commands_that_a_dead_agent_left_running_are_ended_and_sandboxes_are_not(
    sandboxes: Sandboxes, folder: Path, runsc_binary: Path
) -> None:
    sandbox, pid = sandboxes.run("sleep", "1000")
    argv = sandboxes.runtime.exec_argv(sandbox.id, ["sleep", "1000"], tty=False)
    with running(argv) as left_running:
        another = Runsc(folder / "another", runsc_binary)
        another.end_commands()
        assert left_running.poll() is None, "commands on another state folder are not ours"
        sandboxes.runtime.end_commands()
        assert left_running.wait(60) == -9
    assert is_alive(pid)


# -- without a sandbox ---------------------------------------------------------------------------------------


def _fake_runsc(
    folder: Path, flags: str = "", checkpoint: str = "", version: str = "runsc version x"
) -> Path:
    """A shell script that answers what Runsc asks, and otherwise prints its arguments to a file."""
    program = folder / "fake-runsc"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
  --version) printf '%s\\n' "{version}" ;;
  flags) printf '%s\\n' "{flags}" ;;
  help) printf '%s\\n' "{checkpoint}" >&2 ;;
  *) printf '%s\\n' "$*" >> {folder}/called ;;
esac
"""
    )
    program.chmod(0o755)
    return program


def test_only_flags_that_the_installed_program_knows_are_given(folder: Path) -> None:
    program = _fake_runsc(folder, flags="  -platform string\n  -overlay2 value\n  -something int")
    runtime = Runsc(folder / "state", program)
    assert runtime.identity().flags == ("--platform=systrap", "--overlay2=root:memory")


def test_a_program_with_other_flags_is_another_identity(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    older = Runsc(folder, _fake_runsc(folder / "a", flags="  -platform string"))
    newer = Runsc(folder, _fake_runsc(folder / "b", flags="  -platform string\n  -dcache int"))
    assert older.identity() != newer.identity()


@pytest.mark.parametrize(
    ("known", "given"),
    [
        ("  -compression value\n  -exclude-committed-zero-pages", True),
        ("  -image-path string", False),
    ],
)
def test_checkpoints_are_uncompressed_where_the_program_can(folder: Path, known: str, given: bool) -> None:
    runtime = Runsc(folder / "state", _fake_runsc(folder, checkpoint=known))
    runtime.checkpoint("some-id", folder / "image")
    called = (folder / "called").read_text()
    assert ("--compression=none" in called) is given
    assert ("--exclude-committed-zero-pages=true" in called) is given


@pytest.mark.parametrize(("folder_of_image", "given"), [("/var/tmp", True), ("/proc", False)])
def test_checkpoints_go_past_the_page_cache_where_the_disk_can(
    folder: Path, folder_of_image: str, given: bool
) -> None:
    runtime = Runsc(folder / "state", _fake_runsc(folder, checkpoint="  -direct"))
    runtime.checkpoint("some-id", Path(folder_of_image) / "image")
    assert ("--direct=true" in (folder / "called").read_text()) is given


@pytest.mark.parametrize("kept", ["", '{"id": "'])
def test_what_was_killed_while_it_wrote_its_state_is_removed(
    sandboxes: Sandboxes, folder: Path, kept: str
) -> None:
    sandbox, pid = sandboxes.run("sleep", "1000")
    ReplicaCgroup(sandbox.id).kill_all()
    eventually(lambda: not is_alive(pid), "it has ended")
    (state,) = (folder / "runsc").glob(f"{sandbox.id}_sandbox:*.state")
    state.write_text(kept)
    sandboxes.runtime.delete(sandbox.id)
    assert not list((folder / "runsc").glob("*"))


def test_a_program_that_is_not_there_is_an_unfit_system(folder: Path) -> None:
    error = failure(lambda: Runsc(folder, folder / "absent").identity())
    assert isinstance(error, SystemUnfit)
    assert "doctor" in error.remedy


def test_a_program_that_is_not_runsc_is_an_unfit_system(folder: Path) -> None:
    error = failure(lambda: Runsc(folder, Path("/bin/true")).identity())
    assert isinstance(error, SystemUnfit)
    assert "/bin/true" in error.message


def test_a_program_for_another_processor_is_an_unfit_system(folder: Path) -> None:
    broken = folder / "broken"
    broken.write_bytes(b"\x7fELF" + b"\0" * 60)
    broken.chmod(0o755)
    assert isinstance(failure(lambda: Runsc(folder, broken).identity()), SystemUnfit)


def test_a_program_that_went_away_is_an_unfit_system(sandboxes: Sandboxes, folder: Path) -> None:
    gone = Runsc(folder / "gone", folder / "absent")
    assert isinstance(failure(lambda: gone.delete("x")), SystemUnfit)


def test_the_named_program_is_taken_and_nothing_else(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    program = _fake_runsc(folder)
    monkeypatch.setenv("GLOWPLUG_RUNSC", str(program))
    assert find_runsc() == program
    monkeypatch.setenv("GLOWPLUG_RUNSC", str(folder / "absent"))
    assert isinstance(failure(find_runsc), SystemUnfit)


def test_end_commands_on_a_fresh_machine_does_nothing(folder: Path) -> None:
    Runsc(folder / "state", Path(sys.executable)).end_commands()
