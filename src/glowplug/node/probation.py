"""Whether this node can be trusted to restore at all.

A snapshot that fails is that snapshot's fault; when three *different* ones fail in a row, the node is the
more likely cause: a broken disk, runtime or kernel. It is quarantined: cold starts only, no captures. After a
back-off one restore is tried; its success lifts the quarantine, its failure doubles the back-off. Kept in a
file, so that an agent's restart changes nothing.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from glowplug.snapshot.durable import read_limited, write_durably
from glowplug.types.clock import Clock

DIFFERENT_FAILURES = 3
FIRST_BACKOFF_S = 60.0
LONGEST_BACKOFF_S = 3600.0
_MAX_FILE_BYTES = 64 << 10
_MAX_REASON_CHARACTERS = 300

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

logger = logging.getLogger(__name__)


class _State(BaseModel):
    """``failed``: snapshots whose restores failed since one last worked. ``trial_at`` is in Unix seconds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    failed: list[str] = []
    reason: str = ""
    backoff_s: _Seconds = 0.0
    trial_at: _Seconds = 0.0


class NodeProbation:
    """The verdict on one node, kept in ``path``. May be called from several threads."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._state = _load(path)

    @property
    def quarantine(self) -> str | None:
        """Why this node restores nothing, or None."""
        with self._lock:
            return self._words() if self._state.backoff_s else None

    def why_cold(self) -> str | None:
        """Why a restore may not be tried now, or None. None on probation claims the one trial."""
        with self._lock:
            if not self._state.backoff_s:
                return None
            now = self._clock.wall()
            # A clock that was set back must not make the wait longer than the back-off itself.
            if self._state.trial_at - self._state.backoff_s <= now < self._state.trial_at:
                return self._words()
            self._state.trial_at = now + self._state.backoff_s
            self._save()
            logger.info("on probation: one restore is tried")
            return None

    def note_success(self) -> None:
        """A restore worked."""
        with self._lock:
            if not self._state.failed:
                return
            if self._state.backoff_s:
                logger.info("the quarantine of this node is lifted: a restore worked")
            self._state = _State()
            self._save()

    def note_failure(self, snapshot_id: str, reason: str) -> None:
        """A restore failed."""
        with self._lock:
            state = self._state
            if snapshot_id not in state.failed:
                state.failed = [*state.failed, snapshot_id][-DIFFERENT_FAILURES:]
            state.reason = reason[:_MAX_REASON_CHARACTERS]
            if len(state.failed) >= DIFFERENT_FAILURES:
                self._back_off()
            self._save()

    def _back_off(self) -> None:
        state = self._state
        now = self._clock.wall()
        if state.backoff_s == 0:
            state.backoff_s = FIRST_BACKOFF_S
        else:
            state.backoff_s = min(2 * state.backoff_s, LONGEST_BACKOFF_S)
        state.trial_at = now + state.backoff_s
        logger.error("this node is quarantined: %s", self._words())

    def _words(self) -> str:
        state = self._state
        wait_s = max(state.trial_at - self._clock.wall(), 0.0)
        return (
            f"the node is quarantined: restores of {', '.join(state.failed)} failed in a row (the last: "
            f"{state.reason}); the next is tried in {wait_s:.0f} s at the earliest"
        )

    def _save(self) -> None:
        try:
            write_durably(self._path, self._state.model_dump_json().encode() + b"\n")
        except OSError as error:
            logger.warning("the node's record of restores is not kept: %s", error)


def _load(path: Path) -> _State:
    try:
        return _State.model_validate_json(read_limited(path, _MAX_FILE_BYTES))
    except FileNotFoundError:
        return _State()
    except (OSError, ValueError) as error:
        logger.warning("the node's record of restores begins anew: %s: %s", path, str(error)[:200])
        return _State()
