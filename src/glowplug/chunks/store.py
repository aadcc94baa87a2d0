"""What a tier can do, as a ladder: every tier reads, some also keep, some also forget.

``Store -> WriteStore -> PruneStore``, after desync's stores. One contract test suite
(``tests/chunks/contract.py``) runs against every tier and against the in-memory fake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk


class Store(Protocol):
    """Reads chunks. Safe to use from many threads at once.

    Duties: what ``get`` returns was verified against the chunk's name by this store; it never blocks longer
    than its timeout (plus scheduling), however the other side behaves.
    """

    @property
    def tier(self) -> str:
        """``ssd``, ``zone``, ``region`` or ``memory``: the label in metrics, records and errors."""
        ...

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        """The chunk's bytes. Raises ChunkMissing, ChunkInvalid, Unavailable or DeadlineExceeded."""
        ...

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that it does not hold, in order, each once. Raises Unavailable."""
        ...


class WriteStore(Store, Protocol):
    """Also keeps chunks."""

    def put(self, chunk: Chunk, data: Buffer) -> None:
        """Keep it. Idempotent; a chunk that is there costs nothing. Raises ChunkInvalid, ResourceExhausted.

        Readable at once; durable (it survives a power cut) only after :meth:`flush`.
        """
        ...

    def flush(self) -> None:
        """Make everything that was put so far durable."""
        ...


@dataclass(frozen=True)
class Pruned:
    """What :meth:`PruneStore.prune` did."""

    removed_chunks: int
    freed_bytes: int
    used_bytes: int


class PruneStore(WriteStore, Protocol):
    """Also forgets chunks."""

    def used_bytes(self) -> int:
        """Room that its chunks take."""
        ...

    def remove(self, chunks: Collection[Chunk]) -> int:
        """Forget these, pinned ones excepted; returns how many it forgot. Unknown ones are no error."""
        ...

    def prune(self, budget_bytes: int) -> Pruned:
        """Forget the least recently used, never a pinned one, until ``used_bytes`` fits the budget."""
        ...
