"""Run a program that takes minutes: its output line by line, and nothing of it left afterwards.

Promises: whatever ends the wait (the program, the deadline, a cancelled job, an exception from whoever
reads the lines, Ctrl-C, our own death by kill -9), no process that it started and no mount that it made is
left. For that it runs in process and mount namespaces of its own, which needs root. Output is hostile:
control characters are removed and lines are cut, so that it can be shown on a terminal.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from glowplug.image.job import Job
from glowplug.types.errors import SystemUnfit

LAST_LINES = 30
MAX_LINE_CHARACTERS = 2000
POLL_S = 0.2
TERMINATE_GRACE_S = 5.0
# setpriv: the kernel kills unshare should this process die without a word; --kill-child: and with it the
# first process of the namespace, and with that all others. That first process is a shell that only waits,
# because a first process does not notice SIGTERM, which builders need for a clean end.
_CONFINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
    *("sh", "-c", '"$@"; exit $?', "sh"),
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a program ended: exit code (128 + n: by signal n) and its last lines, oldest first."""

    exit_code: int
    last_lines: tuple[str, ...]


def stream(
    arguments: Sequence[str],
    job: Job,
    *,
    stage: str,
    environment: Mapping[str, str],
    on_line: Callable[[str], None] = lambda _line: None,
) -> Ended:
    """Run ``arguments`` (no shell, no standard input) to its end. Raises what ``job.check`` raises."""
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    command = [*_CONFINED, *arguments]
    try:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise SystemUnfit(
            "The program `setpriv` (package util-linux) is missing.",
            remedy="Run `glowplug doctor --fix`.",
        ) from missing
    with process:
        try:
            for line in _lines(process, job, stage):
                last_lines.append(line)
                on_line(line)
        finally:
            _end_group(process)
    return Ended(process.returncode, tuple(last_lines))


def clean(line: bytes) -> str:
    """One line of a program's output, safe to show."""
    return _CONTROL.sub("", line.decode(errors="replace").rstrip())[:MAX_LINE_CHARACTERS]


def _lines(process: subprocess.Popen[bytes], job: Job, stage: str) -> Iterator[str]:
    pipe: IO[bytes] | None = process.stdout
    if pipe is None:
        return
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            job.check(stage)
            if not selector.select(POLL_S):
                # What a step left running may hold the pipe open for ever: the program decides.
                if process.poll() is not None:
                    break
                continue
            data = os.read(pipe.fileno(), 1 << 16)
            if not data:
                break
            *whole, rest = (rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            yield from (clean(line) for line in whole if line.strip())
            rest = rest[-MAX_LINE_CHARACTERS * 4 :]
    if rest.strip():
        yield clean(rest)
    while process.poll() is None:
        job.check(stage)
        _wait(process, POLL_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of the group running; asks first, so that builders can release their mounts."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        _wait(process, TERMINATE_GRACE_S)
    _signal_group(process, signal.SIGKILL)
    process.wait(timeout=TERMINATE_GRACE_S)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return
