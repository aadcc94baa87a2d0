"""Tells people how far an import is and how fast it goes, a few times a second, however often it is asked."""

from __future__ import annotations

from glowplug.image.job import Job

_INTERVAL_S = 0.25
_MB = 1_000_000


class Meter:
    """Counts bytes of one stage and reports them to a job. For the thread that the job belongs to."""

    def __init__(self, job: Job, stage: str, total_bytes: int | None = None) -> None:
        self._job = job
        self._stage = stage
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._started_s = job.clock.monotonic()
        self._said_s = self._started_s

    def add(self, done_bytes: int) -> None:
        """So much more is done. Raises when the job should not go on."""
        self._done_bytes += done_bytes
        self._job.check(self._stage)
        now_s = self._job.clock.monotonic()
        if now_s - self._said_s >= _INTERVAL_S:
            self._said_s = now_s
            self._say(now_s - self._started_s)

    def _say(self, elapsed_s: float) -> None:
        rate = self._done_bytes / _MB / elapsed_s
        done = f"{self._done_bytes / _MB:,.0f}"
        if not self._total_bytes:
            self._job.say(f"{self._stage}: {done} MB, {rate:,.0f} MB/s")
            return
        fraction = min(1.0, self._done_bytes / self._total_bytes)
        self._job.say(
            f"{self._stage}: {done} of {self._total_bytes / _MB:,.0f} MB, {rate:,.0f} MB/s", fraction
        )
