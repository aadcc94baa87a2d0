"""One very process, told from a later one with the same pid: asked whether it lives, or ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


def pid_start_ticks(pid: int) -> int | None:
    """When ``pid`` started (clock ticks since boot, proc(5) field 22): tells it from a later namesake."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(pid: int | None, started_ticks: int | None) -> bool:
    """Whether that very process is alive."""
    return pid is not None and started_ticks is not None and pid_start_ticks(pid) == started_ticks


def is_at_work(pid: int, name: str) -> bool:
    """Whether ``pid`` is alive, not stopped, and called ``name`` (its comm, proc(5): 15 bytes at most)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    head, _, tail = stat.rpartition(")")
    return head.partition("(")[2] == name and tail.split()[0] not in ("Z", "X", "T")


def kill_process(pid: int, started_ticks: int, timeout_s: float) -> bool:
    """SIGKILL that very process and wait; whether it is gone. A namesake is never touched."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not is_running(pid, started_ticks):  # asked after the pidfd was opened: no namesake slips in
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return bool(ended.poll(max(0.0, timeout_s) * 1000))
    finally:
        os.close(descriptor)


def process_tree(roots: list[int]) -> list[int]:
    """The processes of ``roots`` that live, and all that descend from them, parents first."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended
                stat = Path(f"/proc/{entry.name}/stat").read_text()
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid for pid in roots if pid_start_ticks(pid) is not None]
    while waiting:
        pid = waiting.pop(0)
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found
