"""One chunk on its way, and who waits for it: what a fetcher's queue is made of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.fetch_prefetch import Prefetch
from glowplug.types.errors import GlowplugError

_log = logging.getLogger(__name__)

Outcome = bytes | memoryview | GlowplugError
"""A chunk's verified bytes, or why there are none."""

Done = Callable[[Outcome], None]
"""What an asker wants called with the chunk's verified bytes or the error; must be quick."""


class Priority(IntEnum):
    """Who gets the next free connection: the lower."""

    READ = 0
    READ_AHEAD = 1
    PREFETCH = 2


class State(Enum):
    """Where a flight is."""

    QUEUED = "queued"
    RUNNING = "running"
    SETTLED = "settled"


@dataclass(eq=False, slots=True)
class Waiter:
    """One asker."""

    done: Done
    blob: RemoteBlob
    index: int
    priority: Priority
    deadline_s: float
    is_guest: bool  # joined somebody else's attempt: if that fails, it is owed one of its own
    is_answered: bool = False


@dataclass(eq=False, slots=True)
class Flight:
    """A chunk that somebody wants, and where this attempt takes it from."""

    chunk: Chunk
    blob: RemoteBlob
    index: int
    priority: Priority
    state: State
    waiters: list[Waiter] = field(default_factory=list)
    followers: list[Prefetch] = field(default_factory=list)


def mark_answered(waiters: Iterable[Waiter]) -> list[Done]:
    """Mark them answered; what to call once the lock is released."""
    dones = []
    for waiter in waiters:
        waiter.is_answered = True
        dones.append(waiter.done)
        waiter.done = _forgotten  # its deadline may outlive it in the queue: do not keep what it holds
    return dones


def _forgotten(_outcome: Outcome) -> None:
    raise AssertionError("an asker was answered twice")


def call_all(dones: Iterable[Done], outcome: Outcome) -> None:
    """Tell them; whoever fails to listen is logged."""
    for done in dones:
        try:
            done(outcome)
        except Exception:  # noqa: BLE001 - the others who wait must still hear of it
            _log.exception("whoever asked for a chunk failed to take it")
