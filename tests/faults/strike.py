"""A runtime's stand-in: runs the real program, and at one armed step kills somebody with SIGKILL.

``python -m tests.faults.strike ARMED REAL ARGUMENTS..`` is what the scripts of :mod:`tests.faults.shim` run
while the file ARMED is there. It strikes once, and leaves ``ARMED.struck`` with what it killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.victims import kill

_LOOK_AGAIN_S = 0.002


@dataclass(frozen=True)
class Strike:
    """Kill ``victim`` ``before``, ``during`` or ``after`` the runtime's ``verb`` for a replica of that sort.

    ``who``: ``serve``, ``capture`` (whose memory is taken) or ``trial`` (the copy that proves it).
    """

    runtime: str
    who: str
    verb: str
    moment: str
    victim: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.who}-{self.verb}-{self.moment}-{self.victim}"

    def is_due(self, real: str, arguments: list[str]) -> bool:
        """Whether this command is the step."""
        return Path(real).name == self.runtime and self.verb in arguments and who(arguments[-1]) == self.who


def who(replica_id: str) -> str:
    """What a replica is for, from its id."""
    if "-capture-" not in replica_id:
        return "serve"
    return "trial" if replica_id.endswith("-trial") else "capture"


def main() -> int:
    """The real program's exit code; this process may not live to see it."""
    armed, real, *arguments = sys.argv[1:]
    order = _claim(Path(armed), real, arguments)
    if order is None:
        os.execv(real, [real, *arguments])
    strike, root = order
    replica = arguments[-1]
    if strike.moment == "before":
        _hit(strike, root, replica, Path(armed))
        os.execv(real, [real, *arguments])
    process = subprocess.Popen([real, *arguments])
    if strike.moment == "during":
        _hit_while_it_runs(strike, root, replica, Path(armed), process)
        return _exit_code(process.wait())
    code = process.wait()
    _hit(strike, root, replica, Path(armed))
    return _exit_code(code)


def _claim(armed: Path, real: str, arguments: list[str]) -> tuple[Strike, Path] | None:
    """The order, if it is for this command and nobody else was quicker."""
    try:
        order = json.loads(armed.read_text())
        strike = Strike(**order["strike"])
        if not strike.is_due(real, arguments):
            return None
        armed.rename(armed.with_suffix(".claimed"))
    except FileNotFoundError:
        return None
    return strike, Path(order["root"])


def _hit_while_it_runs(
    strike: Strike, root: Path, replica: str, armed: Path, process: subprocess.Popen[bytes]
) -> None:
    """As soon as there is a victim, or the command has ended."""
    while process.poll() is None:
        if _hit(strike, root, replica, armed):
            return
        time.sleep(_LOOK_AGAIN_S)
    _hit(strike, root, replica, armed)


def _hit(strike: Strike, root: Path, replica: str, armed: Path) -> list[int]:
    killed = kill(strike.victim, root, [replica])
    if killed or strike.moment != "during" or strike.victim == "command":
        report = armed.with_suffix(".partial")
        report.write_text(json.dumps({"strike": asdict(strike), "killed": killed}))
        report.rename(armed.with_suffix(".struck"))
    if strike.victim == "command":
        os.kill(os.getpid(), signal.SIGKILL)
    return killed


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
