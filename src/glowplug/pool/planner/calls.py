"""Calls to providers, in the background: none of them can hold up a step, and none is made twice at once.

A few threads for each cloud. A call that hangs beyond its deadline is left behind, thread and all, and counts
as one that nobody knows about; another thread takes its place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glowplug.types.errors import DeadlineExceeded

Key = tuple[str, str]
"""What is called, and for which order or machine."""
_WORKERS = 4
_GRACE = 1.5


@dataclass(frozen=True)
class Ended:
    """A call that is over: what it returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


@dataclass
class _Call:
    key: Key
    run: Callable[[], Any]
    started_at_s: float | None = None
    ended: Ended | None = None


class CallLane:
    """The calls to one provider. ``monotonic`` is the clock that deadlines are held against; a call that
    takes more than one and a half times ``deadline_s`` is left behind. ``on_end`` is called by a call's
    thread. At most ``workers`` are made at once.
    """

    def __init__(
        self,
        name: str,
        deadline_s: float,
        monotonic: Callable[[], float],
        on_end: Callable[[Key], None] = lambda _key: None,
        workers: int = _WORKERS,
    ) -> None:
        self._name = name
        self._deadline_s = deadline_s
        self._monotonic = monotonic
        self._on_end = on_end
        self._most_workers = workers
        self._changed = threading.Condition()
        self._calls: dict[Key, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._workers = 0
        self._is_closed = False
        self.left_behind = 0
        """Calls that hung, ever."""

    def submit(self, key: Key, run: Callable[[], Any], is_urgent: bool = False) -> None:
        """Make the call soon, unless the same one is waiting or under way; urgent ones before others."""
        with self._changed:
            if key in self._calls or self._is_closed:
                return
            call = self._calls[key] = _Call(key, run)
            if is_urgent:
                self._waiting.appendleft(call)
            else:
                self._waiting.append(call)
            self._staff()
            self._changed.notify_all()

    def wait_for(self, key: Key, timeout_s: float) -> Ended | None:
        """Wait until the call is over, and take how it ended; None if it is not, or was never made."""
        with self._changed:
            call = self._calls.get(key)
            if call is None:
                return None
            self._changed.wait_for(lambda: call.ended is not None, timeout_s)
            if call.ended is not None:
                del self._calls[key]
            return call.ended

    def collect(self) -> dict[Key, Ended]:
        """Every call that ended since the last time; those that hang end here."""
        with self._changed:
            now_s = self._monotonic()
            for call in list(self._calls.values()):
                if call.ended is None and call.started_at_s is not None:
                    hung_s = now_s - call.started_at_s
                    if hung_s > _GRACE * self._deadline_s:
                        self._leave_behind(call, hung_s)
            over = {key: call.ended for key, call in self._calls.items() if call.ended is not None}
            for key in over:
                del self._calls[key]
            return over

    @property
    def open_keys(self) -> set[Key]:
        """Calls that wait or are under way."""
        with self._changed:
            return {key for key, call in self._calls.items() if call.ended is None}

    def close(self) -> None:
        """Make no more calls. Those under way are not waited for: what they do is asked about next time."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _leave_behind(self, call: _Call, hung_s: float) -> None:
        call.ended = Ended(
            error=DeadlineExceeded(
                f"{self._name} has not answered for {hung_s:.0f} s.",
                remedy="Is it up? It is asked again.",
                stage=call.key[0],
            )
        )
        self.left_behind += 1
        self._workers -= 1
        self._staff()

    def _staff(self) -> None:
        if self._waiting and self._workers < self._most_workers:
            self._workers += 1
            threading.Thread(target=self._work, name=f"pool-{self._name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting or self._is_closed:
                    self._workers -= 1
                    return
                call = self._waiting.popleft()
                call.started_at_s = self._monotonic()
            ended = _run(call.run)
            with self._changed:
                if call.ended is not None:
                    return  # it was left behind, and so is this thread
                call.ended = ended
                self._changed.notify_all()
            self._on_end(call.key)


def _run(run: Callable[[], Any]) -> Ended:
    try:
        return Ended(run())
    except Exception as error:  # noqa: BLE001 - what a provider raises is its answer
        return Ended(error=error)
