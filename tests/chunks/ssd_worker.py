"""Runs in a process of its own: uses an SSD tier until its input ends, beside others that do the same.

``ssd_worker.py ROOT TABLE WORK SEED``: prints ``ready`` and works; seed 0 ends by itself after some rounds,
or a minute.
Any wrong byte, or a promise that another process broke, is an AssertionError.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.ssd import SsdStore

COUNT = 60
PACK_BYTES = 1 << 20
ROUNDS = 60
LONGEST_S = 60.0


def bodies() -> list[bytes]:
    """What all workers put, the same in every process."""
    rng = random.Random(1)
    return [rng.randbytes(rng.randint(1, 20_000)) for _ in range(COUNT)]


class Worker:
    """One process's view."""

    def __init__(self, root: Path, table: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.bodies = bodies()
        self.chunks = [Chunk.of(body) for body in self.bodies]
        self.table = table
        self.owner = f"worker-{seed}"
        self.store = SsdStore(root, pack_bytes=PACK_BYTES, commit_interval_s=0.01)

    def fill(self) -> None:
        """Put everything, and something of our own, in an order of our own."""
        for index in self.rng.sample(range(COUNT), COUNT):
            self.store.put(self.chunks[index], self.bodies[index])
        own = self.rng.randbytes(3000)
        self.store.put(Chunk.of(own), own)
        self.store.flush()

    def prune(self) -> None:
        """Remove some or all, and clean up."""
        self.store.prune(self.rng.choice([0, 0, 100_000, 400_000]))
        self.store.remove(self.rng.sample(self.chunks, 5))
        if self.rng.random() < 0.3:
            self.store.gc()

    def read_pinned(self) -> None:
        """As a lazy mount does: pin, fetch what is missing, then read where it was found, unchecked."""
        self.store.pin(self.owner, self.table)
        for chunk in self.store.missing(self.chunks):
            self.store.put(chunk, self.bodies[self.chunks.index(chunk)])
        self._read_unchecked()
        self.store.unpin(self.owner)

    def read_complete(self) -> None:
        """As a graduated mount does: find out places, mark, pin if still complete, then read unchecked."""
        self.fill()
        places = self.store.locate_all(self.chunks)
        if self.store.mark_complete("image", self.table, places) and self.store.pin_if_complete(
            self.owner, "image", self.table
        ):
            assert self.store.is_complete("image")
            assert self.store.locate_all(self.chunks) == places
            self._read_unchecked()
            self.store.unpin(self.owner)

    def _read_unchecked(self) -> None:
        places = self.store.locate_all(self.chunks)
        for _ in range(3):
            for place, body in zip(places, self.bodies, strict=True):
                assert place is not None
                assert self.store.read_at(place, len(body)) == body


def main(root: str, table: str, work: str, seed: str) -> None:
    """Work until told to stop."""
    worker = Worker(Path(root), Path(table), int(seed))
    do: Callable[[], None] = getattr(worker, work)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    ends_s = time.monotonic() + LONGEST_S
    for rounds in itertools.count(1):
        do()
        if stop.is_set() or (seed == "0" and (rounds == ROUNDS or time.monotonic() >= ends_s)):
            break
    worker.store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
