"""Learning that a sandbox ended, and how, whoever its parent is.

A pidfd becomes readable when its process ends, child or not, so an adopted sandbox is watched like a new
one. The exit code is known to whoever reaps it: the supervisor, which leaves a note in ``run/exits/<pid>``.
Until then the process is still there, ended as it is: a busy machine may leave it so for seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

_REAPING_DEADLINE_S = 10.0
_NOTE_DEADLINE_S = 1.0
_NOTE_POLL_S = 0.01


class ExitWatch:
    """Watches one process. :meth:`close` must be called when nobody waits any more."""

    def __init__(self, pid: int, notes: Path, watched_since: float) -> None:
        self._pid = pid
        self._note = notes / str(pid)
        self._since = watched_since
        self._ended = asyncio.Event()
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None
            self._ended.set()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._on_end)

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Until the process has ended."""
        await self._ended.wait()

    async def exit_code(self) -> int | None:
        """The exit code (128 + n for signal n), or None if who reaped it noted none within a second."""
        loop = asyncio.get_running_loop()
        deadline, is_reaped = loop.time() + _REAPING_DEADLINE_S, False
        while True:
            code = _read_note(self._note, self._since)
            if code is not None or loop.time() > deadline:
                return code
            if not is_reaped and _is_reaped(self._pid):
                deadline, is_reaped = loop.time() + _NOTE_DEADLINE_S, True
            await asyncio.sleep(_NOTE_POLL_S)

    def close(self) -> None:
        """Stop watching."""
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _on_end(self) -> None:
        self.close()
        self._ended.set()


def _is_reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def read_exit_code(notes: Path, pid: int | None, since: float) -> int | None:
    """The exit code of ``pid``, if its end was noted at or after ``since`` (Unix time)."""
    return None if pid is None else _read_note(notes / str(pid), since)


def _read_note(path: Path, since: float) -> int | None:
    try:
        note = json.loads(path.read_text())
        if float(note["at"]) < since:
            return None
        code, signal = note["exit_code"], note["signal"]
        return int(code) if code is not None else 128 + int(signal)
    except (OSError, ValueError, KeyError, TypeError):
        return None
