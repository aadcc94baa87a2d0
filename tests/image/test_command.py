from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from glowplug.image.command import LAST_LINES, MAX_LINE_CHARACTERS, Ended, stream
from glowplug.image.job import Job
from glowplug.types.clock import SystemClock
from glowplug.types.errors import DeadlineExceeded, Unavailable

from .conftest import some_seconds, wait_until_no_process_has

pytestmark = pytest.mark.sandbox

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def job(seconds: float = 60.0, cancelled: threading.Event | None = None) -> Job:
    clock = SystemClock()
    return Job(
        lambda _text, _fraction: None, clock, clock.monotonic() + seconds, cancelled or threading.Event()
    )


def shell(script: str, of: Job, lines: list[str] | None = None) -> Ended:
    sink = [] if lines is None else lines
    return stream(["sh", "-c", script], of, stage="testing", environment=ENVIRONMENT, on_line=sink.append)


def test_lines_arrive_in_order_and_the_last_ones_are_kept() -> None:
    lines: list[str] = []
    ended = shell("for i in $(seq 100); do echo line $i; done; exit 3", job(), lines)
    assert lines == [f"line {number}" for number in range(1, 101)]
    assert ended == Ended(3, tuple(lines[-LAST_LINES:]))


def test_what_could_play_tricks_on_a_terminal_is_removed() -> None:
    lines: list[str] = []
    shell(
        r"printf '\033[31mred\033[0m\007 \302\233x\n10%%\r20%%\n\377\n'; head -c 9000 /dev/zero | tr '\0' a",
        job(),
        lines,
    )
    assert lines[:4] == ["red x", "10%", "20%", "�"]
    assert len(lines[4]) == MAX_LINE_CHARACTERS


def test_a_program_that_takes_too_long_is_ended_with_all_its_children() -> None:
    seconds = some_seconds()
    with pytest.raises(DeadlineExceeded) as caught:
        shell(f"trap '' TERM; setsid sleep {seconds} & wait; wait; sleep {seconds}", job(seconds=0.5))
    assert caught.value.details["stage"] == "testing"
    wait_until_no_process_has(f"sleep {seconds}")


def test_a_program_may_end_in_its_own_way_when_told_to(tmp_path: Path) -> None:
    said, cancelled = tmp_path / "said", threading.Event()
    script = f"trap 'echo bye > {said}; exit' TERM; echo ready; while true; do sleep 0.05; done"
    with pytest.raises(Unavailable):
        stream(
            ["sh", "-c", script],
            job(cancelled=cancelled),
            stage="testing",
            environment=ENVIRONMENT,
            on_line=lambda _line: cancelled.set(),
        )
    assert said.read_text() == "bye\n"


def test_a_cancelled_job_ends_its_program() -> None:
    cancelled, seconds = threading.Event(), some_seconds()
    with pytest.raises(Unavailable, match="cancelled"):
        stream(
            ["sh", "-c", f"echo ready; exec sleep {seconds}"],
            job(cancelled=cancelled),
            stage="testing",
            environment=ENVIRONMENT,
            on_line=lambda _line: cancelled.set(),
        )
    wait_until_no_process_has(f"sleep {seconds}")


def test_an_exception_of_the_reader_ends_the_program() -> None:
    seconds = some_seconds()

    def on_line(_line: str) -> None:
        raise KeyboardInterrupt

    command = ["sh", "-c", f"echo ready; exec sleep {seconds}"]
    with pytest.raises(KeyboardInterrupt):
        stream(command, job(), stage="testing", environment=ENVIRONMENT, on_line=on_line)
    wait_until_no_process_has(f"sleep {seconds}")


def test_what_a_program_leaves_running_does_not_hold_us_up_and_is_ended() -> None:
    seconds = some_seconds()
    assert shell(f"setsid sleep {seconds} &", job()).exit_code == 0
    wait_until_no_process_has(f"sleep {seconds}")


def test_a_mount_of_the_program_is_gone_with_it(tmp_path: Path) -> None:
    assert shell(f"mount -t tmpfs tmpfs {tmp_path} && touch {tmp_path}/x", job()).exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_our_own_death_ends_the_program() -> None:
    seconds = some_seconds()
    script = (
        "import os, signal, sys\n"
        "from glowplug.image.command import stream\n"
        "from glowplug.image.job import Job\n"
        "from glowplug.types.clock import SystemClock\n"
        "clock = SystemClock()\n"
        "job = Job(lambda *_: None, clock, clock.monotonic() + 60)\n"
        "command = ['sh', '-c', 'setsid sleep ' + sys.argv[1] + ' & echo ready; wait']\n"
        "def die(line):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "stream(command, job, stage='t', environment=dict(os.environ), on_line=die)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, seconds], timeout=60, check=False)
    assert died.returncode == -9
    wait_until_no_process_has(f"sleep {seconds}")
