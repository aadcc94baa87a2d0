"""The line of requests of one app, and which replica works on which: the hot loop of the simulator.

Each replica works on at most ``limit`` requests at once; a request goes to the ready replica with the fewest
in flight, as the router's do, or waits its turn. As there, who is to spare gets requests only while all
others have ``room`` or more of them. Who waits for longer than ``hold_s`` is lost. The requests of a replica
that is lost are sent again, the oldest first, as the router sends them.

Plain lists and one heap: docs/simulator.md has the speed. Vectorising it would need to know in advance who
waits, which is what is simulated.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heapify, heappop, heappush, heapreplace

from glowplug.simulator.traces import Trace

_SPARE = 1 << 20
"""Added to the count of a replica that is to spare, .."""
_LEAVING = 1 << 40
""".. or takes no more requests: so that the hot loop needs no further look."""


class RequestLine:
    """All requests of one app. :meth:`advance` first, whatever is asked or changed after it."""

    def __init__(self, trace: Trace, limit: int, hold_s: float, room: int | None = None) -> None:
        self._arrivals_s: list[float] = [*trace.arrivals_s.tolist(), math.inf]
        self._durations_s: list[float] = trace.durations_s.tolist()
        self._limit = limit
        self._room = limit if room is None else min(room, limit)
        self._hold_s = hold_s
        self._next = 0
        self._busy: list[tuple[float, int, int]] = []  # a heap: end, replica, request
        self._waiting: deque[int] = deque()
        self._counts: list[int] = []  # by replica: in flight
        self._levels: list[list[int]] = [[] for _ in range(limit)]
        # Replicas by count. A replica that moved on leaves its entry behind: it counts only where the counts
        # say the same.
        self._low = 0
        self._spares: set[int] = set()
        self._spare_levels: list[list[int]] = [[] for _ in range(limit)]
        self._left: set[int] = set()  # who leaves and still works
        self._busy_since_s: list[float] = []
        self._serving_s: list[float] = []
        self._peak = 0
        self.started_s: list[float] = [math.nan] * len(self._durations_s)
        """By request: when it began for the last time; NaN: not (yet)."""
        self.lost = 0
        self.retried = 0
        self.last_activity_s: float | None = None
        """When the last request waited or ended."""

    # -- what is there -------------------------------------------------------------------------------------

    @property
    def next_arrival_s(self) -> float:
        """Of the first request that has not come yet; infinite when there is none."""
        return self._arrivals_s[self._next]

    @property
    def ended(self) -> int:
        """Requests that were answered or lost."""
        return self._next - len(self._busy) - len(self._waiting)

    @property
    def waiting(self) -> int:
        """Requests that no replica works on."""
        return len(self._waiting)

    @property
    def leaving(self) -> int:
        """Requests in flight in replicas that take no more."""
        self._left = {replica for replica in self._left if self._counts[replica] > _LEAVING}
        return sum(self._counts[replica] - _LEAVING for replica in self._left)

    @property
    def in_flight(self) -> int:
        """Requests that any replica works on."""
        return len(self._busy)

    @property
    def is_settled(self) -> bool:
        """Every request has come and is answered or lost."""
        return not self._busy and not self._waiting and self._next == len(self._durations_s)

    def take_peak(self) -> int:
        """The most that waited or were in flight since the last look."""
        peak, self._peak = self._peak, len(self._busy) + len(self._waiting)
        return peak

    def is_idle(self, replica: int) -> bool:
        """It works on nothing."""
        return self._counts[replica] in (0, _SPARE, _LEAVING)

    def in_flight_of(self, replica: int) -> int:
        """Requests that it works on."""
        return self._counts[replica] % _SPARE

    @property
    def spares(self) -> frozenset[int]:
        """Who is to spare."""
        return frozenset(self._spares)

    def serving_s(self, replica: int, now_s: float) -> float:
        """How long it had something to work on, until now."""
        running_s = 0.0 if self.is_idle(replica) else now_s - self._busy_since_s[replica]
        return self._serving_s[replica] + running_s

    # -- replicas ------------------------------------------------------------------------------------------

    def add(self, now_s: float) -> int:
        """A replica is ready: it takes what waits. Returns its number."""
        replica = len(self._counts)
        self._counts.append(0)
        self._busy_since_s.append(now_s)
        self._serving_s.append(0.0)
        self._offer(replica)
        self._dispatch(now_s)
        return replica

    def leave(self, replica: int) -> None:
        """It gets no more requests."""
        if self._counts[replica] < _LEAVING:
            self.spare(replica, is_spare=False)
            self._counts[replica] += _LEAVING
            self._left.add(replica)

    def spare(self, replica: int, *, is_spare: bool) -> None:
        """It gets requests only while no other has room; or is as the others again."""
        if self._counts[replica] >= _LEAVING or is_spare == (replica in self._spares):
            return
        if is_spare:
            self._counts[replica] += _SPARE
            self._spares.add(replica)
        else:
            self._counts[replica] -= _SPARE
            self._spares.remove(replica)
        self._offer(replica)

    def come_back(self, replica: int, now_s: float) -> None:
        """One that had left takes requests again."""
        if self._counts[replica] >= _LEAVING:
            self._counts[replica] -= _LEAVING
            self._offer(replica)
            self._dispatch(now_s)

    def lose(self, replica: int, now_s: float) -> None:
        """It is gone; what it worked on is sent again."""
        self._serving_s[replica] = self.serving_s(replica, now_s)
        broken = sorted(request for _, owner, request in self._busy if owner == replica)
        self._counts[replica] = _LEAVING
        self._spares.discard(replica)
        if not broken:
            return
        self._busy = [entry for entry in self._busy if entry[1] != replica]
        heapify(self._busy)
        for request in broken:
            self.started_s[request] = math.nan
        self._waiting.extendleft(reversed(broken))
        self.retried += len(broken)
        self._dispatch(now_s)

    def give_up_late(self, now_s: float) -> None:
        """Who has waited for too long is lost. In order of arrival, but for those that were sent again, which
        are older and in front.
        """
        while self._waiting and self._is_late(self._waiting[0], now_s):
            self._waiting.popleft()
            self.lost += 1

    # -- time ----------------------------------------------------------------------------------------------

    def advance(self, to_s: float) -> None:
        """Everything that happens until then."""
        arrivals, durations, started = self._arrivals_s, self._durations_s, self.started_s
        busy, waiting = self._busy, self._waiting
        counts, levels, limit, low = self._counts, self._levels, self._limit, self._low
        room, spares = self._room, self._spares
        request, peak, last_s = self._next, self._peak, self.last_activity_s
        while True:
            arrival = arrivals[request]
            if busy and busy[0][0] <= arrival:
                ended, replica, _ = busy[0]
                if ended > to_s:
                    break
                last_s = ended
                count = counts[replica]
                if waiting and count < _LEAVING:
                    following = self._next_waiting(ended)
                    if following >= 0:
                        started[following] = ended
                        heapreplace(busy, (ended + durations[following], replica, following))
                        continue
                heappop(busy)
                count -= 1
                counts[replica] = count
                if count < limit:
                    levels[count].append(replica)
                    if count < low:
                        low = count
                elif count < _LEAVING:
                    self._offer(replica)
                if not count or count in (_SPARE, _LEAVING):
                    self._serving_s[replica] += ended - self._busy_since_s[replica]
                continue
            if arrival > to_s:
                break
            chosen = -1
            while low < limit:
                level = levels[low]
                while level:
                    candidate = level.pop()
                    if counts[candidate] == low:
                        chosen = candidate
                        break
                if chosen >= 0:
                    break
                low += 1
            if spares and low >= room:
                chosen = self._spare_instead(chosen, low)
            if chosen < 0:
                waiting.append(request)
                last_s = arrival
            else:
                count = counts[chosen]
                if not count or count == _SPARE:
                    self._busy_since_s[chosen] = arrival
                count += 1
                counts[chosen] = count
                if count < limit:
                    levels[count].append(chosen)
                elif count > _SPARE:
                    self._offer(chosen)
                started[request] = arrival
                heappush(busy, (arrival + durations[request], chosen, request))
            request += 1
            concurrency = len(busy) + len(waiting)
            if concurrency > peak:
                peak = concurrency
        self._next, self._peak, self._low, self.last_activity_s = request, peak, low, last_s

    def _next_waiting(self, now_s: float) -> int:
        """Who is next in the line; -1 if those who wait are all late."""
        self.give_up_late(now_s)
        return self._waiting.popleft() if self._waiting else -1

    def _is_late(self, request: int, now_s: float) -> bool:
        return self._arrivals_s[request] + self._hold_s < now_s

    def _offer(self, replica: int) -> None:
        """It can take a request, if it is not full and does not leave."""
        count = self._counts[replica]
        if count < self._limit:
            self._levels[count].append(replica)
            self._low = min(self._low, count)
        elif _SPARE <= count < _SPARE + self._limit:
            self._spare_levels[count - _SPARE].append(replica)

    def _spare_instead(self, chosen: int, count: int) -> int:
        """Somebody to spare who has less to do than ``chosen``, which has ``count``; else that one."""
        for fewer in range(count):
            level = self._spare_levels[fewer]
            while level:
                candidate = level.pop()
                if self._counts[candidate] == _SPARE + fewer:
                    if chosen >= 0:
                        self._levels[count].append(chosen)
                    return candidate
        return chosen

    def _dispatch(self, now_s: float) -> None:
        """Give what waits to whoever can take it."""
        while self._waiting:
            chosen = self._least_busy()
            request = self._next_waiting(now_s) if chosen >= 0 else -1
            if request < 0:
                if chosen >= 0:
                    self._offer(chosen)
                return
            if self.is_idle(chosen):
                self._busy_since_s[chosen] = now_s
            self._counts[chosen] += 1
            self._offer(chosen)
            self.started_s[request] = now_s
            heappush(self._busy, (now_s + self._durations_s[request], chosen, request))

    def _least_busy(self) -> int:
        """Who takes the next request, taken off its level; -1 if nobody can."""
        chosen = -1
        while self._low < self._limit and chosen < 0:
            level = self._levels[self._low]
            while level and chosen < 0:
                candidate = level.pop()
                if self._counts[candidate] == self._low:
                    chosen = candidate
            self._low += chosen < 0
        if self._spares and self._low >= self._room:
            return self._spare_instead(chosen, self._low)
        return chosen
