"""Which processes are a zone cache's nginx: told by their program and the folder they work in.

A pid file alone is not believed: its number may belong to somebody else by now, and a master that was killed
leaves workers behind that nobody noted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

PROGRAM = "nginx"


def of_folder(folder: Path) -> list[int]:
    """Pids of every nginx that was started in ``folder``, masters and workers."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            program = Path(entry.path, "exe").readlink().name.removesuffix(" (deleted)")
            if program == PROGRAM and Path(entry.path, "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def master_of(folder: Path) -> int | None:
    """The pid that nginx noted, if it is one of :func:`of_folder`."""
    try:
        pid = int((folder / "nginx.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if pid in of_folder(folder) else None


def end(pids: Iterable[int], number: signal.Signals, timeout_s: float, now: Callable[[], float]) -> bool:
    """Signal them all and wait for their ends; whether all have ended."""
    waiting = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            waiting.append(descriptor)
            signal.pidfd_send_signal(descriptor, number)
    deadline_s = now() + timeout_s
    try:
        return all(_has_ended(descriptor, deadline_s - now()) for descriptor in waiting)
    finally:
        for descriptor in waiting:
            os.close(descriptor)


def _has_ended(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))
