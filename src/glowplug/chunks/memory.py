"""Chunks in memory: the fake that tests of everything above use in place of the SSD tier."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from pathlib import Path

from typing_extensions import Buffer

from glowplug.chunks.accept import accept
from glowplug.chunks.chunk import Chunk, aligned
from glowplug.chunks.store import Pruned
from glowplug.chunks.table import ChunkTable


class MemoryStore:
    """An adapter of :class:`~glowplug.chunks.store.PruneStore`, with the SSD tier's pins."""

    tier = "memory"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: OrderedDict[Chunk, bytes] = OrderedDict()  # the last used at the end
        self._pinned: dict[str, frozenset[Chunk]] = {}

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        """The chunk's bytes, checked."""
        with self._lock:
            data = self._held.get(chunk)
            if data is None:
                raise chunk.missing(self.tier)
            self._held.move_to_end(chunk)
        chunk.verify(data, self.tier)
        return data

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that it does not hold, in order, each once."""
        with self._lock:
            return [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._held]

    def put(self, chunk: Chunk, data: Buffer) -> None:
        """Keep it."""
        with self._lock:
            if chunk in self._held:
                self._held.move_to_end(chunk)
                return
        copied = bytes(memoryview(data))
        accept(chunk, copied, self.tier)
        with self._lock:
            self._held[chunk] = copied

    def flush(self) -> None:
        """Memory is never durable."""

    def used_bytes(self) -> int:
        """As the SSD tier counts: whole blocks."""
        with self._lock:
            return sum(aligned(chunk.size_bytes) for chunk in self._held)

    def remove(self, chunks: Collection[Chunk]) -> int:
        """Forget these, pinned ones excepted."""
        with self._lock:
            pinned = self._all_pinned()
            found = [chunk for chunk in set(chunks) if chunk in self._held and chunk not in pinned]
            for chunk in found:
                del self._held[chunk]
            return len(found)

    def prune(self, budget_bytes: int) -> Pruned:
        """Forget the least recently used, never a pinned one."""
        with self._lock:
            before_bytes = used_bytes = self.used_bytes()
            pinned = self._all_pinned()
            removed = 0
            for chunk in [chunk for chunk in self._held if chunk not in pinned]:
                if used_bytes <= budget_bytes:
                    break
                del self._held[chunk]
                used_bytes -= aligned(chunk.size_bytes)
                removed += 1
            return Pruned(removed, before_bytes - used_bytes, used_bytes)

    def pin(self, owner: str, table: Path) -> None:
        """Keep the chunks of a chunk table's file."""
        chunks = frozenset(ChunkTable.open(table))
        with self._lock:
            self._pinned[owner] = chunks

    def unpin(self, owner: str) -> None:
        """Let go of what ``owner`` has pinned, if anything."""
        with self._lock:
            self._pinned.pop(owner, None)

    def _all_pinned(self) -> frozenset[Chunk]:
        return frozenset().union(*self._pinned.values())
