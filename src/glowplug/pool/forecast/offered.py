"""What requests ask for, whether or not there was room for them; and how little is enough if they may wait.

Requests that wait for room make concurrency grow for as long as room is lacking, whatever it is that they
need: so a count of them is no demand. Their work is: how many came, times how long a replica works on one.

Of a line that is worked off in order nobody waits longer than ``wait_s`` if, whichever span that ends now is
looked at, there is room for the work that came in it within the span and ``wait_s`` more (Cruz, "A calculus
for network delay", 1991). The least room for which that holds is the most of ``work / (span + wait_s)``.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPANS_S = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0, 144.0, 233.0, 377.0)
"""Between two of them the room that is needed differs by less than it does from replica to replica."""
_FEW = 10.0
_BELIEVED_SERVICE_S = 30.0
"""Of a request to a model, before any has ended: rather too long."""
_HALF_LIFE_S = 600.0
_KEPT_READINGS = 1_000
_BEFORE_S = 1.0


class Trust(Enum):
    """In a reading of how much room there must be."""

    GUESS = auto()
    """A line waits, and nobody knows for how long a replica works on it: to be put right by what is known
    later.
    """
    COUNT = auto()
    """Nobody waits: who is there has room."""
    KNOWN = auto()


def put_right(guess: float, known: float) -> float:
    """What a step needed whose reading was a guess, as far as a later one that is known tells."""
    return min(guess, max(known, 1.0))


def patient_need(work_s: Floats, tick_s: float, wait_s: float) -> Floats:
    """Requests at once for which there must be room in each tick, so that those that come may wait for
    ``wait_s``. ``work_s``: the seconds that replicas work on what came in each tick.
    """
    total = np.cumsum(work_s)
    need = np.zeros(len(work_s))
    for span_s in SPANS_S:
        ticks = max(1, round(span_s / tick_s))
        came = total.copy()
        if ticks < len(total):
            came[ticks:] -= total[:-ticks]
        np.maximum(need, came / (ticks * tick_s + wait_s), out=need)
    return need


class OfferedLoad:
    """Of one class of demand, from counts that are read every second or so.

    ``service_s`` is how long a replica works on a request: seconds of requests in flight over requests that
    ended, of the last ten minutes mostly. While it is not known and a line waits for the very first replica,
    half a minute is believed; such readings are guesses, and told apart.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._times_s: list[float] = []
        self._came: list[float] = []
        self._last: tuple[float, float, float] | None = None
        self._busy_s = 0.0
        self._ended = 0.0
        self._waiting = 0.0
        self._service_s: float | None = None

    @property
    def service_s(self) -> float | None:
        """Seconds; None as long as too few have ended to say. Once known it is remembered."""
        return self._service_s

    @property
    def trust(self) -> Trust:
        """In the last reading."""
        if self._service_s is not None:
            return Trust.KNOWN
        return Trust.GUESS if self._waiting else Trust.COUNT

    @property
    def waiting_work_s(self) -> float:
        """Seconds that a replica would work on all that wait."""
        return self._waiting * (self._service_s or _BELIEVED_SERVICE_S)

    def read(self, at_s: float, in_flight: float, waiting: float, ended: float) -> float:
        """How many requests there must be room for at once. ``ended``: of all, since counting began; if it
        falls, counting began anew.
        """
        came = self._take_in(at_s, in_flight, waiting, ended)
        self._waiting = waiting
        if self._service_s is None and not waiting:
            return in_flight
        service_s = self._service_s or _BELIEVED_SERVICE_S
        # Who would be in flight now if there had been room for all.
        at_once = in_flight if not waiting else max(in_flight, came - self._came_until(at_s - service_s))
        patient = max(
            (came - self._came_until(at_s - span_s)) * service_s / (span_s + self._wait_s)
            for span_s in SPANS_S
        )
        return max(min(patient, at_once), min(at_once, 1.0))

    def _take_in(self, at_s: float, in_flight: float, waiting: float, ended: float) -> float:
        """How many have come, those included who were there at the first reading."""
        if self._times_s and at_s < self._times_s[-1]:  # the clock was set back
            self._times_s, self._came = [], []
        if not self._times_s:
            self._note(at_s - _BEFORE_S, 0.0)
        then_in_flight, then_waiting, then_ended = self._last or (0.0, 0.0, ended)
        elapsed_s = at_s - self._times_s[-1] if self._last else 0.0
        left = ended - then_ended if ended >= then_ended else ended
        kept = 0.5 ** (elapsed_s / _HALF_LIFE_S)
        self._busy_s = kept * self._busy_s + elapsed_s * (in_flight + then_in_flight) / 2
        self._ended = kept * self._ended + left
        if self._ended >= _FEW:
            self._service_s = self._busy_s / self._ended
        elif self._service_s is not None:
            # What is remembered says nothing of requests that have taken longer already.
            self._service_s = max(self._service_s, self._busy_s / _FEW)
        arrived = left + in_flight + waiting - then_in_flight - then_waiting
        self._note(at_s, self._came[-1] + max(arrived, 0.0))
        self._last = (in_flight, waiting, ended)
        return self._came[-1]

    def _note(self, at_s: float, came: float) -> None:
        self._times_s.append(at_s)
        self._came.append(came)
        if len(self._times_s) > 2 * _KEPT_READINGS:
            del self._times_s[:-_KEPT_READINGS], self._came[:-_KEPT_READINGS]

    def _came_until(self, at_s: float) -> float:
        """By the last reading that is not younger; of before the first nothing is known."""
        return self._came[max(bisect_right(self._times_s, at_s) - 1, 0)]
