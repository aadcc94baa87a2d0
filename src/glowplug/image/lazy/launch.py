"""Having a blob daemon: start it where there is none, and stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from glowplug.image.lazy import holder
from glowplug.image.lazy.client import DaemonClient
from glowplug.image.lazy.daemon_state import DaemonPaths, lock_owner
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.syscalls import detach
from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable
from glowplug.types.paths import StateDir

TIMEOUT_S = 20.0
_PAUSE_S = 0.02
_NEXT_START_S = 1.0  # a holder that was started needs this long at most to take its lock
_PING_TIMEOUT_S = 2.0
_MAX_LOG_BYTES = 8 << 20
_LAST_WORDS_BYTES = 1000


def ensure_daemon(
    state: StateDir, timeout_s: float = TIMEOUT_S, *, worker: Sequence[str] | None = None
) -> DaemonClient:
    """A client of the daemon of this state directory, which is started if nobody minds it.

    It outlives its starter. A worker whose holder died is minded again and goes on; what both left behind
    when they died is taken away. Raises Unavailable, with the log's last words, if none answers in time.
    """
    paths = DaemonPaths(state)
    client = DaemonClient(paths.socket)
    deadline_s = time.monotonic() + timeout_s
    next_start_s = 0.0
    while (now_s := time.monotonic()) < deadline_s:
        if lock_owner(paths.holder_lock) is None:
            if now_s >= next_start_s:
                _start_holder(paths, worker or worker_command(state))
                next_start_s = now_s + _NEXT_START_S
        elif lock_owner(paths.minding_lock) and _answers(client, min(_PING_TIMEOUT_S, deadline_s - now_s)):
            _check_mount(paths)
            return client
        time.sleep(_PAUSE_S)
    raise Unavailable(
        f"The blob daemon does not start: {last_words(paths) or 'it says nothing'}",
        remedy=f"`glowplug doctor` checks what it needs; its log is {paths.log}.",
    )


def stop_daemon(state: StateDir, timeout_s: float = TIMEOUT_S) -> bool:
    """Stop it and unmount its filesystem; False if none ran. What still reads from it gets EIO.

    Raises DeadlineExceeded.
    """
    paths = DaemonPaths(state)
    was_running = False
    deadline_s = time.monotonic() + timeout_s
    while (pid := lock_owner(paths.holder_lock) or lock_owner(paths.worker_lock)) is not None:
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(
                f"The blob daemon (process {pid}) does not stop.", remedy="Kill it.", stage="blob daemon"
            )
        if not was_running:
            os.kill(pid, signal.SIGTERM)
        was_running = True
        time.sleep(_PAUSE_S)
    if mounted_at(paths.blobs.resolve()) is not None:
        detach(paths.blobs)
    return was_running


def holder_command(state: StateDir, worker: Sequence[str]) -> list[str]:
    """What runs a holder: its file, in an interpreter without our packages."""
    return [sys.executable, "-I", "-S", str(Path(holder.__file__)), str(state.lazy), *worker]


def worker_command(state: StateDir) -> list[str]:
    """What a holder runs."""
    return [sys.executable, "-P", "-m", "glowplug.image.lazy.worker", "--state", str(state.root)]


def last_words(paths: DaemonPaths) -> str:
    """The end of the log, on one line."""
    try:
        with paths.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
            return " / ".join(file.read().decode(errors="replace").splitlines()[-3:])
    except FileNotFoundError:
        return ""


def _start_holder(paths: DaemonPaths, worker: Sequence[str]) -> None:
    paths.log.parent.mkdir(parents=True, exist_ok=True)
    if paths.log.exists() and paths.log.stat().st_size > _MAX_LOG_BYTES:
        paths.log.replace(paths.log.with_suffix(".log.1"))
    command = holder_command(paths.state, worker)
    command.insert(command.index(str(paths.state.lazy)), "--detach")
    with paths.log.open("ab") as log:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", check=False, timeout=TIMEOUT_S
        )


def _answers(client: DaemonClient, timeout_s: float) -> bool:
    try:
        client.ping(timeout_s)
    except GlowplugError:
        return False
    return True


def _check_mount(paths: DaemonPaths) -> None:
    if mounted_at(paths.blobs.resolve()) is None:
        raise Unavailable(
            f"The blob daemon runs, but somebody unmounted its filesystem from {paths.blobs}.",
            remedy="Stop the replicas that use it, then restart the daemon.",
        )
