"""What CRIU's log says is what happened: pure."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.sandboxes import failure

from glowplug.runtime.criu import (
    COMMON_OPTIONS,
    OutsideFile,
    check_log,
    dump_options,
    find_criu,
    restore_options,
)
from glowplug.types.errors import RuntimeFailed, SystemUnfit

SUCCESS = "Dumping finished successfully"
GOOD = f"(00.1) Writing image inventory\n(00.135622) {SUCCESS}\n"


def _check(folder: Path, text: str, cause: RuntimeFailed | None = None) -> None:
    (folder / "dump.log").write_text(text)
    check_log("runc checkpoint", folder / "dump.log", "r-1", success=SUCCESS, cause=cause)


def test_a_log_that_ends_in_success_is_good(tmp_path: Path) -> None:
    _check(tmp_path, GOOD)


def test_a_limit_that_criu_may_not_raise_is_no_failure(tmp_path: Path) -> None:
    _check(
        tmp_path, "(00.04) Error (criu/util.c:15): rlimit: Can't setup RLIMIT_NOFILE for self: EPERM\n" + GOOD
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(00.1) all is well\n",
        "(00.1) Error (criu/mem.c:7): Can't dump page\n" + GOOD,
        GOOD + "(00.2)      7: Error (criu/files.c:1): Can't open\n",
    ],
    ids=["empty", "cut off", "an error before", "an error of a child after"],
)
def test_exit_code_zero_is_not_believed_when_the_log_says_otherwise(tmp_path: Path, text: str) -> None:
    with pytest.raises(RuntimeFailed):
        _check(tmp_path, text)


def test_success_in_the_log_does_not_excuse_a_command_that_failed(tmp_path: Path) -> None:
    cause = RuntimeFailed("runc was killed")
    assert failure(lambda: _check(tmp_path, GOOD, cause)) is cause


def test_a_log_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="does not say"):
        check_log("runc restore", tmp_path / "absent", "r-1", success=SUCCESS, cause=None)


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("Can't fork for 17: File exists", "pid namespace"),
        ("File data/log has bad size 17 (expect 9)", "has changed"),
        ("Can't open file dev/shm/link_remap.3 on restore: No such file or directory", "in /tmp"),
        ("Can't dump file 5 of that type [100600] (unknown anon_inode:[io_uring])", "runtime="),
        ("Can't retrieve FDs from socket", "io_uring"),
        ("vdso: Unexpected rt vDSO area bounds", "too old"),
        ("Can't write img: No space left on device", "Free some space"),
        ("Something new", "doctor"),
    ],
)
def test_the_first_complaint_is_the_message_and_has_a_remedy(
    tmp_path: Path, complaint: str, remedy: str
) -> None:
    text = (
        f"(00.1) Warn  (criu/x.c:1): perhaps\n(00.2)     17: Error (criu/x.c:2): {complaint}\n"
        "(00.3) Error (criu/y.c:3): Dump files (pid: 17) failed with -1\n"
        "(00.4) Error (criu/z.c:4): Dumping FAILED.\n"
    )
    error = failure(lambda: _check(tmp_path, text, RuntimeFailed("criu failed: type NOTIFY errno 0")))
    assert isinstance(error, RuntimeFailed)
    assert error.message == f"`runc checkpoint` failed: {complaint}"
    assert remedy in error.remedy
    assert error.details["said"][-1] == "Dumping FAILED."
    assert error.details["sandbox"] == "r-1"


@given(st.binary(max_size=2000))
def test_whatever_a_log_holds_it_is_an_error_of_one_short_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    log = tmp_path_factory.getbasetemp() / "hostile.log"
    log.write_bytes(content)
    error = failure(lambda: check_log("runc restore", log, "r-1", success=SUCCESS, cause=None))
    assert isinstance(error, RuntimeFailed)
    assert len(error.message.splitlines()) == 1
    assert len(error.message) < 600


def test_a_file_of_the_host_has_one_name_for_dump_and_restore() -> None:
    file = OutsideFile(mount_id=27, inode=0xBEEF)
    assert "external file[1b:beef]\n" in dump_options([file])
    assert "inherit-fd fd[1]:file[1b:beef]\n" in restore_options([file], 1)
    for option in COMMON_OPTIONS:
        assert f"{option}\n" in dump_options([])


def test_the_named_program_is_taken_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("GLOWPLUG_CRIU", str(program))
    assert isinstance(failure(find_criu), SystemUnfit)
    program.chmod(0o755)
    assert find_criu() == program
