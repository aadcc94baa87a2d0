"""Gets chunks that are not on this machine: each once, verified, kept on the SSD, readers first.

A fetcher has a fixed number of workers, each busy with one request at a time, so its connections, threads and
bytes in flight (a range of a prefetch a worker) are bounded whatever is asked of it. Some workers serve
nothing but reads: a reader that waits on the kernel never waits for a prefetch to finish. Whoever asks is
answered exactly once, within the timeout, with the chunk's bytes or an error, however the tiers behave.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.fetch_claims import Claims
from glowplug.chunks.fetch_flight import Done, Flight, Outcome, Priority
from glowplug.chunks.fetch_plan import GAP_BYTES, READ_BYTES, beside, chunk_of
from glowplug.chunks.fetch_prefetch import PlannedRange
from glowplug.chunks.fetch_prefetch import Prefetch as PrefetchHandle
from glowplug.chunks.fetch_queue import FetchQueue
from glowplug.chunks.fetch_range import Came, Failed, RangeReader
from glowplug.chunks.fetch_ssd import KeepingStore, LocalChunks
from glowplug.chunks.fetch_stats import Counters, FetchStats
from glowplug.chunks.objects import Objects
from glowplug.chunks.placement import PackRange
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import (
    DeadlineExceeded,
    GlowplugError,
    ResourceExhausted,
    Unavailable,
)

__all__ = ["Done", "Fetcher", "Outcome", "PrefetchHandle", "Priority", "RemoteBlob"]

_log = logging.getLogger(__name__)

CONNECTIONS = 16
RESERVED_FOR_READS = 4
TIMEOUT_S = 150.0
"""What stalls is noticed within seconds (:mod:`glowplug.chunks.pace`); this is for what keeps coming. A range
of 2 MiB (:data:`glowplug.chunks.fetch_prefetch.RANGE_BYTES`) at the least pace takes 128 s."""

REFUSED_S = 2.0
"""For how long nobody gets a chunk of a blob that was given up: the kernel asks again for what failed."""

AHEAD_RANGE_BYTES = 1 << 20
"""A read-ahead's longest request: short, so that many connections share what will be wanted first."""


class Fetcher:
    """See the module. Safe to use from many threads."""

    def __init__(
        self,
        ssd: KeepingStore,
        tiers: Sequence[Objects],
        *,
        connections: int = CONNECTIONS,
        reserved_for_reads: int = RESERVED_FOR_READS,
        timeout_s: float = TIMEOUT_S,
        clock: Clock | None = None,
    ) -> None:
        """``tiers`` in the order to ask them: the zone, then the region. The fetcher closes none of them."""
        if not 0 <= reserved_for_reads < connections:
            raise ValueError("at least one connection must be left for prefetch")
        self._clock = clock = clock or SystemClock()
        self._local = LocalChunks(ssd)
        self._reader = RangeReader(tiers, clock)
        self._counters = Counters(self._reader.tier_names)
        self._queue = FetchQueue(clock, timeout_s)
        self._workers = [
            threading.Thread(
                target=self._work, args=(number < reserved_for_reads,), name=f"fetch-{number}", daemon=True
            )
            for number in range(connections)
        ]
        self._workers.append(threading.Thread(target=self._expire, name="fetch-deadlines", daemon=True))
        for worker in self._workers:
            worker.start()

    def want(self, blob: RemoteBlob, index: int, priority: Priority, done: Done) -> None:
        """Call ``done`` once with chunk ``index``'s verified bytes, or with the error why there are none.

        On a thread of the fetcher (on this one after :meth:`close`); the bytes were put on the SSD if there
        was room. They may be a view of more: copy what is to be kept. Raises InvalidInput for an index that
        the blob does not have; then ``done`` is not called.
        """
        if self._clock.monotonic() < blob.refused_until_s:
            done(_given_up())
            return
        joins = self._queue.want(blob, index, chunk_of(blob, index), priority, done)
        if joins is None:
            done(_closed())
        elif joins:
            self._count(blob, joined=1)

    def prefetch(self, blob: RemoteBlob, order: Iterable[int], *, is_guess: bool = False) -> PrefetchHandle:
        """Fetch these chunks in about this order while nobody wants anything more urgent.

        ``is_guess``: they are not all that will be wanted, so who reads others is read ahead for as ever.
        Raises InvalidInput for an index that the blob does not have.
        """
        handle = blob.prefetch = PrefetchHandle(blob, order, is_guess=is_guess)
        self._add(handle)
        return handle

    def read_ahead(
        self, blob: RemoteBlob, order: Iterable[int], when_given_up: Callable[[Sequence[int]], None]
    ) -> None:
        """Fetch these before any prefetch, on all connections but those kept for reads.

        A newer read-ahead goes first, and too many newer ones put an end to it: ``when_given_up`` is called
        with what was not fetched, more or less. Raises InvalidInput for an index that the blob does not have.
        """
        self._add(
            PrefetchHandle(
                blob, order, range_bytes=AHEAD_RANGE_BYTES, is_ahead=True, when_given_up=when_given_up
            )
        )

    def give_up(self, blob: RemoteBlob) -> None:
        """Nobody wants it any more: who waits for a chunk of it is told so now, what is queued is forgotten.

        What is in flight still arrives, and nobody waits for it.
        """
        blob.refused_until_s = self._clock.monotonic() + REFUSED_S
        if blob.prefetch is not None:
            blob.prefetch.give_up(_given_up())
        self._count(blob, given_up=self._queue.give_up(blob, _given_up()))

    def fetch(self, blob: RemoteBlob, index: int, timeout_s: float) -> bytes:
        """Chunk ``index``'s bytes, as urgently as a read. Raises what ``want`` reports.

        Not to be called from a ``done``: that thread is the one that would have to bring it.
        """
        outcomes: list[Outcome] = []
        arrived = threading.Event()

        def done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            arrived.set()

        self.want(blob, index, Priority.READ, done)
        if not arrived.wait(timeout_s):
            raise DeadlineExceeded(
                f"Chunk {index} did not arrive within {timeout_s:g} s.",
                remedy="Look at the zone's and the region's servers, and at the blob daemon's log.",
                stage="fetch",
            )
        if isinstance(outcomes[0], GlowplugError):
            raise outcomes[0]
        return bytes(outcomes[0])

    def stats(self) -> FetchStats:
        """What was done so far, and what is waiting and in flight now. A blob's share: ``blob.counters``."""
        waiting, in_flight = self._queue.counts()
        return self._counters.read(waiting=waiting, in_flight=in_flight, meters=self._reader.meters)

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more, give up what is queued, wait for what is in flight, then give that up too."""
        self._queue.close(_closed())
        deadline_s = time.monotonic() + timeout_s
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join(max(0.0, deadline_s - time.monotonic()))
        self._queue.abandon(_closed())

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, reads_only: bool) -> None:
        while (work := self._queue.take(reads_only=reads_only)) is not None:
            try:
                if isinstance(work, PrefetchHandle):
                    self._advance(work)
                else:
                    self._answer(work)
            except Exception as bug:  # noqa: BLE001 - it costs this one fetch (see Claims), not the worker
                _log.exception("a fetch failed in a way it should not")
                if isinstance(work, PrefetchHandle):
                    work.give_up(Unavailable(f"The prefetch failed: {bug!r}.", remedy="Please report this."))

    def _expire(self) -> None:
        while (expired := self._queue.expire()) is not None:
            self._counters.add(expired=expired)

    # One chunk that somebody waits for

    def _answer(self, flight: Flight) -> None:
        with Claims(self._queue, [flight]) as claims:
            data = self._local.read(flight.chunk)
            if data is not None:
                self._count(flight.blob, on_ssd=1)
                claims.settle(flight, data)
                return
            try:
                wanted = self._with_neighbours(claims, flight)
            except GlowplugError as error:
                self._count(flight.blob, failed=1)
                claims.settle(flight, error)
                return
            self._read(claims, flight.blob, wanted, flight, None)

    def _with_neighbours(self, claims: Claims, flight: Flight) -> PackRange:
        """The range to read for a chunk: with those beside it that are missing here too, now claimed."""
        blob = flight.blob
        placement = blob.placed()

        def range_of(indices: Iterable[int]) -> PackRange:
            # The first asked for comes first.
            return placement.plan((flight.index, *indices), GAP_BYTES, READ_BYTES)[0]

        wanted = range_of(beside(blob, flight.index))
        others = [(index, blob.table[index]) for index in wanted.indices if index != flight.index]
        neighbours = self._claim(claims, blob, others)
        if len(neighbours) < len(others):
            wanted = range_of(neighbours)
        return wanted

    def _claim(self, claims: Claims, blob: RemoteBlob, chunks: Sequence[tuple[int, Chunk]]) -> list[int]:
        """Claim what nobody fetches and is not here; the indices of these.

        In this order: what another worker has just finished was on the SSD before its flight ended.
        """
        flights = self._queue.claim(blob, chunks, None, None)
        claims.add(flights)
        missing = self._local.missing([flight.chunk for flight in flights])
        claimed = []
        for flight in flights:
            if flight.chunk in missing:
                claimed.append(flight.index)
            else:
                claims.end_unfetched(flight, is_present=True)
        return claimed

    # A prefetch's next range

    def _advance(self, prefetch: PrefetchHandle) -> None:
        try:
            if not prefetch.ranges:
                self._plan(prefetch)
        except GlowplugError as error:
            prefetch.give_up(error)
        planned = prefetch.ranges.popleft() if prefetch.ranges else None
        self._add(prefetch)
        if planned is not None and not prefetch.is_over:
            self._fetch_range(prefetch, planned)

    def _add(self, prefetch: PrefetchHandle) -> None:
        """Queue what is left of it."""
        if prefetch.has_more:
            add = self._queue.add_ahead if prefetch.is_ahead else self._queue.add_prefetch
            if not add(prefetch):
                prefetch.give_up(_closed())

    def _plan(self, prefetch: PrefetchHandle) -> None:
        absent = prefetch.next_slice()
        looked_at = self._queue.arrivals
        missing = self._local.missing(list(absent.values()))
        here = [index for index, chunk in absent.items() if chunk not in missing]
        for index in here:
            prefetch.settled(absent.pop(index).size_bytes, None)
        if absent:
            for wanted in prefetch.blob.placed().plan(absent, GAP_BYTES, prefetch.range_bytes):
                chunks = [absent[index] for index in wanted.indices]
                prefetch.ranges.append(PlannedRange(wanted, chunks, looked_at))

    def _fetch_range(self, prefetch: PrefetchHandle, planned: PlannedRange) -> None:
        blob = prefetch.blob
        with Claims(self._queue) as claims:
            chunks = zip(planned.range.indices, planned.chunks, strict=True)
            flights = self._queue.claim(blob, chunks, Priority.READ, prefetch, planned.looked_at)
            claims.add(flights)
            parts = [planned.range]
            if len(flights) < len(planned.chunks):
                indices = [flight.index for flight in flights]
                parts = blob.placed().plan(indices, GAP_BYTES, prefetch.range_bytes)
            for part in parts:
                self._read(claims, blob, part, None, prefetch)

    # Both

    def _read(
        self,
        claims: Claims,
        blob: RemoteBlob,
        wanted: PackRange,
        first: Flight | None,
        prefetch: PrefetchHandle | None,
    ) -> None:
        """Read a range whose chunks were claimed, keep what comes and tell who waits for it."""
        flights = [claims.by_index[index] for index in wanted.indices]
        deadline_s = self._queue.deadline_s(first or flights[0])
        counters = (self._counters, blob.counters)
        chunks = [flight.chunk for flight in flights]
        error: GlowplugError | None = None
        for found in self._reader.read(wanted, chunks, first.index if first else None, deadline_s, counters):
            if isinstance(found, Failed):
                error = found.error
                self._count(blob, failed=1)
                claims.settle(claims.by_index[found.index], error)
            else:
                if not self._keep(blob, found) and prefetch is not None:
                    prefetch.give_up(_no_room())
                claims.settle_all([claims.by_index[index] for index in found.indices], found.run)
        if prefetch is not None:
            prefetch.note_range(error)

    def _keep(self, blob: RemoteBlob, came: Came) -> bool:
        """Put them on the SSD: all together; if that fails, each that there is room for."""
        try:
            places = self._local.keep(came.run)
        except ResourceExhausted:
            numbers = range(len(came.indices))
            if len(numbers) > 1:
                each = [Came((came.indices[number],), came.run.only((number,))) for number in numbers]
                kept = [self._keep(blob, one) for one in each]
                return all(kept)
            self._count(blob, unstored=1)
            return False
        if blob.kept is not None:
            blob.kept(came.indices, places)
        return True

    def _count(
        self,
        blob: RemoteBlob,
        *,
        on_ssd: int = 0,
        unstored: int = 0,
        failed: int = 0,
        joined: int = 0,
        given_up: int = 0,
    ) -> None:
        for counters in (self._counters, blob.counters):
            counters.add(on_ssd=on_ssd, unstored=unstored, failed=failed, joined=joined, given_up=given_up)


def _closed() -> Unavailable:
    return Unavailable("Fetching was shut down.", remedy="Try again: the blob daemon is restarted at once.")


def _given_up() -> Unavailable:
    return Unavailable("Whoever wanted this has given up.", remedy="Ask again in a few seconds.")


def _no_room() -> ResourceExhausted:
    return ResourceExhausted(
        "The prefetch ended early: the SSD tier has no room left.",
        remedy="Raise GLOWPLUG_SSD_BYTES, or `glowplug image gc`.",
    )
