"""The flights that one worker has in hand: whatever happens to the worker, each of them ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from glowplug.chunks.fetch_flight import Flight, Outcome
from glowplug.chunks.fetch_queue import FetchQueue
from glowplug.chunks.run import Run
from glowplug.types.errors import Unavailable


class Claims:
    """RUNNING flights by their chunk's index. Leaving the block ends those that were not ended in it."""

    def __init__(self, queue: FetchQueue, flights: Iterable[Flight] = ()) -> None:
        self._queue = queue
        self.by_index: dict[int, Flight] = {}
        self.add(flights)

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for flight in list(self.by_index.values()):
            if error is None:
                self.end_unfetched(flight, is_present=False)
            else:
                self.settle(flight, _bug(error))

    def add(self, flights: Iterable[Flight]) -> None:
        """Take these in hand, too."""
        self.by_index.update((flight.index, flight) for flight in flights)

    def settle(self, flight: Flight, outcome: Outcome) -> None:
        """See :meth:`FetchQueue.settle`."""
        del self.by_index[flight.index]
        self._queue.settle(flight, outcome)

    def settle_all(self, flights: Sequence[Flight], run: Run) -> None:
        """See :meth:`FetchQueue.settle_all`."""
        for flight in flights:
            del self.by_index[flight.index]
        self._queue.settle_all(flights, run)

    def end_unfetched(self, flight: Flight, *, is_present: bool) -> None:
        """See :meth:`FetchQueue.end_unfetched`."""
        del self.by_index[flight.index]
        self._queue.end_unfetched(flight, is_present=is_present)


def _bug(error: BaseException) -> Unavailable:
    return Unavailable(f"Fetching failed in a way it should not: {error!r}.", remedy="Please report this.")
