"""Which processes are not as their owner left them: written before the driver is asked to lock the first.

Whoever holds the journal's lock settles what it lists. The guard holds it, and shares it with its helper,
which settles when the guard dies; the next guard settles when both did. So a process is never left locked.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from glowplug.kernel.processes import is_running, kill_process, pid_start_ticks
from glowplug.snapshot.gpu.words import DeviceMap
from glowplug.types.errors import Conflict
from glowplug.types.spec import Spec

_PAUSE_S = 0.02
_KILL_S = 5.0
_DYING_S = 1.0  # a guard that was killed just now has the lock until its last thread has gone


class Target(Spec):
    """One very process. ``start_ticks`` (clock ticks since boot) tells it from a later one with its pid."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Target | None:
        """The process that has this pid now."""
        ticks = pid_start_ticks(pid)
        return None if ticks is None else cls(pid=pid, start_ticks=ticks)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return is_running(self.pid, self.start_ticks)

    def kill(self, timeout_s: float = _KILL_S) -> bool:
        """End it; whether it is gone."""
        return kill_process(self.pid, self.start_ticks, timeout_s)


class Operation(Spec):
    """The CUDA processes of one replica, between RUNNING and RUNNING."""

    targets: list[Target]
    device_map: DeviceMap = {}

    @property
    def pids(self) -> list[int]:
        """Theirs."""
        return [target.pid for target in self.targets]


class _Record(Spec):
    format: int = 1
    operations: list[Operation] = []


class _Holder(Spec):
    """Who has the lock; the helper has it once its guard is gone."""

    guard: Target
    helper: Target | None = None


@dataclass
class Journal:
    """``journal.json`` and ``journal.lock`` in ``folder``. Use :meth:`acquire` before anything else."""

    folder: Path
    operations: list[Operation] = field(default_factory=list)
    lock_descriptor: int = -1

    def acquire(self, deadline_s: float) -> None:
        """Take the lock, and read what a dead predecessor left.

        Its helper gets ``deadline_s`` to settle that, and is killed then. Raises Conflict if another guard
        works in this folder.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.folder / "journal.lock"
        self.lock_descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        holder = self._holder()
        is_free = self._lock_within(_DYING_S if holder and holder.guard.is_alive else deadline_s)
        if not is_free and holder and not holder.guard.is_alive and holder.helper and holder.helper.kill():
            is_free = self._lock_within(_KILL_S)
        if not is_free:
            os.close(self.lock_descriptor)
            raise Conflict(
                f"Another GPU guard works in {self.folder}.", remedy="Wait until it has ended, or end it."
            )
        self.name_helper(None)
        self.operations = self.read()

    def read(self) -> list[Operation]:
        """The operations that are listed, on the disk."""
        try:
            return _Record.model_validate_json(self._path.read_bytes()).operations
        except FileNotFoundError:
            return []
        except ValidationError as error:  # it is replaced in one step, so nobody wrote half of it
            aside = self._path.replace(self._path.with_suffix(".damaged"))
            print(f"The journal of GPU operations is unreadable, and now {aside}: {error}", file=sys.stderr)
            return []

    def add(self, operation: Operation) -> None:
        """List an operation instead of those that share a process with it, before its first call."""
        self.operations = [*self._others(operation), operation]
        self._write()

    def remove(self, operation: Operation) -> None:
        """Its processes are RUNNING, or dead."""
        self.operations = self._others(operation)
        self._write()

    def name_helper(self, pid: int | None) -> None:
        """Write down who settles if this guard dies."""
        guard = Target.of(os.getpid())
        assert guard is not None  # noqa: S101 - we live
        holder = _Holder(guard=guard, helper=None if pid is None else Target.of(pid))
        self._replace(self.folder / "holder.json", holder.model_dump_json())

    def _others(self, operation: Operation) -> list[Operation]:
        return [
            other
            for other in self.operations
            if not set(other.targets) & set(operation.targets)
            and any(target.is_alive for target in other.targets)
        ]

    def _write(self) -> None:
        self._replace(self._path, _Record(operations=self.operations).model_dump_json())

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        """In one step. It need not survive the machine: the processes do not either."""
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    @property
    def _path(self) -> Path:
        return self.folder / "journal.json"

    def _holder(self) -> _Holder | None:
        try:
            return _Holder.model_validate_json((self.folder / "holder.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _lock_within(self, deadline_s: float) -> bool:
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                fcntl.flock(self.lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_PAUSE_S)
            else:
                return True
