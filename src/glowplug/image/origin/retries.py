"""How often an exchange over the network is tried again, and how long is waited in between."""

from __future__ import annotations

import email.utils
from dataclasses import dataclass, field, replace

from glowplug.image.job import Job
from glowplug.image.origin.http_session import Interrupted
from glowplug.types.clock import Clock

MAX_RETRY_AFTER_S = 30.0


@dataclass
class Patience:
    """Counts failures in a row. For one exchange of one thread."""

    attempts: int = 6
    first_pause_s: float = 0.25
    longest_pause_s: float = 8.0
    _failures: int = field(default=0, init=False)

    def afresh(self) -> Patience:
        """The same for another exchange."""
        return replace(self)

    def after(self, problem: Interrupted, job: Job, stage: str) -> None:
        """Wait before the next attempt; raises ``problem`` if there is none, or what ``job.check`` raises."""
        self._failures += 1
        if self._failures >= self.attempts:
            raise problem
        pause_s = min(self.first_pause_s * 2 ** (self._failures - 1), self.longest_pause_s)
        pause_s = max(pause_s, min(problem.retry_after_s, MAX_RETRY_AFTER_S))
        job.cancelled.wait(min(pause_s, job.remaining_s()))
        job.check(stage)

    def progressed(self) -> None:
        """Something worth having came: failures before it do not count any more."""
        self._failures = 0


def read_retry_after(text: str, clock: Clock) -> float:
    """The seconds that a ``Retry-After`` header asks for; 0 if it makes no sense."""
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, moment.timestamp() - clock.wall())
