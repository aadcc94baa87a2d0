"""Stands in for the supervisor in node tests: starts a command, reaps every orphan, notes exit codes."""

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


def main() -> None:
    state = StateDir(Path(sys.argv[1]))
    state.create()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    notes = ExitNotes(state.exits, SystemClock())
    child = subprocess.Popen(sys.argv[2:])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: child.send_signal(got))
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child.pid:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
        notes.add(pid, status)


if __name__ == "__main__":
    main()
