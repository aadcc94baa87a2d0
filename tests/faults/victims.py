"""Who can be killed: every kind of process that Glowplug runs on a state directory.

Found by what the kernel says of them, so that the same code serves tests, the soak and a runtime's stand-in,
which knows nothing of Glowplug. Standard library only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

_SANDBOX_PROGRAMS = ("runsc-sandbox", "runsc-gofer")


@dataclass(frozen=True)
class Process:
    """A living process: its command line, its parent, and the names of its cgroups."""

    pid: int
    parent: int
    argv: tuple[str, ...]
    cgroups: str


@dataclass(frozen=True)
class Machine:
    """All processes at one moment, and which of them belong to the state directory ``root``."""

    root: str
    processes: tuple[Process, ...]

    @classmethod
    def look(cls, root: Path) -> Machine:
        """What runs now."""
        numbers = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
        found = (_read(pid) for pid in numbers)
        return cls(str(root), tuple(process for process in found if process is not None))

    def _ours(self, *words: str) -> list[Process]:
        """Python processes of ours that were started with ``words``."""
        return [
            process
            for process in self.processes
            if process.argv[1 : 1 + len(words)] == words and self.root in process.argv
        ]

    def agent(self, _replicas: Collection[str]) -> list[Process]:
        """The node agent."""
        return self._ours("-m", "glowplug.node")

    def control(self, _replicas: Collection[str]) -> list[Process]:
        """The control plane."""
        return self._ours("-m", "glowplug.control")

    def worker(self, _replicas: Collection[str]) -> list[Process]:
        """The blob daemon's worker, which answers reads."""
        return self._ours("-P", "-m", "glowplug.image.lazy.worker")

    def holder(self, _replicas: Collection[str]) -> list[Process]:
        """The blob daemon's holder, which keeps the filesystem mounted."""
        lazy = f"{self.root}/run/lazy"
        return [
            process
            for process in self.processes
            if process.argv[1:3] == ("-I", "-S") and lazy in process.argv
        ]

    def daemon(self, replicas: Collection[str]) -> list[Process]:
        """Both at once: the filesystem is gone."""
        return self.holder(replicas) + self.worker(replicas)

    def sandbox(self, replicas: Collection[str]) -> list[Process]:
        """Everything that runs inside of ``replicas``, gVisor's own processes included."""
        names = [f"/glowplug/{replica}" for replica in replicas]
        return [
            process
            for process in self.processes
            if any(
                line.endswith(name) or f"{name}/" in line
                for line in process.cgroups.split()
                for name in names
            )
        ]

    def command(self, _replicas: Collection[str]) -> list[Process]:
        """The runtime's commands under way: ``runsc restore``, ``runc checkpoint`` .."""
        roots = {f"--root={self.root}/run/runsc", f"--root={self.root}/run/runc/state"}
        return [
            process
            for process in self.processes
            if roots & set(process.argv) and process.argv[0] not in _SANDBOX_PROGRAMS
        ]

    def criu(self, replicas: Collection[str]) -> list[Process]:
        """CRIU, at work for a command."""
        commands = {process.pid for process in self.command(replicas)}
        return [
            process for process in self.processes if process.parent in commands and "swrk" in process.argv
        ]


KINDS: dict[str, Callable[[Machine, Collection[str]], list[Process]]] = {
    "agent": Machine.agent,
    "control": Machine.control,
    "worker": Machine.worker,
    "holder": Machine.holder,
    "daemon": Machine.daemon,
    "sandbox": Machine.sandbox,
    "command": Machine.command,
    "criu": Machine.criu,
}


def kill(kind: str, root: Path, replicas: Collection[str]) -> list[int]:
    """SIGKILL everything of that kind now, but ourselves; the pids of what was there."""
    killed = []
    for process in KINDS[kind](Machine.look(root), replicas):
        if process.pid == os.getpid():
            continue
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed.append(process.pid)
    return killed


def _read(pid: int) -> Process | None:
    """None if it has ended, or is a thread of the kernel."""
    folder = Path(f"/proc/{pid}")
    try:
        argv = (folder / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        cgroups = (folder / "cgroup").read_text()
    except (OSError, ValueError, IndexError):
        return None
    return Process(pid, parent, tuple(argv), cgroups) if argv != [""] else None
