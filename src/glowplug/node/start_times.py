"""How long starts of each server take on this node: snapshots that do not pay are not used.

A small server may start faster than its memory is read back. Per snapshot key the last starts, cold and
restored, are remembered across restarts of the agent. Once a key has three of each and the median restore is
no faster than the median cold start, the key is **opted out** for good: no restore, no capture. Another key
starts afresh, and so does a snapshot that is asked for by hand. A server with a snapshot never starts cold by
itself, so a restore that already looks too slow makes the next starts cold ones, until there are three to
compare with.
"""

from __future__ import annotations

import logging
import statistics
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from glowplug.snapshot.durable import read_limited, write_durably

ENOUGH = 3
"""Starts of each kind before anything is concluded."""
KEPT = 15
"""Starts of each kind that are remembered: the last ones."""
MAX_KEYS = 1000
_MAX_FILE_BYTES = 4 << 20

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

logger = logging.getLogger(__name__)


class _Times(BaseModel):
    """Seconds of the last starts of one key, newest last, and why it is opted out if it is."""

    model_config = ConfigDict(extra="forbid")

    cold_s: list[_Seconds] = []
    restored_s: list[_Seconds] = []
    opted_out: str | None = None


class _File(BaseModel):
    """The file: keys in the order in which they were last used."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    keys: dict[str, _Times] = {}


class StartTimes:
    """Start times of one node, kept in ``path``. May be called from several threads.

    A file that cannot be read or written costs what was learned, with a warning, and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._keys = _load(path)

    def note_cold(self, key_id: str, seconds: float) -> None:
        """A server with this key started cold, with nothing tried before."""
        with self._lock:
            self._note(self._times(key_id).cold_s, seconds)
            self._conclude(key_id)

    def note_restore(self, key_id: str, seconds: float) -> None:
        """A server with this key was restored and proved right."""
        with self._lock:
            self._note(self._times(key_id).restored_s, seconds)
            self._conclude(key_id)

    def cold_s(self, key_id: str) -> float | None:
        """The median cold start of this key here, in seconds; None if there was none."""
        with self._lock:
            times = self._keys.get(key_id)
            return statistics.median(times.cold_s) if times and times.cold_s else None

    def opted_out(self, key_id: str) -> str | None:
        """Why restores of this key do not pay, or None."""
        with self._lock:
            times = self._keys.get(key_id)
            return times.opted_out if times else None

    def opted_out_keys(self) -> int:
        """How many keys are opted out."""
        with self._lock:
            return sum(times.opted_out is not None for times in self._keys.values())

    def why_cold(self, key_id: str) -> str | None:
        """Why the next start should be cold though there is a snapshot, or None."""
        with self._lock:
            times = self._keys.get(key_id)
            if times is None or times.opted_out or not times.cold_s or not _looks_slow(times):
                return times.opted_out if times else None
            count = len(times.cold_s) + 1
            return f"a cold start is measured ({count} of {ENOUGH}): {_medians(times)}"

    def forget(self, key_id: str) -> None:
        """Start afresh with this key."""
        with self._lock:
            if self._keys.pop(key_id, None) is not None:
                self._save()

    def _times(self, key_id: str) -> _Times:
        times = self._keys.pop(key_id, None) or _Times()
        self._keys[key_id] = times  # last used, last in order
        while len(self._keys) > MAX_KEYS:
            del self._keys[next(iter(self._keys))]
        return times

    @staticmethod
    def _note(seconds: list[float], new_s: float) -> None:
        seconds.append(round(max(new_s, 0.0), 6))
        del seconds[:-KEPT]

    def _conclude(self, key_id: str) -> None:
        times = self._keys[key_id]
        if times.opted_out is None and len(times.cold_s) >= ENOUGH and _looks_slow(times):
            times.opted_out = f"opted out: restores are not faster than cold starts ({_medians(times)})"
            logger.info("%s is %s", key_id, times.opted_out)
        self._save()

    def _save(self) -> None:
        try:
            write_durably(self._path, _File(keys=self._keys).model_dump_json().encode() + b"\n")
        except OSError as error:
            logger.warning("start times are not kept: %s", error)


def _looks_slow(times: _Times) -> bool:
    return len(times.restored_s) >= ENOUGH and statistics.median(times.restored_s) >= statistics.median(
        times.cold_s
    )


def _medians(times: _Times) -> str:
    return (
        f"median {statistics.median(times.restored_s):.2f} s of {len(times.restored_s)} restores, "
        f"{statistics.median(times.cold_s):.2f} s of {len(times.cold_s)} cold starts"
    )


def _load(path: Path) -> dict[str, _Times]:
    try:
        return _File.model_validate_json(read_limited(path, _MAX_FILE_BYTES)).keys
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("start times are learned anew: %s cannot be read: %s", path, str(error)[:200])
        return {}
