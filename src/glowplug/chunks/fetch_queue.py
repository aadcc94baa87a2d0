"""Who waits for which chunk, and what to fetch next. All shared state of a fetcher, under one lock.

Promises: one flight per chunk, however many ask for it and whatever for; every asker is answered exactly
once; nothing is called while the lock is held. A flight is QUEUED until a worker takes it (or claims it along
with its neighbours), RUNNING until it is settled. Prefetches wait in a ring and are planned a slice at a
time by the worker that took them, so a prefetch of any length costs one entry here.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.fetch_flight import (
    Done,
    Flight,
    Outcome,
    Priority,
    State,
    Waiter,
    call_all,
    mark_answered,
)
from glowplug.chunks.fetch_prefetch import Prefetch
from glowplug.chunks.run import Run
from glowplug.types.clock import Clock
from glowplug.types.errors import Conflict, DeadlineExceeded, GlowplugError

MIN_RECENT = 4096
"""So many arrivals are remembered: more than come from the planning of a slice to the fetch of its end."""

MAX_AHEAD = 16
"""Read-aheads that wait; of more, the oldest is about what was read longest ago, and is given up."""


class FetchQueue:
    """See the module. Everything but :meth:`take` and :meth:`expire` is quick; any thread may call it."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._general = _Idle(self._lock)
        self._reserved = _Idle(self._lock)
        self._watched = threading.Condition(self._lock)
        self._heap: list[tuple[int, int, Flight]] = []
        self._sequence = itertools.count()
        self._prefetches: deque[Prefetch] = deque()
        self._ahead: list[tuple[int, Prefetch]] = []  # by age, the newest last
        self._flights: dict[Chunk, Flight] = {}
        self._recent: dict[Chunk, int] = {}  # what came last, by the number of its arrival
        self._arrivals = 0
        self._deadlines: deque[Waiter] = deque()  # in order: all have the same timeout
        self._is_closed = False

    def want(self, blob: RemoteBlob, index: int, chunk: Chunk, priority: Priority, done: Done) -> bool | None:
        """Wait for a chunk: True if that joins a flight there is, None (``done`` is forgotten) if closed."""
        with self._lock:
            if self._is_closed:
                return None
            flight = self._flights.get(chunk)
            is_joining = flight is not None
            if flight is None:
                flight = self._flights[chunk] = Flight(chunk, blob, index, priority, State.QUEUED)
                self._push(flight)
            is_guest = flight.state is State.RUNNING or flight.blob is not blob
            deadline_s = self._clock.monotonic() + self._timeout_s
            waiter = Waiter(done, blob, index, priority, deadline_s, is_guest)
            flight.waiters.append(waiter)
            self._watch(waiter)
            if flight.state is State.QUEUED and priority < flight.priority:
                flight.priority = priority
                self._push(flight)
            return is_joining

    def add_prefetch(self, prefetch: Prefetch) -> bool:
        """Put a prefetch (back) at the ring's end; False if the queue is closed."""
        with self._lock:
            if self._is_closed:
                return False
            self._prefetches.append(prefetch)
            self._general.wake()
            return True

    def add_ahead(self, ahead: Prefetch) -> bool:
        """Put a read-ahead before all that nobody waits for, older ones too; False if the queue is closed."""
        superseded: Prefetch | None = None
        with self._lock:
            if self._is_closed:
                return False
            if ahead.turn < 0:
                ahead.turn = next(self._sequence)
            self._ahead.append((ahead.turn, ahead))
            self._ahead.sort(key=lambda waiting: waiting[0])
            if len(self._ahead) > MAX_AHEAD:
                superseded = self._ahead.pop(0)[1]
            self._general.wake()
        if superseded is not None:
            superseded.give_up(_superseded())
        return True

    def take(self, *, reads_only: bool) -> Flight | Prefetch | None:
        """Wait for work: a flight, now RUNNING, or a prefetch to fetch a piece of. None: closed."""
        idle = self._reserved if reads_only else self._general
        with self._lock:
            while not self._is_closed:
                work = self._pop(Priority.READ) if reads_only else self._most_urgent()
                if work is not None:
                    return work
                idle.wait()
            return None

    def _most_urgent(self) -> Flight | Prefetch | None:
        flight = self._pop(Priority.READ)
        if flight is not None:
            return flight
        if self._ahead:
            return self._ahead.pop()[1]
        flight = self._pop(Priority.PREFETCH)
        if flight is None and self._prefetches:
            return self._prefetches.popleft()
        return flight

    def claim(
        self,
        blob: RemoteBlob,
        chunks: Iterable[tuple[int, Chunk]],
        spared: Priority | None,
        follower: Prefetch | None,
        looked_at: int | None = None,
    ) -> list[Flight]:
        """Begin to fetch these too, as far as nobody does: RUNNING flights that the caller must end.

        Of those that wait in the queue, what is as urgent as ``spared`` stays there, to be fetched alone.
        ``follower`` hears of all of them, whoever fetches them. What came since ``looked_at`` (see
        :attr:`arrivals`) is not claimed: it is here.
        """
        claimed = []
        here_bytes: list[int] = []
        with self._lock:
            for index, chunk in chunks:
                flight = self._flights.get(chunk)
                if flight is None:
                    if looked_at is not None and self._recent.get(chunk, 0) > looked_at:
                        here_bytes.append(chunk.size_bytes)
                        continue
                    flight = Flight(chunk, blob, index, Priority.PREFETCH, State.RUNNING)
                    self._flights[chunk] = flight
                    claimed.append(flight)
                elif flight.state is State.QUEUED and flight.priority != spared and flight.blob is blob:
                    flight.state = State.RUNNING
                    flight.index = index
                    claimed.append(flight)
                if follower is not None:
                    flight.followers.append(follower)
        if follower is not None and here_bytes:
            follower.settled(sum(here_bytes), None, chunks=len(here_bytes))
        return claimed

    @property
    def arrivals(self) -> int:
        """How many chunks have come so far: who looks what is here notes this before."""
        return self._arrivals

    def deadline_s(self, flight: Flight) -> float:
        """When nobody waits for this attempt any more."""
        with self._lock:
            deadlines_s = [waiter.deadline_s for waiter in flight.waiters if not waiter.is_answered]
            return max(deadlines_s, default=self._clock.monotonic() + self._timeout_s)

    def end_unfetched(self, flight: Flight, *, is_present: bool) -> None:
        """End a claimed flight without bytes: the chunk is on the SSD, or was not worth fetching now.

        Whoever waits for it meanwhile is answered by a flight of their own.
        """
        followers: list[Prefetch] = []
        with self._lock:
            if is_present:
                followers, flight.followers = flight.followers, []
            flight.waiters = [waiter for waiter in flight.waiters if not waiter.is_answered]
            if flight.waiters or flight.followers:
                self._requeue(flight)
            else:
                self._forget(flight)
        for follower in followers:
            follower.settled(flight.chunk.size_bytes, None)

    def settle(self, flight: Flight, outcome: Outcome) -> None:
        """End a RUNNING flight: everybody who waits is told, on this thread.

        After a failure those who had only joined it get an attempt of their own instead.
        """
        error = outcome if isinstance(outcome, GlowplugError) else None
        with self._lock:
            waiting = [waiter for waiter in flight.waiters if not waiter.is_answered]
            guests = [waiter for waiter in waiting if waiter.is_guest]
            if error is not None and guests and not self._is_closed:
                dones = mark_answered(waiter for waiter in waiting if not waiter.is_guest)
                flight.waiters = guests
                self._requeue(flight)
                followers: list[Prefetch] = []
            else:
                dones = mark_answered(waiting)
                self._forget(flight)
                followers = flight.followers
        call_all(dones, outcome)
        for follower in followers:
            follower.settled(flight.chunk.size_bytes, error)

    def settle_all(self, flights: Sequence[Flight], run: Run) -> None:
        """:meth:`settle` many that came as a run, in its order, and were kept, as far as there was room."""
        calls: list[tuple[list[Done], Outcome]] = []
        followed: dict[Prefetch, list[int]] = {}
        with self._lock:
            for number, flight in enumerate(flights):
                if flight.waiters:
                    waiting = (waiter for waiter in flight.waiters if not waiter.is_answered)
                    calls.append((mark_answered(waiting), run.body(number)))
                self._forget(flight)
                for follower in flight.followers:
                    followed.setdefault(follower, []).append(flight.chunk.size_bytes)
            self._note_arrivals(flights)
        for dones, outcome in calls:
            call_all(dones, outcome)
        for follower, sizes in followed.items():
            follower.settled(sum(sizes), None, chunks=len(sizes))

    def expire(self) -> int | None:
        """Wait until somebody has waited too long, tell them, and return how many; None: closed."""
        with self._lock:
            while not self._is_closed:
                overdue = self._take_overdue()
                if overdue:
                    dones = mark_answered(overdue)
                    break
                left_s = self._deadlines[0].deadline_s - self._clock.monotonic() if self._deadlines else None
                self._watched.wait(left_s)
            else:
                return None
        call_all(dones, _too_late(self._timeout_s))
        return len(dones)

    def give_up(self, blob: RemoteBlob, error: GlowplugError) -> int:
        """Whoever waits for a chunk as part of ``blob`` gets ``error``, now; how many that were."""
        with self._lock:
            dones = mark_answered(
                waiter
                for flight in self._flights.values()
                for waiter in flight.waiters
                if waiter.blob is blob and not waiter.is_answered
            )
        call_all(dones, error)
        return len(dones)

    def close(self, error: GlowplugError) -> None:
        """Hand out no more work; whoever waits for what is not in flight gets ``error``, now."""
        with self._lock:
            self._is_closed = True
            for condition in (self._general, self._reserved):
                condition.wake_all()
            self._watched.notify_all()
            prefetches = [*self._prefetches, *(ahead for _, ahead in self._ahead)]
            self._prefetches.clear()
            self._ahead.clear()
            queued = [flight for flight in self._flights.values() if flight.state is State.QUEUED]
        for prefetch in prefetches:
            prefetch.give_up(error)
        self._abandon(queued, error)

    def abandon(self, error: GlowplugError) -> None:
        """After :meth:`close`: whoever still waits, for whatever, gets ``error``."""
        with self._lock:
            flights = list(self._flights.values())
        self._abandon(flights, error)

    def _abandon(self, flights: Iterable[Flight], error: GlowplugError) -> None:
        with self._lock:
            dones = mark_answered(
                waiter for flight in flights for waiter in flight.waiters if not waiter.is_answered
            )
            followers = [follower for flight in flights for follower in flight.followers]
        call_all(dones, error)
        for follower in followers:
            follower.give_up(error)

    def counts(self) -> tuple[int, int]:
        """Flights that are queued, and that are running."""
        with self._lock:
            running = sum(flight.state is State.RUNNING for flight in self._flights.values())
            return len(self._flights) - running, running

    def _push(self, flight: Flight) -> None:
        heapq.heappush(self._heap, (flight.priority, next(self._sequence), flight))
        if not self._general.wake() and flight.priority is Priority.READ:
            self._reserved.wake()

    def _pop(self, least: Priority) -> Flight | None:
        while self._heap and self._heap[0][0] <= least:
            priority, _, flight = heapq.heappop(self._heap)
            if flight.state is not State.QUEUED or flight.priority != priority:
                continue  # it was claimed, or became more urgent and has an entry further up
            if flight.followers or any(not waiter.is_answered for waiter in flight.waiters):
                flight.state = State.RUNNING
                return flight
            self._forget(flight)
        return None

    def _requeue(self, flight: Flight) -> None:
        """A new attempt, for the first who waits and from where they said it lies."""
        flight.state = State.QUEUED
        flight.priority = min((waiter.priority for waiter in flight.waiters), default=Priority.PREFETCH)
        if flight.waiters:
            flight.blob, flight.index = flight.waiters[0].blob, flight.waiters[0].index
        for waiter in flight.waiters:
            waiter.is_guest = waiter.blob is not flight.blob
        self._push(flight)

    def _forget(self, flight: Flight) -> None:
        flight.state = State.SETTLED
        del self._flights[flight.chunk]

    def _note_arrivals(self, flights: Sequence[Flight]) -> None:
        if len(self._recent) > 2 * MIN_RECENT:
            self._recent = dict(itertools.islice(self._recent.items(), MIN_RECENT, None))
        for flight in flights:
            self._arrivals += 1
            self._recent[flight.chunk] = self._arrivals

    def _watch(self, waiter: Waiter) -> None:
        while self._deadlines and self._deadlines[0].is_answered:
            self._deadlines.popleft()
        self._deadlines.append(waiter)
        if len(self._deadlines) == 1:
            self._watched.notify()

    def _take_overdue(self) -> list[Waiter]:
        now_s = self._clock.monotonic()
        overdue = []
        while self._deadlines and (self._deadlines[0].is_answered or self._deadlines[0].deadline_s <= now_s):
            waiter = self._deadlines.popleft()
            if not waiter.is_answered:
                overdue.append(waiter)
        return overdue


class _Idle:
    """Workers without work. Counts those that were not woken yet, so that no wake-up goes to one twice."""

    def __init__(self, lock: threading.Lock) -> None:
        self._condition = threading.Condition(lock)
        self._waiting = 0

    def wait(self) -> None:
        self._waiting += 1
        self._condition.wait()

    def wake(self) -> bool:
        if not self._waiting:
            return False
        self._waiting -= 1
        self._condition.notify()
        return True

    def wake_all(self) -> None:
        self._waiting = 0
        self._condition.notify_all()


def _superseded() -> Conflict:
    return Conflict("Too much was read since.", remedy="Nothing: what is read is fetched when it is.")


def _too_late(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"A chunk did not arrive within {timeout_s:g} s.",
        remedy="Look at the zone's and the region's servers, and at the blob daemon's log.",
        stage="fetch",
    )
