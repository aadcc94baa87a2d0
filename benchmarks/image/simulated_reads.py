"""What read-ahead can do at best without a trace: a recorded start, replayed against a simulated store.

    .venv/bin/python benchmarks/image/simulated_reads.py <state>/indexes/<digest> --busy-s 1.15

The reads are those of the access trace that lies there; ``--busy-s`` is how long the command takes with every
chunk at hand, through the daemon. The read-ahead is the daemon's own. A request takes the latency, then its
bytes at a connection's rate, and all together no more than the machine manages. Nothing is timed, so the
figures are the same on any machine. Shown are links as measured, and such that cost nothing but latency:
what is left then only knowledge could save.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from glowplug.chunks.fetch import AHEAD_RANGE_BYTES, CONNECTIONS, RESERVED_FOR_READS
from glowplug.chunks.fetch_blob import RemoteBlob
from glowplug.chunks.fetch_plan import GAP_BYTES, beside
from glowplug.chunks.fetch_queue import MAX_AHEAD
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy import trace
from glowplug.image.lazy.read_ahead import ReadAhead

LATENCIES_S = (0.002, 0.02)
CONNECTION_BYTES_PER_S = 100e6
MACHINE_BYTES_PER_S = 330e6  # server and client on two cores that are busy with the command as well
_NEVER = math.inf


class Store(NamedTuple):
    """How far away it is, and how much it gives."""

    latency_s: float
    connection_bytes_per_s: float = CONNECTION_BYTES_PER_S
    machine_bytes_per_s: float = MACHINE_BYTES_PER_S


class Outcome(NamedTuple):
    """Of one start."""

    seconds: float
    fetched_bytes: int
    misses: int
    waits: int  # for what was on its way already


class Replay:
    """One start on an empty node."""

    def __init__(self, table: ChunkTable, store: Store) -> None:
        self._table = table
        self._store = store
        self._blob = RemoteBlob(table)
        self._ahead = ReadAhead(table)
        self._arrivals_s = [_NEVER] * len(table)
        self._free_s = [0.0] * (CONNECTIONS - RESERVED_FOR_READS)  # the connections of read-aheads
        self._link_free_s = 0.0
        self._waiting: list[tuple[float, list[list[int]]]] = []  # read-aheads as requests, the newest last
        self._fetched_bytes = 0

    def run(self, order: Sequence[int], busy_s: float) -> Outcome:
        """Read these chunks in this order."""
        now_s, misses, waits = 0.0, 0, 0
        for index in order:
            now_s += busy_s / len(order)
            self._advance(now_s)
            if self._arrivals_s[index] > now_s:
                missed_s = now_s
                if self._arrivals_s[index] is _NEVER:
                    misses += 1
                    now_s = self._fetch(self._missing([index, *beside(self._blob, index)]), now_s)
                else:
                    waits += 1
                    now_s = self._arrivals_s[index]
                self._add(missed_s, self._ahead.missed(self._blob, index, index, missed_s))
                self._ahead.waited(now_s - missed_s)
            self._add(now_s, self._ahead.reached(index, index))
        return Outcome(now_s, self._fetched_bytes, misses, waits)

    def _missing(self, indices: Sequence[int]) -> list[int]:
        return [index for index in indices if self._arrivals_s[index] is _NEVER]

    def _fetch(self, indices: Sequence[int], begin_s: float) -> float:
        """One request; when its answer is there."""
        size_bytes = sum(self._table.sizes[index] for index in indices)
        store = self._store
        self._link_free_s = max(self._link_free_s, begin_s) + size_bytes / store.machine_bytes_per_s
        came_s = max(begin_s + store.latency_s + size_bytes / store.connection_bytes_per_s, self._link_free_s)
        self._fetched_bytes += size_bytes
        for index in indices:
            self._arrivals_s[index] = came_s
        return came_s

    def _add(self, now_s: float, indices: Sequence[int]) -> None:
        if indices:
            self._waiting.append((now_s, list(self._requests(indices))))
            if len(self._waiting) > MAX_AHEAD:
                for request in self._waiting.pop(0)[1]:
                    self._ahead.forget(request)
            self._advance(now_s)

    def _requests(self, indices: Sequence[int]) -> Iterator[list[int]]:
        """Neighbours together, the first asked for first."""
        request: list[int] = []
        for index in indices:
            if request and not self._joins(request, index):
                yield request
                request = []
            request.append(index)
        yield request

    def _joins(self, request: Sequence[int], index: int) -> bool:
        table = self._table
        gap_bytes = table.offset(index) - table.offset(request[-1] + 1)
        length_bytes = table.offset(index + 1) - table.offset(request[0])
        return 0 <= gap_bytes <= GAP_BYTES and length_bytes <= AHEAD_RANGE_BYTES

    def _advance(self, until_s: float) -> None:
        """Begin all requests of read-aheads that find a connection by then."""
        while self._waiting:
            added_s, requests = self._waiting[-1]
            connection = min(range(len(self._free_s)), key=self._free_s.__getitem__)
            begin_s = max(added_s, self._free_s[connection])
            if begin_s > until_s:
                return
            missing = self._missing(requests.pop(0))
            if not requests:
                self._waiting.pop()
            if missing:
                self._free_s[connection] = self._fetch(missing, begin_s)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="an image's folder that has one trace")
    parser.add_argument("--busy-s", type=float, default=1.15)
    options = parser.parse_args()
    table = ChunkTable.open(options.index / "chunks.bin")
    (file,) = (options.index / "traces").glob("*.json")
    order = trace.parse(file.read_bytes(), table).order
    print(f"{len(order)} chunks, {sum(table.sizes[index] for index in order) / 1e6:.0f} MB, of {len(table)}")
    for latency_s in LATENCIES_S:
        for name, store in (
            ("as measured", Store(latency_s)),
            ("free links", Store(latency_s, math.inf, math.inf)),
        ):
            found = Replay(table, store).run(order, options.busy_s)
            print(
                f"{latency_s * 1e3:g} ms, {name}: {found.seconds:.2f} s, {found.misses} misses, "
                f"{found.waits} waits, {found.fetched_bytes / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    main()
