"""How starting a server's replicas has gone lately, and so whether and when to try again.

Three things look alike and must not be confused: a start that never gets ready (twice in a row is a crash
loop, and callers are told), a replica that served and then died (it is replaced, and callers wait for that),
and a start that a part of Glowplug broke by dying itself (which says nothing about the server).

Promise: whenever callers are held, the next start is due within ``Timings.held_backoff_max_s``.
"""

from __future__ import annotations

from glowplug.control.timings import Timings
from glowplug.types.clock import Clock
from glowplug.types.replica import ErrorInfo


class StartHistory:
    """Of the active version of one server."""

    def __init__(self, clock: Clock, timings: Timings) -> None:
        self._clock = clock
        self._timings = timings
        self.reset()

    def reset(self) -> None:
        """Another version is active: nothing is known."""
        self.failed_starts = 0
        self.error: ErrorInfo | None = None
        """Why the last start failed; None once one is ready."""
        self.problem: str | None = None
        """Why no replica could even be asked for (no agent, no capacity)."""
        self._early_deaths = 0
        self._retry_at_s = 0.0

    @property
    def is_crash_looping(self) -> bool:
        """Enough starts in a row have failed to call it hopeless for now."""
        return self.failed_starts >= self._timings.failed_starts_limit

    @property
    def wait_s(self) -> float:
        """How long until the next start is due; 0 when it is."""
        return max(self._retry_at_s - self._clock.monotonic(), 0.0)

    def failed(self, replica_id: str, error: ErrorInfo) -> None:
        """A start ended before it was ready."""
        self.failed_starts += 1
        self._wait(self._timings.backoff_s(self.failed_starts))
        self.error = error.model_copy(update={"details": {**error.details, "replica_id": replica_id}})

    def postponed(self, problem: str) -> None:
        """A start could not even be asked for: nobody's fault but the moment's."""
        self.problem = problem
        self._wait(self._timings.backoff_first_s)

    def hurry(self) -> None:
        """What a postponed start waited for is there, perhaps."""
        if not self.failed_starts:
            self._retry_at_s = 0.0

    def interrupted(self, problem: str) -> None:
        """A part of Glowplug died while it started: it is tried again at once."""
        self.problem = problem

    def got_ready(self) -> None:
        """A start succeeded: whatever kept the next one back no longer counts."""
        self.failed_starts = 0
        self.error = self.problem = None
        self._retry_at_s = 0.0

    def died(self, lived_s: float) -> None:
        """A replica that served has failed. The first early death is forgiven, a series slows us down.

        A little only: unlike those of a server that never gets ready, its callers are held.
        """
        if lived_s >= self._timings.early_death_s:
            self._early_deaths = 0
            return
        self._early_deaths += 1
        if self._early_deaths > 1:
            self._wait(min(self._timings.backoff_s(self._early_deaths - 1), self._timings.held_backoff_max_s))

    def stopped(self) -> None:
        """A replica ended because it was asked to."""
        self._early_deaths = 0

    def _wait(self, seconds: float) -> None:
        self._retry_at_s = self._clock.monotonic() + seconds
