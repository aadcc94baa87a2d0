"""Warnings that may come by the thousand, said a few times a minute, with the number of those left out."""

from __future__ import annotations

import logging
import threading

from glowplug.types.clock import Clock


class LimitedLog:
    """Passes on up to ``burst`` warnings per period. Safe to use from many threads."""

    def __init__(self, log: logging.Logger, clock: Clock, *, burst: int = 10, period_s: float = 60.0) -> None:
        self._log = log
        self._clock = clock
        self._burst = burst
        self._period_s = period_s
        self._lock = threading.Lock()
        self._period_start_s = clock.monotonic()
        self._said = 0

    def warning(self, message: str, *arguments: object) -> None:
        """As of a logger; dropped and counted when there were too many."""
        with self._lock:
            dropped = self._start_period()
            self._said += 1
            is_said = self._said <= self._burst
        if dropped:
            self._log.warning("%d more warnings like these were left out", dropped)
        if is_said:
            self._log.warning(message, *arguments)

    def _start_period(self) -> int:
        now_s = self._clock.monotonic()
        if now_s - self._period_start_s < self._period_s:
            return 0
        dropped = max(0, self._said - self._burst)
        self._period_start_s = now_s
        self._said = 0
        return dropped
