"""What the kernel accounts for a replica: memory in use, out-of-memory kills, processes. v1 and v2.

Runtimes create the cgroup from the bundle; this module reads it, and removes what they leave behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

CGROUP_MOUNT = Path("/sys/fs/cgroup")
_PARENT = "glowplug"
# A killed sandbox with 20 GB of memory needs about two seconds to give it back.
_EMPTYING_DEADLINE_S = 10.0
_EMPTYING_POLL_S = 0.005


def cgroup_path(replica_id: str) -> str:
    """The path, below each controller, that a replica's processes are put in."""
    return f"/{_PARENT}/{replica_id}"


class ReplicaCgroup:
    """Readings of one replica's cgroup. A missing file reads as None or zero: the replica is gone."""

    def __init__(self, replica_id: str, mount: Path = CGROUP_MOUNT) -> None:
        self._relative = cgroup_path(replica_id).lstrip("/")
        self._mount = mount
        self._is_v2 = (mount / "cgroup.controllers").exists()
        self._memory = mount / self._relative if self._is_v2 else mount / "memory" / self._relative

    def memory_bytes(self) -> int | None:
        """Memory charged to the replica (page cache included), or None when it is gone."""
        name = "memory.current" if self._is_v2 else "memory.usage_in_bytes"
        text = _read(self._memory / name)
        return int(text) if text else None

    def oom_kills(self) -> int:
        """How often the kernel killed a process of it for lack of memory."""
        name = "memory.events" if self._is_v2 else "memory.oom_control"
        for line in _read(self._memory / name).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    def pids(self) -> list[int]:
        """The processes in it, as the host counts them."""
        return [int(pid) for pid in _read(self._memory / "cgroup.procs").split()]

    def kill_all(self) -> None:
        """SIGKILL every process in it: what an interrupted runtime command left behind."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, timeout_s: float = _EMPTYING_DEADLINE_S) -> bool:
        """Kill what is in it and remove its directories in every hierarchy; whether nothing is left."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.kill_all()
            left = [directory for directory in self._directories() if not _remove_tree(directory)]
            if not left or time.monotonic() > deadline:
                return not left
            time.sleep(_EMPTYING_POLL_S)

    def _directories(self) -> list[Path]:
        if self._is_v2:
            roots = [self._mount]
        else:
            roots = [path for path in self._mount.iterdir() if path.is_dir() and not path.is_symlink()]
        return [root / self._relative for root in roots]


def _remove_tree(directory: Path) -> bool:
    """Whether the directory is gone. It can be removed once every process has left it."""
    try:
        for child in directory.iterdir():
            if child.is_dir():
                _remove_tree(child)
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
