"""How an adopted sandbox ended: the supervisor reaps it, this folder tells the agent.

A sandbox whose agent died becomes the supervisor's child, and only a parent learns an exit code. Each one is
noted in ``run/exits/<pid>`` as ``{"pid", "exit_code", "signal", "at"}`` (one of the two is null). Pids come
round again, so readers compare ``at`` with what they know of the process.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

from glowplug.engine.record import write_atomically
from glowplug.types.clock import Clock

MAX_NOTES = 1000


class ExitNotes:
    """Owner of the folder: writes notes atomically and keeps the newest ``max_notes``."""

    def __init__(self, directory: Path, clock: Clock, max_notes: int = MAX_NOTES) -> None:
        self._directory = directory
        self._clock = clock
        self._max_notes = max_notes
        directory.mkdir(parents=True, exist_ok=True)
        notes = [entry for entry in directory.iterdir() if entry.name.isdigit()]
        self._pids = deque(int(entry.name) for entry in sorted(notes, key=lambda note: note.stat().st_mtime))
        self._prune()

    def add(self, pid: int, wait_status: int) -> None:
        """Note the end of ``pid``; ``wait_status`` is what ``waitpid`` gave."""
        code = os.waitstatus_to_exitcode(wait_status)
        note = {
            "pid": pid,
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "at": self._clock.wall(),
        }
        write_atomically(self._directory / str(pid), json.dumps(note))
        if pid in self._pids:
            self._pids.remove(pid)
        self._pids.append(pid)
        self._prune()

    def _prune(self) -> None:
        while len(self._pids) > self._max_notes:
            (self._directory / str(self._pids.popleft())).unlink(missing_ok=True)
