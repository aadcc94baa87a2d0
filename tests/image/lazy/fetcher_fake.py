"""A fetcher that answers when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from glowplug.chunks.fetch import Done, Outcome, PrefetchHandle, Priority, RemoteBlob
from glowplug.chunks.fetch_stats import FetchStats
from glowplug.chunks.ssd import SsdStore
from glowplug.types.errors import Unavailable


@dataclass
class FakeFetcher:
    """Holds ``bodies`` by chunk id; answers at once if ``is_prompt``, else when :meth:`deliver` is called."""

    bodies: dict[bytes, bytes] = field(default_factory=dict)
    ssd: SsdStore | None = None  # where it keeps what it fetched
    is_prompt: bool = False
    wanted: list[tuple[int, Priority]] = field(default_factory=list)
    ahead: list[list[int]] = field(default_factory=list)
    _waiting: list[tuple[RemoteBlob, int, Done]] = field(default_factory=list)

    def want(self, blob: RemoteBlob, index: int, priority: Priority, done: Done) -> None:
        self.wanted.append((index, priority))
        self._waiting.append((blob, index, done))
        if self.is_prompt:
            self.deliver(index)

    def deliver(self, index: int, instead: Outcome | None = None) -> None:
        """Answer everybody who waits for this chunk."""
        due = [waiting for waiting in self._waiting if waiting[1] == index]
        self._waiting = [waiting for waiting in self._waiting if waiting[1] != index]
        for blob, _, done in due:
            chunk = blob.table[index]
            if instead is None and self.ssd is not None:
                self.ssd.put(chunk, self.bodies[chunk.id])
            done(self.bodies[chunk.id] if instead is None else instead)

    def reads(self) -> list[int]:
        return [index for index, priority in self.wanted if priority is Priority.READ]

    def prefetch(self, blob: RemoteBlob, order: Iterable[int], *, is_guess: bool = False) -> PrefetchHandle:
        return PrefetchHandle(blob, order)

    def read_ahead(
        self, blob: RemoteBlob, order: Iterable[int], when_given_up: Callable[[Sequence[int]], None]
    ) -> None:
        self.ahead.append(list(order))

    def give_up(self, blob: RemoteBlob) -> None:
        for _, index, done in [waiting for waiting in self._waiting if waiting[0] is blob]:
            done(Unavailable(f"Chunk {index} was given up."))
        self._waiting = [waiting for waiting in self._waiting if waiting[0] is not blob]

    def stats(self) -> FetchStats:
        return FetchStats()

    def close(self, timeout_s: float = 0.0) -> None:
        self._waiting.clear()
