"""SIGKILL at random moments to random processes of a Glowplug that is at work.

Where :mod:`tests.faults.test_steps` visits steps that somebody thought of, this finds those that nobody did.
Used by tests and by the soak (``benchmarks/snapshot/soak.py``).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.victims import kill

from glowplug.types.errors import GlowplugError
from glowplug.types.paths import StateDir

WEIGHTS = {
    "agent": 2,
    "control": 2,
    "worker": 2,
    "holder": 1,
    "daemon": 1,
    "sandbox": 6,
    "command": 6,
    "criu": 3,
}
LONGEST_PAUSE_S = 2.5
CLEAN_STATUSES = ("502", "503", "504")
_PATIENCE_S = 2.0
"""So long a killer waits for a victim that exists for moments only, as a command does."""
_LOOK_AGAIN_S = 0.01


@dataclass
class Killer:
    """Kills one victim after the other. The same seed kills in the same order, at other moments."""

    state: StateDir
    rng: random.Random
    killed: Counter[str] = field(default_factory=Counter)

    def kill_one(self) -> str:
        """Kill somebody, now or soon; what kind it was. Raises TimeoutError if nobody is there."""
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            [kind] = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            patience = time.monotonic() + _PATIENCE_S
            while time.monotonic() < patience:
                if kill(kind, self.state.root, self._replicas()):
                    self.killed[kind] += 1
                    return kind
                time.sleep(_LOOK_AGAIN_S)
        raise TimeoutError("nobody to kill in 30 s")

    def pause_s(self) -> float:
        """How long to wait before the next one."""
        return self.rng.uniform(0.0, LONGEST_PAUSE_S)

    def _replicas(self) -> list[str]:
        """One of those there are."""
        names = sorted(entry.name for entry in os.scandir(self.state.replicas))
        return [self.rng.choice(names)] if names else []


def unclean(refusals: list[str]) -> list[str]:
    """Those that are not a typed error with a remedy, of a status that the documentation tells of."""
    return [text for text in refusals if not _is_clean(text)]


def _is_clean(refusal: str) -> bool:
    status, _, body = refusal.partition(" ")
    try:
        error = GlowplugError.from_dict(json.loads(body))
    except (ValueError, KeyError, TypeError):
        return False
    return status in CLEAN_STATUSES and bool(error.message) and bool(error.remedy)
