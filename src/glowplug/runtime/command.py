"""Running one command of a container runtime to its end, and finding those that a dead agent left running.

A runtime command must not outlive the deadline it was given, nor the agent that gave it: a `create` that is
still at work while the next agent cleans up would make a sandbox that nobody owns.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from glowplug.kernel.processes import is_at_work, process_tree
from glowplug.types.errors import DeadlineExceeded, ResourceExhausted, RuntimeFailed, SystemUnfit
from glowplug.types.paths import TOOLS_DIR

# A killed `checkpoint` ends when the disk has taken what it was just writing.
_DYING_DEADLINE_S = 30.0
_HELPLESS_S = 5.0
_HELP_LOOK_S = 1.0
_MAX_WORDS_BYTES = 1 << 20
_MAX_MESSAGE_CHARACTERS = 500
# ext4 and tmpfs refuse writes with a few blocks left over.
_FULL_BELOW_BYTES = 1 << 20
# What a shell answers when it cannot run the program it was told to become.
_NOT_RUNNABLE = (126, 127)


def run_to_end(
    argv: Sequence[str],
    *,
    what: str,
    subject: str,
    words: Path,
    output: int | None,
    timeout_s: float,
    helper: str | None = None,
    preload: Path | None = None,
) -> None:
    """Run ``argv``; its JSON log goes to the file ``words``, its output to the descriptor ``output``.

    ``helper`` is the name of a program without which it gets nowhere: once none of that name is at work below
    it for :data:`_HELPLESS_S`, the command has failed, though it may wait for ever.

    ``preload`` is a library that programs below it load.

    Raises RuntimeFailed with the last thing it said, DeadlineExceeded (nothing of it runs any more then), or
    SystemUnfit if there is no such program.
    """
    streams = subprocess.DEVNULL if output is None else output
    environment = None if preload is None else os.environ | {"LD_PRELOAD": str(preload)}
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=streams, stderr=streams, start_new_session=True, cwd="/",
            env=environment,
        )  # fmt: skip
    except OSError as error:
        raise _unfit(argv[0], str(error)) from error
    try:
        if helper is None:
            is_over = _ends_within(process.pid, timeout_s)
        else:
            is_over = _ends_with_help(process.pid, helper, what, subject, timeout_s)
        if not is_over:
            raise DeadlineExceeded(
                f"`{what}` did not finish within {timeout_s:g} s.",
                remedy="The machine may be overloaded or its disk may hang (`dmesg`).",
                sandbox=subject,
            )
        code = process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code in _NOT_RUNNABLE:
        raise _unfit(what, f"exit code {code}")
    if code != 0:
        said = last_words(words) or "it gave no reason; the replica's log may"
        raise RuntimeFailed(
            f"`{what}` failed (exit code {code}): {said}",
            remedy="`glowplug doctor` checks the runtime.",
            sandbox=subject,
            exit_code=code,
        )


def _ends_within(pid: int, timeout_s: float) -> bool:
    """Wait for a child to end, and notice it at once: ``Popen.wait`` with a deadline looks every 50 ms."""
    descriptor = os.pidfd_open(pid)
    try:
        return _is_over(descriptor, timeout_s)
    finally:
        os.close(descriptor)


def _ends_with_help(pid: int, helper: str, what: str, subject: str, timeout_s: float) -> bool:
    """Wait for a child that needs ``helper``. Raises RuntimeFailed once it has been without for too long."""
    now_s = time.monotonic()
    deadline_s, helped_s = now_s + timeout_s, now_s
    while not _ends_within(pid, min(_HELP_LOOK_S, deadline_s - now_s)):
        now_s = time.monotonic()
        if now_s >= deadline_s:
            return False
        if any(is_at_work(descendant, helper) for descendant in process_tree([pid])):
            helped_s = now_s
        elif now_s - helped_s >= _HELPLESS_S:
            raise RuntimeFailed(
                f"`{what}` waits for {helper}, which does not run any more.",
                remedy=f"Something killed {helper}: look for the out-of-memory killer in `dmesg`.",
                sandbox=subject,
            )
    return True


def _is_over(descriptor: int, timeout_s: float) -> bool:
    """Whether the process of this pidfd ends in time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


def last_words(log: Path) -> str:
    """The message of the last entry of a JSON log that is a warning or worse, cut to one line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_WORDS_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "warning"):
                message = entry.get("msg")
                if isinstance(message, str) and message.strip():
                    return message.strip().splitlines()[0][:_MAX_MESSAGE_CHARACTERS]
    return ""


def find_program(name: str, called: str, *, variable: str, remedy: str) -> Path:
    """What ``variable`` of the environment names, else ours in the tools folder, else that on PATH.

    Raises SystemUnfit, with ``remedy``, for what people know as ``called``.
    """
    named = os.environ.get(variable)
    candidates = [shutil.which(named)] if named else [str(TOOLS_DIR / name), shutil.which(name)]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise SystemUnfit(f"No usable {called} was found.", remedy=remedy, tried=candidates)


def check_room(image: Path, sandbox_id: str, error: RuntimeFailed) -> None:
    """Raise ResourceExhausted if a checkpoint to ``image`` failed with ``error`` because the disk is full."""
    free_bytes = shutil.disk_usage(image.parent).free
    # The runtime may have removed what it had written by now, and said so itself.
    if free_bytes < _FULL_BELOW_BYTES or os.strerror(errno.ENOSPC).lower() in error.message.lower():
        raise ResourceExhausted(
            f"The disk that holds {image.parent} is full: the memory of {sandbox_id} was not written.",
            remedy="Free some space (`glowplug snapshot rm ID`), or put GLOWPLUG_STATE on a larger disk.",
            sandbox=sandbox_id,
            free_bytes=free_bytes,
            said=error.message,
        ) from error


def kill_processes(is_wanted: Callable[[list[str]], bool]) -> int:
    """SIGKILL every process whose command line ``is_wanted``, wait until they are gone; how many there were.

    Raises DeadlineExceeded if one does not die.
    """
    dying = [descriptor for descriptor in map(_signal_if(is_wanted), _pids()) if descriptor is not None]
    deadline = time.monotonic() + _DYING_DEADLINE_S
    try:
        for descriptor in dying:
            if not _is_over(descriptor, deadline - time.monotonic()):
                raise DeadlineExceeded(
                    "A runtime command of an earlier agent does not die.",
                    remedy="Look for a disk that hangs (`dmesg`), or restart the machine.",
                )
    finally:
        for descriptor in dying:
            os.close(descriptor)
    return len(dying)


def _signal_if(is_wanted: Callable[[list[str]], bool]) -> Callable[[int], int | None]:
    def signal_one(pid: int) -> int | None:
        """A pidfd of the process, killed; None if it is not wanted. The pidfd is opened before looking."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            if is_wanted(_command_line(pid)):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                return descriptor
        except OSError:
            pass  # it ended by itself
        os.close(descriptor)
        return None

    return signal_one


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def _command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def _unfit(program: str, why: str) -> SystemUnfit:
    return SystemUnfit(
        f"`{program}` cannot be run: {why}", remedy="Run `glowplug doctor --fix` to install what is missing."
    )
