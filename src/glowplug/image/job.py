"""One request to make an image ready: whom to tell, how long it may take, whether anybody still wants it.

Everything slow in this room takes a :class:`Job` and asks it before and while waiting, so that a build
ends in bounded time, or within a fraction of a second once its caller has gone away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, Unavailable

Progress = Callable[[str, float | None], None]
"""Called with a line of text and how far it is, 0 to 1 (None: nobody can tell)."""


@dataclass(frozen=True)
class Job:
    """``deadline_s`` is a reading of ``clock.monotonic()``."""

    progress: Progress
    clock: Clock
    deadline_s: float
    cancelled: threading.Event = field(default_factory=threading.Event)

    def say(self, text: str, fraction: float | None = None) -> None:
        """Tell the caller where we are."""
        self.progress(text, fraction)

    def part(self, start: float, end: float) -> Job:
        """This job for a step of it, whose own 0 to 1 is ``start`` to ``end`` of the whole."""

        def progress(text: str, fraction: float | None) -> None:
            self.progress(text, None if fraction is None else start + fraction * (end - start))

        return replace(self, progress=progress)

    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline_s - self.clock.monotonic())

    def check(self, stage: str) -> None:
        """Raise when the job should not go on: cancelled, or out of time in ``stage``."""
        if self.cancelled.is_set():
            raise Unavailable(
                f"Making the image ready was cancelled while {stage}.",
                remedy="Nothing is left behind; ask again to start over.",
                stage=stage,
            )
        if self.remaining_s() <= 0:
            raise DeadlineExceeded(
                f"Making the image ready ran out of time while {stage}.",
                remedy="Finished steps are cached, so asking again goes on from there.",
                stage=stage,
            )
