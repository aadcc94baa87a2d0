"""What the kernel says about processes: which ones belong to a state directory, and who holds a port.

Read straight from ``/proc``, because the question is what is *really* there after something went wrong, not
what our own records claim.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.types.paths import StateDir

_OUR_MODULES = (
    "glowplug.node",
    "glowplug.node.gateway",
    "glowplug.control",
    "glowplug.control.edge",
    "glowplug.engine.supervisor",
    "glowplug.engine.ray",
    "glowplug.engine.ray.starter",
    "glowplug.image.lazy.worker",  # the blob daemon; its holder's command line ends with the worker's
)
_TCP_LISTEN = "0A"


@dataclass(frozen=True)
class Process:
    """One living process: its pid and its command line."""

    pid: int
    argv: tuple[str, ...]

    @property
    def is_runtime(self) -> bool:
        """Whether it is a container runtime, or gVisor's sandbox."""
        return Path(self.argv[0]).name.startswith(("runsc", "runc"))

    def describe(self) -> str:
        """A short text for people: ``1234 (python -m glowplug.node)``."""
        text = " ".join(self.argv)
        return f"{self.pid} ({text[:80]}{'...' if len(text) > 80 else ''})"


def running_processes() -> list[Process]:
    """Every process that has a command line: kernel threads and zombies have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            raw = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if raw:
            argv = tuple(part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0"))
            found.append(Process(int(entry.name), argv))
    return found


def processes_of(state: StateDir) -> list[Process]:
    """Our own processes and sandboxes that work in ``state``; not an editor or ``tail`` that looks at it."""
    mentions = re.compile(rf"(^|[=:]){re.escape(str(state.root))}($|/)")
    contained = contained_pids(state)
    return [
        process
        for process in running_processes()
        if process.pid in contained
        or (process.pid != os.getpid() and _is_ours(process) and any(map(mentions.search, process.argv)))
    ]


def contained_pids(state: StateDir) -> set[int]:
    """Processes in the containers of ``state``'s replicas; without gVisor they are the application's own."""
    folders = state.replicas.iterdir() if state.replicas.is_dir() else ()
    return {pid for folder in folders for pid in ReplicaCgroup(folder.name).pids()}


def _is_ours(process: Process) -> bool:
    return process.is_runtime or any(
        flag == "-m" and module in _OUR_MODULES for flag, module in pairwise(process.argv)
    )


def is_supervisor(pid: int, state: StateDir) -> bool:
    """Whether ``pid`` is, right now, a supervisor of ``state``: asked before a signal is sent."""
    return any(
        process.pid == pid and "glowplug.engine.supervisor" in process.argv for process in processes_of(state)
    )


def wait_for_exit(pid: int, timeout_s: float) -> bool:
    """Wait until ``pid`` has ended (a zombie has); False when it still lives after ``timeout_s``."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))
    finally:
        os.close(descriptor)


def end_processes(processes: list[Process], signal_number: int, timeout_s: float) -> None:
    """Signal each process and wait, ``timeout_s`` in all, for their ends."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal_number)
    deadline = time.monotonic() + timeout_s
    for process in processes:
        wait_for_exit(process.pid, deadline - time.monotonic())


def listener_of(port: int) -> Process | None:
    """The process that listens on TCP ``port``, when we may look."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in running_processes():
        try:
            for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if str(descriptor.readlink()) in inodes:
                        return process
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _TCP_LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
