"""Since when nobody in a region needs something: what is condemned goes only after a grace period.

An object of the region remembers it from one collection to the next. Lost or damaged, it costs a grace period
that begins anew, and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from typing import Any

from glowplug.chunks.objects import WriteObjects
from glowplug.types.clock import Clock
from glowplug.types.errors import InvalidInput, NotFound

_log = logging.getLogger(__name__)

_MAX_BYTES = 64 << 20
_TIMEOUT_S = 60.0


class Condemned:
    """What is condemned, by name, below ``field`` of the object ``key``. For whoever collects, alone."""

    def __init__(self, objects: WriteObjects, clock: Clock, key: str, field: str) -> None:
        self._objects = objects
        self._clock = clock
        self._key = key
        self._field = field
        self._since_s: dict[str, float] = {}

    def condemn(self, unneeded: Iterable[str], grace_s: float) -> list[str]:
        """These, and nothing else, are unneeded now: which have been for ``grace_s``, in order."""
        known_s, now_s = self._load(), self._clock.wall()
        self._since_s = {name: min(known_s.get(name, now_s), now_s) for name in unneeded}
        return sorted(name for name, since_s in self._since_s.items() if now_s - since_s >= grace_s)

    def save_without(self, removed: Iterable[str]) -> int:
        """Remember those that were not removed; how many."""
        for name in removed:
            self._since_s.pop(name, None)
        content = {"version": 1, self._field: self._since_s}
        self._objects.write(self._key, json.dumps(content, sort_keys=True).encode(), _TIMEOUT_S)
        return len(self._since_s)

    def _load(self) -> dict[str, float]:
        try:
            content = json.loads(self._objects.read_all(self._key, _MAX_BYTES, _TIMEOUT_S))
            return {str(name): _time(since_s) for name, since_s in content[self._field].items()}
        except NotFound:
            return {}
        except (
            ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, InvalidInput
        ) as problem:  # fmt: skip
            _log.warning("%s is damaged, so all grace periods begin anew: %s", self._key, problem)
            return {}


def _time(value: Any) -> float:
    """A Unix time out of JSON. Raises ValueError for an infinite one, and what float() raises."""
    time_s = float(value)
    if not math.isfinite(time_s):
        raise ValueError(f"{value} is no time")
    return time_s
