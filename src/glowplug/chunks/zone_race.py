"""One read that several may answer: the first whole answer counts, and whoever loses is told to stop.

The thread that wants the bytes asks the first candidate itself, so an answer in time costs no hand-over
between threads. If a candidate fails, the next is asked at once; if one is merely slow, an alarm starts the
next beside it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from glowplug.types.clock import Clock
from glowplug.types.errors import DeadlineExceeded, GlowplugError

Result = TypeVar("Result")
Prize = TypeVar("Prize", covariant=True)


class Candidate(Protocol[Prize]):
    """Somebody to ask. Asked once, by one thread; called off by any."""

    @property
    def received_bytes(self) -> int:
        """What has come of the answer so far; 0 if that is not known."""
        ...

    def run(self, deadline_s: float) -> Prize:
        """The answer. Raises a GlowplugError by the deadline at the latest."""
        ...

    def cancel(self) -> None:
        """End :meth:`run` soon, if that can be done."""
        ...

    def lost(self) -> None:
        """Somebody who was asked later was faster. Comes before :meth:`cancel`."""
        ...


class Race(Generic[Result]):
    """The candidates for one read, each drawn from the iterator when its turn comes."""

    def __init__(self, candidates: Iterator[Candidate[Result]], deadline_s: float, clock: Clock) -> None:
        self._waiting = candidates
        self._running: list[Candidate[Result]] = []
        self._deadline_s = deadline_s
        self._clock = clock
        self._changed = threading.Condition()
        self._won: list[Result] = []
        self._problems: list[GlowplugError] = []
        self._is_exhausted = False

    def run(self) -> Result:
        """The first answer. Raises what the candidates raised once all have failed, or DeadlineExceeded."""
        self._ask_in_turn()
        with self._changed:
            while not self._won and self._running:
                if not self._changed.wait(max(0.0, self._deadline_s - self._clock.monotonic())):
                    break
            for candidate in self._running:
                candidate.cancel()
            if self._won:
                return self._won[0]
            raise self._problems[-1] if self._problems else _nobody()

    @property
    def is_over(self) -> bool:
        """It is decided, or there is nobody left to ask."""
        return bool(self._won) or self._is_exhausted

    @property
    def received_bytes(self) -> int:
        """What has come so far from all who are being asked."""
        with self._changed:
            return sum(candidate.received_bytes for candidate in self._running)

    def join(self) -> None:
        """Ask the next candidate beside those who are being asked; for another thread than :meth:`run`'s."""
        self._ask_in_turn()

    def _ask_in_turn(self) -> None:
        while (candidate := self._next()) is not None:
            try:
                result = candidate.run(self._deadline_s)
            except GlowplugError as problem:
                self._problems.append(problem)
                self._leave(candidate)
            except BaseException:
                self._leave(candidate)
                raise
            else:
                self._answered(candidate, result)
                return

    def _next(self) -> Candidate[Result] | None:
        with self._changed:
            if self._won or self._clock.monotonic() >= self._deadline_s:
                return None
            candidate = next(self._waiting, None)
            if candidate is None:
                self._is_exhausted = True
            else:
                self._running.append(candidate)
            return candidate

    def _leave(self, candidate: Candidate[Result]) -> None:
        with self._changed:
            if candidate in self._running:
                self._running.remove(candidate)
            self._changed.notify_all()

    def _answered(self, candidate: Candidate[Result], result: Result) -> None:
        with self._changed:
            if self._won:
                return
            self._won.append(result)
            asked, self._running = self._running, []
            self._changed.notify_all()
        turn = asked.index(candidate)
        for earlier in asked[:turn]:
            earlier.lost()
        for loser in asked[:turn] + asked[turn + 1 :]:
            loser.cancel()


class Alarm:
    """Calls something quick after a while. One thread for all calls."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._is_closed = False
        self._has_started = False

    def set(self, after_s: float, call: Callable[[], None]) -> None:
        """``call`` is called ``after_s`` from now."""
        with self._changed:
            if self._is_closed:
                return
            entry = (self._clock.monotonic() + after_s, next(self._sequence), call)
            heapq.heappush(self._due, entry)
            if not self._has_started:
                self._has_started = True
                threading.Thread(target=self._ring, name=self._name, daemon=True).start()
            if self._due[0] is entry:
                self._changed.notify()

    def close(self) -> None:
        """Nothing more is called. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._due.clear()
            self._changed.notify()

    def _ring(self) -> None:
        while (call := self._next()) is not None:
            call()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._is_closed:
                left_s = self._due[0][0] - self._clock.monotonic() if self._due else None
                if left_s is not None and left_s <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left_s)
            return None


def _nobody() -> DeadlineExceeded:
    return DeadlineExceeded(
        "Nobody answered in time.", remedy="Look at the zone's servers and the network.", stage="zone"
    )
