"""A blob whose chunks can be fetched: what it consists of, where that lies, and what was fetched of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glowplug.chunks.fetch_stats import Counters
from glowplug.chunks.placement import Placement
from glowplug.chunks.table import ChunkTable
from glowplug.types.errors import NotFound

if TYPE_CHECKING:
    from glowplug.chunks.fetch_prefetch import Prefetch


@dataclass(eq=False)
class RemoteBlob:
    """One image's (or snapshot's) content. ``counters`` hold its own share of the fetcher's work.

    ``placement`` may be replaced at any time (a later push or pull); it is None for a blob that was never
    pushed: such a blob's chunks can be had from the SSD tier only. ``prefetch`` is the latest of it.
    ``kept`` is told of chunks of verified bytes, and where on the SSD each was just written to
    (:func:`~glowplug.chunks.ssd_packs.place_of`), if it was. Until ``refused_until_s`` on the monotonic clock
    nothing of it is fetched: whoever wanted it has given up.
    """

    table: ChunkTable
    placement: Placement | None = None
    counters: Counters = field(default_factory=Counters)
    prefetch: Prefetch | None = None
    kept: Callable[[Sequence[int], Sequence[int | None]], None] | None = None
    refused_until_s: float = 0.0

    @property
    def is_prefetched(self) -> bool:
        """Somebody knows what will be wanted of it, and has that fetched just now."""
        return self.prefetch is not None and not self.prefetch.is_guess and not self.prefetch.is_over

    def placed(self) -> Placement:
        """Its placement, known to be one of this table. Raises NotFound."""
        placement = self.placement
        if placement is None or len(placement) != len(self.table):
            raise NotFound(
                "It is not known where the content of this image lies in the region.",
                remedy="Run `glowplug image pull NAME` (or `push`, where the image was made).",
                stage="placement",
            )
        return placement
