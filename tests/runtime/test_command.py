"""Running one runtime command: deadlines, last words, and strays."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.sandboxes import eventually, running

from glowplug.runtime.command import kill_processes, last_words, run_to_end
from glowplug.types.errors import DeadlineExceeded, RuntimeFailed, SystemUnfit


def _run(tmp_path: Path, script: str, timeout_s: float = 10.0) -> None:
    run_to_end(
        ["sh", "-c", script],
        what="runsc test",
        subject="r-1",
        words=tmp_path / "words",
        output=None,
        timeout_s=timeout_s,
    )


def test_a_failure_carries_the_last_serious_thing_that_was_said(tmp_path: Path) -> None:
    entries = [
        {"level": "info", "msg": "starting"},
        {"level": "error", "msg": "the first line\nthen pages of panic"},
        {"level": "info", "msg": "bye"},
    ]
    (tmp_path / "words").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(RuntimeFailed) as caught:
        _run(tmp_path, "exit 3")
    assert caught.value.message == "`runsc test` failed (exit code 3): the first line"
    assert caught.value.details == {"sandbox": "r-1", "exit_code": 3}


def test_a_failure_without_words_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="gave no reason"):
        _run(tmp_path, "exit 1")


def test_a_command_that_hangs_is_killed_with_its_children_at_the_deadline(tmp_path: Path) -> None:
    mark = f"37{time.monotonic_ns() % 10**9}"
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        _run(tmp_path, f"sleep {mark} & sleep {mark}", timeout_s=0.2)
    eventually(lambda: kill_processes(lambda argv: mark in argv) == 0, "its children are gone")


def test_a_command_that_waits_for_a_helper_that_was_killed_has_failed(tmp_path: Path) -> None:
    """CRIU that is killed may leave a stopped child with the socket that runc reads."""
    helper = tmp_path / "gp-helper"
    shutil.copy("/bin/sh", helper)
    script = f"{helper} -c 'sleep 3.5; kill -STOP $$; true' & sleep 3600"
    began = time.monotonic()
    with pytest.raises(RuntimeFailed, match="waits for gp-helper, which does not run any more"):
        run_to_end(
            ["sh", "-c", script],
            what="runc checkpoint",
            subject="r-1",
            words=tmp_path / "words",
            output=None,
            timeout_s=120,
            helper="gp-helper",
        )
    assert time.monotonic() - began > 6.0, "as long as it worked it was waited for"
    eventually(lambda: kill_processes(lambda argv: str(helper) in argv) == 0, "the stopped one is gone")


def test_a_program_that_does_not_exist_is_an_unfit_system(tmp_path: Path) -> None:
    with pytest.raises(SystemUnfit):
        run_to_end(
            ["/no/such/program"], what="x", subject="r", words=tmp_path / "w", output=None, timeout_s=1
        )
    with pytest.raises(SystemUnfit):
        _run(tmp_path, "exec /no/such/program")


def test_strays_are_found_by_their_command_line_and_gone_afterwards() -> None:
    mark = f"mark-{time.monotonic_ns()}"
    with running([sys.executable, "-c", "import time; time.sleep(1000)", mark]) as stray:
        assert kill_processes(lambda argv: mark in argv) == 1
        assert stray.wait(60) == -9


@given(st.binary(max_size=2000))
def test_whatever_a_log_holds_its_last_words_are_one_short_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    log = tmp_path_factory.getbasetemp() / "hostile-words"
    log.write_bytes(content)
    words = last_words(log)
    assert len(words.splitlines()) <= 1
    assert len(words) <= 500


@pytest.mark.parametrize("message", ["", "   ", None, 5, ["a"]])
def test_an_empty_last_word_does_not_hide_the_one_before(tmp_path: Path, message: object) -> None:
    log = tmp_path / "log"
    lines = [{"level": "error", "msg": "why"}, {"level": "error", "msg": message}]
    log.write_text("\n".join(json.dumps(line) for line in lines))
    assert last_words(log) == "why"


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert last_words(tmp_path / "absent") == ""
