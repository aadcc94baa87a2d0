"""The SSD tier as a fetcher uses it: whatever is wrong with the disk costs a fetch, never an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from glowplug.chunks.chunk import Chunk, ChunkInvalid, ChunkMissing
from glowplug.chunks.run import Run
from glowplug.chunks.store import WriteStore
from glowplug.types.errors import ResourceExhausted

_log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0  # a local disk that takes longer than the region is no help


class KeepingStore(WriteStore, Protocol):
    """Also keeps many at once, on its caller's word."""

    def put_verified(self, run: Run) -> Sequence[int | None]:
        """Keep what the caller has verified; where each lies if it was written just now. Raises as ``put``.

        After a failure some of them may have been kept. Places: :func:`glowplug.chunks.ssd_packs.place_of`.
        """
        ...


class LocalChunks:
    """Reads, checks and keeps chunks, and logs what it cannot. Safe to use from many threads."""

    def __init__(self, ssd: KeepingStore) -> None:
        self._ssd = ssd

    def read(self, chunk: Chunk) -> bytes | None:
        """The chunk, if it is here and sound."""
        try:
            return self._ssd.get(chunk, _TIMEOUT_S)
        except (ChunkMissing, ChunkInvalid):
            return None
        except Exception:  # noqa: BLE001 - of a disk anything may be wrong; the tiers behind it still answer
            _log.warning("the SSD tier could not be read; the chunk is fetched", exc_info=True)
            return None

    def missing(self, chunks: Sequence[Chunk]) -> set[Chunk]:
        """Those that are not here."""
        if not chunks:
            return set()
        try:
            return set(self._ssd.missing(chunks))
        except Exception:  # noqa: BLE001 - as above
            _log.warning("the SSD tier could not be asked; the chunks are fetched", exc_info=True)
            return set(chunks)

    def keep(self, run: Run) -> Sequence[int | None]:
        """:meth:`KeepingStore.put_verified`. Raises ResourceExhausted, logged, for whatever reason."""
        try:
            return self._ssd.put_verified(run)
        except ResourceExhausted as full:
            _log.debug("chunks are passed on without being kept: %s", full.message)
            raise
        except Exception as problem:
            _log.warning("chunks are passed on without being kept", exc_info=True)
            raise ResourceExhausted("The SSD tier keeps nothing.", remedy="See the log.") from problem
