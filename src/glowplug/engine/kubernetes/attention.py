"""Apps that nobody attends to: kopf is told of them again, and one that hears nothing at all is ended.

kopf acts on what the API server tells it. An event can be lost: what fails while one is worked on (a write
that the API server refuses for the moment) is not tried again before the next event, a stream may be silent
without having ended, and resources that were not served yet when the operator began are never looked for
again. So all Apps are compared every few seconds with what was handled of them. A write that changes nothing
makes an event; an operator that does not hear those either is of no use, and Kubernetes starts it again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from glowplug.engine.kubernetes.counters import OperatorCounters
from glowplug.engine.kubernetes.kopf_memory import STORED_BELOW, DigestStorage
from glowplug.engine.kubernetes.names import APPS
from glowplug.engine.kubernetes.object_api import Object, ObjectApi
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, NotFound

log = logging.getLogger(__name__)

REMIND_AFTER_S = 10.0
REMIND_EVERY_S = 10.0
DEAF_AFTER_S = 120.0
"""Longer than kopf takes to begin on a busy machine, and to reach an API server that is back."""
_LATE_S = 5.0
_LONGEST_GAP_S = 10.0
"""Time in which nobody could look (the API server was away) does not count."""
REMINDER_ANNOTATION = f"{STORED_BELOW}/reminded"


class Deaf(Exception):
    """The operator is not told of changes any more: it is to be started again."""


class Attention:
    """Handlers say what they are at, from any thread; :meth:`look` is for one thread."""

    def __init__(self, api: ObjectApi, clock: Clock, counters: OperatorCounters) -> None:
        self._api = api
        self._clock = clock
        self._counters = counters
        self._handled = DigestStorage()
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._due_at_s: dict[str, float] = {}
        self._untended_s: dict[str, float] = {}
        self._reminded_at_s: dict[str, float] = {}
        self._looked_at_s: float | None = None

    @contextmanager
    def paid_to(self, name: str) -> Iterator[None]:
        """Somebody works on this App."""
        with self._lock:
            self._busy.add(name)
            self._due_at_s.pop(name, None)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)

    def again(self, name: str, after_s: float) -> None:
        """It was not done, and is tried again after this time."""
        with self._lock:
            self._due_at_s[name] = self._clock.monotonic() + after_s

    def look(self, bodies: Sequence[Object]) -> None:
        """Remind of what waits unattended. Raises Deaf when that is of no use."""
        now_s = self._clock.monotonic()
        before_s = now_s if self._looked_at_s is None else self._looked_at_s
        passed_s, self._looked_at_s = min(now_s - before_s, _LONGEST_GAP_S), now_s
        waiting = {body["metadata"]["name"]: body for body in bodies if not self._handled.is_handled(body)}
        with self._lock:
            tended = self._busy | {name for name, due_s in self._due_at_s.items() if now_s < due_s + _LATE_S}
            is_at_work = bool(self._busy)
            self._due_at_s = {name: due_s for name, due_s in self._due_at_s.items() if name in waiting}
        self._untended_s = {
            name: self._untended_s.get(name, -passed_s) + passed_s for name in waiting.keys() - tended
        }
        self._reminded_at_s = {
            name: at_s for name, at_s in self._reminded_at_s.items() if name in self._untended_s
        }
        for name, untended_s in sorted(self._untended_s.items()):
            # Who is at work on many may come to this one late, and has been told.
            if untended_s >= DEAF_AFTER_S and not is_at_work:
                raise Deaf(f"App {name} waits for {untended_s:.0f} s, and kopf hears of nothing")
            if untended_s >= REMIND_AFTER_S:
                self._remind(waiting[name], now_s)

    def _remind(self, body: Object, now_s: float) -> None:
        name = body["metadata"]["name"]
        if now_s - self._reminded_at_s.get(name, -REMIND_EVERY_S) < REMIND_EVERY_S:
            return
        self._reminded_at_s[name] = now_s
        log.warning("app %s waits, and nobody attends to it: it is told of again", name)
        self._counters.reminders.inc()
        mark = {"metadata": {"annotations": {REMINDER_ANNOTATION: f"{self._clock.wall():.3f}"}}}
        try:
            self._api.patch(APPS, name, mark, body["metadata"].get("namespace"))
        except NotFound:
            pass
        except GlowplugError as problem:
            log.warning("app %s cannot be told of again: %s", name, problem)
            self._untended_s[name] = 0.0  # no event was made: that says nothing of kopf
