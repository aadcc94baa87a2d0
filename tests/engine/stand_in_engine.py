"""Stands in for an engine, or what it stands on: notes what it is given, and how and when it ends."""

import json
import os
import signal
import sys
from pathlib import Path

name = sys.argv[1]
state = Path(sys.argv[sys.argv.index("--state") + 1])


def tell(what: str, told: object) -> None:
    """At once: it is read meanwhile."""
    fresh = state / f"{what}.new"
    fresh.write_text(json.dumps(told))
    fresh.replace(state / what)


def stop(number: int, frame: object) -> None:
    agent_is_over = (state / "agent-signal").exists()
    tell(f"{name}-end", {"signal": signal.Signals(number).name, "agent_is_over": agent_is_over})
    os._exit(0)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
environment = sorted(word for word in os.environ if word.startswith(("RAY_", "PGPASS")))
tell(f"{name}-start", {"pid": os.getpid(), "environment": environment})
while True:
    signal.pause()
