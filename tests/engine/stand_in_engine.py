"""Stands in for an engine, or what it stands on: notes what it is given, and how and when it ends."""

import json
import os
import signal
import sys
from pathlib import Path

name = sys.argv[1]
state = Path(sys.argv[sys.argv.index("--state") + 1])


def stop(number: int, frame: object) -> None:
    agent_is_over = (state / "agent-signal").exists()
    told = {"signal": signal.Signals(number).name, "agent_is_over": agent_is_over}
    (state / f"{name}-end").write_text(json.dumps(told))
    os._exit(0)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
environment = sorted(word for word in os.environ if word.startswith(("RAY_", "PGPASS")))
(state / f"{name}-start").write_text(json.dumps({"pid": os.getpid(), "environment": environment}))
while True:
    signal.pause()
