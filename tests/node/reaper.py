"""Stands in for the supervisor in node tests: starts a command, reaps every orphan, notes exit codes.

``reaper.py [--stay] STATE COMMAND..``. With ``--stay`` it outlives the command, and starts it again on
SIGUSR1. SIGTERM and SIGINT are passed on, and the reaper ends once the command has ended, with its exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from glowplug.engine.exits import ExitNotes
from glowplug.types.clock import SystemClock
from glowplug.types.paths import StateDir

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    arguments = sys.argv[1:]
    stays = arguments[0] == "--stay"
    state_dir, *command = arguments[1:] if stays else arguments
    state = StateDir(Path(state_dir))
    state.create()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return _Reaper(ExitNotes(state.exits, SystemClock()), command, stays).run()


class _Reaper:
    def __init__(self, notes: ExitNotes, command: list[str], stays: bool) -> None:
        self._notes, self._command, self._stays = notes, command, stays
        self._signals, woken = os.pipe()
        os.set_blocking(woken, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(woken)
        self._child = subprocess.Popen(command)
        self._code: int | None = None

    def run(self) -> int:
        while True:
            self._reap()
            if self._code is not None and not self._stays:
                return self._code & 0xFF
            for number in os.read(self._signals, 100):
                self._obey(number)

    def _obey(self, number: int) -> None:
        if number == signal.SIGUSR1:
            self._child, self._code = subprocess.Popen(self._command), None
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stays = False
            if self._code is None:  # not Popen.send_signal, which may reap the child behind our back
                os.kill(self._child.pid, number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._child.pid:
                self._code = self._child.returncode = os.waitstatus_to_exitcode(status)
            else:
                with contextlib.suppress(OSError):  # a full disk, in some tests
                    self._notes.add(pid, status)


if __name__ == "__main__":
    sys.exit(main())
