"""Start the process that serves one image through FUSE alone, and wait until its mount is there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from glowplug.image.lazy.syscalls import MountRefused
from glowplug.types.paths import StateDir

READY = b"mounted\n"
_START_TIMEOUT_S = 30.0  # an index of 60,000 files is read in one second
_LOG_TAIL_BYTES = 2000


def mount_plain(state: StateDir, digest: str, index: Path, target: Path) -> None:
    """Mount at ``target``. The process outlives us, and ends when it is unmounted. Raises MountRefused."""
    state.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = state.logs / f"plain-{digest[:16]}.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "glowplug.image.lazy.plain_main", state.root, digest, index, target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            cwd="/",
        )
    with process:  # it forks, so that its end is for nobody to wait for
        answer = _first_line(process)
    if answer != READY:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise MountRefused(
            f"The process that was to serve image {digest[:16]} did not: {_last_words(log)}",
            remedy=f"See {log}.",
            errno=None,
            digest=digest,
        )


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """What it says within the timeout; nothing if it ended, or says nothing."""
    if process.stdout is None:
        return b""
    descriptor = process.stdout.fileno()
    ready, _, _ = select.select([descriptor], [], [], _START_TIMEOUT_S)
    return os.read(descriptor, len(READY)) if ready else b""


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing."
