"""Three stand-in ranks as processes, and a coordinator for them in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glowplug.nccl.coordinator import Coordinator, Peer
from glowplug.nccl.words import Deadlines

TOKEN = "a token of the job"
DEADLINES = Deadlines(
    hold_s=30, release_s=30, rebuild_s=30, verify_s=30, open_s=30, drain_s=10, gap_s=60, unresumed_s=120
)
"""No machine is too slow for these."""
HURRIED = Deadlines(
    hold_s=4, release_s=2, rebuild_s=2, verify_s=2, open_s=2, drain_s=1, gap_s=10, unresumed_s=120
)
"""For tests that wait until one of them is over."""
STORE_PORT = 4711
_PROGRAM = Path(__file__).with_name("stand_in_rank.py")
_SOURCES = Path(__file__).resolve().parents[2] / "src"


class Rank:
    """One process."""

    def __init__(self, number: int, faults: dict[str, str], deadlines: Deadlines) -> None:
        arguments = [str(number), TOKEN, json.dumps(asdict(deadlines)), json.dumps(faults)]
        self.process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), *arguments],
            env={**os.environ, "PYTHONPATH": str(_SOURCES)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.number = number
        self.port = int(self._read())

    def ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return dict(json.loads(self._read()))

    def gate(self) -> str:
        """``dead``, or how somebody who comes to its gate fares."""
        if self.process.poll() is not None:
            return "dead"
        try:
            return str(self.ask("knock")["gate"])
        except (OSError, ValueError):
            return "dead"

    def gate_within(self, *wanted: str, timeout_s: float = 60.0) -> str:
        """As soon as it is one of those wanted; what it is at the deadline otherwise."""
        ends_s = time.monotonic() + timeout_s
        while (found := self.gate()) not in wanted and time.monotonic() < ends_s:
            time.sleep(0.05)
        return found

    def _read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@contextmanager
def three_ranks(
    faults: dict[int, dict[str, str]] | None = None, deadlines: Deadlines = DEADLINES
) -> Iterator[tuple[list[Rank], Coordinator]]:
    with ExitStack() as stack:
        ranks = []
        for number in range(3):
            ranks.append(Rank(number, (faults or {}).get(number, {}), deadlines))
            stack.callback(ranks[-1].close)
        peers = [Peer(rank.number, rank.port, "here") for rank in ranks]
        yield ranks, Coordinator(peers, TOKEN, deadlines, lambda deadline_s: STORE_PORT)
