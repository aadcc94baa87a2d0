"""The operator's own rounds, beside what the API server tells it: each job in its time, in one thread.

A job that fails is tried again, later and later; the others go on. An error of ours in a job (a bug) ends the
thread, and whoever watches it ends the process: it is started again, with nothing in its head.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError

log = logging.getLogger(__name__)

MAX_WAIT_S = 30.0
_SLOW_FACTOR = 4.0
"""A round is followed by a pause of this many times what it took: a slow one is not repeated at once."""


@dataclass
class Job:
    """Something to do every so often."""

    name: str
    every_s: float
    work: Callable[[], None]
    failures: int = field(default=0, init=False)
    due_at_s: float = field(default=float("-inf"), init=False)


class Rounds:
    """Start it, and :meth:`stop` it. ``is_over`` is set when the thread has ended, by a bug too."""

    def __init__(self, jobs: Sequence[Job], clock: Clock, counters: OperatorCounters) -> None:
        self.is_over = threading.Event()
        self.bug: BaseException | None = None
        self._jobs = jobs
        self._clock = clock
        self._counters = counters
        self._told_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator-rounds", daemon=True)

    def start(self) -> None:
        """Begin, with all jobs at once."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """After the job that is under way."""
        self._told_to_stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def once(self) -> float:
        """Do what is due. Returns after how many seconds something is due again."""
        for job in self._jobs:
            if self._clock.monotonic() >= job.due_at_s and not self._told_to_stop.is_set():
                self._do(job)
        return max(0.0, min(job.due_at_s for job in self._jobs) - self._clock.monotonic())

    def _run(self) -> None:
        try:
            while not self._told_to_stop.wait(self.once()):
                pass
        except BaseException as bug:
            self.bug = bug
            log.critical("a round of the operator broke", exc_info=bug)
        finally:
            self.is_over.set()

    def _do(self, job: Job) -> None:
        began_at_s = self._clock.monotonic()
        try:
            job.work()
        except GlowplugError as error:
            job.failures += 1
            self._counters.failures.labels(job.name).inc()
            if job.failures == 1:
                log.warning("%s: %s", job.name, error)
        else:
            if job.failures:
                log.info("%s: all is well again, after %d failures", job.name, job.failures)
            job.failures = 0
            self._counters.last_success.labels(job.name).set(self._clock.wall())
        took_s = self._clock.monotonic() - began_at_s
        wait_s = max(job.every_s * 2.0 ** min(job.failures, 10), took_s * _SLOW_FACTOR)
        job.due_at_s = self._clock.monotonic() + min(wait_s, max(MAX_WAIT_S, job.every_s))
