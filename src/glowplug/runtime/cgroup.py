"""A replica's cgroup, v1 and v2: memory in use, out-of-memory kills, processes; freezing, and swapping out.

Runtimes create the cgroup from the bundle; this module reads it, freezes it, and removes what they leave.

What moves the memory of a frozen replica to swap is the cgroup's own reclaim (v1 ``memory.force_empty``, v2
``memory.reclaim``): 300 MB in 0.4 s, of gVisor and of runc. ``process_madvise(MADV_PAGEOUT)`` does it for
runc, and nothing for gVisor, whose memory is a shared file that several processes map: the kernel passes over
pages that somebody else maps too (measured on 6.18).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

from glowplug.types.errors import RuntimeFailed

CGROUP_MOUNT = Path("/sys/fs/cgroup")
_PARENT = "glowplug"
# A killed sandbox with 20 GB of memory needs about two seconds to give it back.
_EMPTYING_DEADLINE_S = 10.0
_EMPTYING_POLL_S = 0.005
# Frozen is who has left the kernel: a process in a slow read of a disk takes as long as that.
_FREEZING_DEADLINE_S = 2.0
_FREEZING_POLL_S = 0.001
# One round takes nearly everything; what was in use at that moment goes in the next.
_RECLAIM_ROUNDS = 4
_NOT_WORTH_A_ROUND_BYTES = 4 << 20
_SIGKILL_BIT = 1 << (signal.SIGKILL - 1)


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
        self._freezer = self._memory if self._is_v2 else mount / "freezer" / self._relative

    def memory_bytes(self) -> int | None:
        """Memory charged to the replica (page cache included), or None when it is gone."""
        name = "memory.current" if self._is_v2 else "memory.usage_in_bytes"
        text = _read(self._memory / name)
        return int(text) if text else None

    def proportional_bytes(self) -> int:
        """Memory of its processes, each page divided by how many map it (PSS): the sum over copies is real.

        The kernel walks their page tables for it: about 16 ms per GB.
        """
        return sum(_proportional_bytes(pid) for pid in self.pids())

    def swapped_bytes(self) -> int:
        """Memory of the replica that lies in swap."""
        if self._is_v2:
            return int(_read(self._memory / "memory.swap.current") or 0)
        return _count(self._memory / "memory.stat", "swap")

    def oom_kills(self) -> int:
        """How often the kernel killed a process of it for lack of memory."""
        return _count(self._memory / ("memory.events" if self._is_v2 else "memory.oom_control"), "oom_kill")

    def lift_memory_limit(self) -> None:
        """Let it take as much as there is. Raises RuntimeFailed."""
        # v1 keeps the limit on memory and swap, where it counts swap, above the one on memory alone.
        names = ("memory.max",) if self._is_v2 else ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes")
        try:
            for name in names:
                if (self._memory / name).exists():
                    (self._memory / name).write_text("max" if self._is_v2 else "-1")
        except OSError as error:
            raise RuntimeFailed(f"The memory limit of {self._relative} stays: {error}") from error

    def pids(self) -> list[int]:
        """The processes in it, as the host counts them."""
        return [int(pid) for pid in _read(self._memory / "cgroup.procs").split()]

    @property
    def is_frozen(self) -> bool:
        """No process in it runs, nor will before it is thawed."""
        if self._is_v2:
            return _count(self._freezer / "cgroup.events", "frozen") == 1
        return _read(self._freezer / "freezer.state").strip() == "FROZEN"

    def freeze(self, timeout_s: float = _FREEZING_DEADLINE_S) -> None:
        """Stop every process where it stands. Raises RuntimeFailed; then all of them run on."""
        deadline = time.monotonic() + timeout_s
        try:
            self._set_frozen(True)
            while not self.is_frozen:
                if time.monotonic() > deadline:
                    raise RuntimeFailed(f"{self._relative} was not frozen within {timeout_s:g} s.")
                time.sleep(_FREEZING_POLL_S)
        except OSError as error:
            raise RuntimeFailed(f"{self._relative} cannot be frozen: {error}") from error
        except RuntimeFailed:
            self.thaw()
            raise

    def thaw(self) -> None:
        """Let every process run on; nothing if they do, or are gone."""
        with contextlib.suppress(OSError):
            self._set_frozen(False)

    def has_kill_pending(self) -> bool:
        """Whether a process was killed while frozen: under v1 it dies only once it is thawed."""
        return any(map(_awaits_sigkill, self.pids()))

    def push_out(self) -> None:
        """Move what a frozen replica holds to swap. Blocks for seconds per GB; ends early if it is thawed.

        Raises RuntimeFailed where the kernel has no means (v2 before Linux 5.19).
        """
        left = self.memory_bytes() or 0
        for _ in range(_RECLAIM_ROUNDS):
            if left < _NOT_WORTH_A_ROUND_BYTES or not self.is_frozen:
                return
            self._reclaim(left)
            before, left = left, self.memory_bytes() or 0
            if left >= before:
                return

    def kill_all(self) -> None:
        """SIGKILL every process in it, frozen or not: what an interrupted runtime command left behind."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.thaw()

    def remove(self, timeout_s: float = _EMPTYING_DEADLINE_S) -> bool:
        """Kill what is in it and remove its directories in every hierarchy; whether nothing is left."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.kill_all()
            left = [directory for directory in self._directories() if not _remove_tree(directory)]
            if not left or time.monotonic() > deadline:
                return not left
            time.sleep(_EMPTYING_POLL_S)

    def _set_frozen(self, wanted: bool) -> None:
        if self._is_v2:
            (self._freezer / "cgroup.freeze").write_text("1" if wanted else "0")
        else:
            (self._freezer / "freezer.state").write_text("FROZEN" if wanted else "THAWED")

    def _reclaim(self, wanted_bytes: int) -> None:
        name, text = ("memory.reclaim", str(wanted_bytes)) if self._is_v2 else ("memory.force_empty", "0")
        try:
            (self._memory / name).write_text(text)
        except OSError as error:
            # v2 says EAGAIN, v1 EBUSY, for: some of it, not all.
            if error.errno not in (errno.EAGAIN, errno.EBUSY):
                raise RuntimeFailed(f"The memory of {self._relative} cannot be moved: {error}") from error

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


def _proportional_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0  # it ended


def _awaits_sigkill(pid: int) -> bool:
    """``SigPnd`` and ``ShdPnd`` of proc(5): signals that wait for the thread, and for the whole process."""
    pending = [line.split() for line in _read(Path(f"/proc/{pid}/status")).splitlines()]
    masks = [int(words[1], 16) for words in pending if words and words[0] in ("SigPnd:", "ShdPnd:")]
    return any(mask & _SIGKILL_BIT for mask in masks)


def _count(path: Path, wanted: str) -> int:
    """The number behind one key of a file of ``key value`` lines; 0 if it is not there."""
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == wanted:
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
