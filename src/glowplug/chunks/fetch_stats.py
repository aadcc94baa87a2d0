"""What fetching did, counted: for metrics, and for the cold-start record's bytes and hits per tier."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from glowplug.chunks.pace import Meter


@dataclass
class TierCounts:
    """What one tier was asked and gave. ``bytes`` are as transferred, gaps between chunks included."""

    requests: int = 0
    bytes: int = 0
    chunks: int = 0  # verified and handed on
    invalid: int = 0  # came as something else than asked for; never handed on
    errors: int = 0  # requests without an answer that could be used
    fallbacks: int = 0  # requests that another tier had not answered (well) before


@dataclass
class FetchStats:
    """One reading of the counters; those of a fetcher, or of one blob's share of it."""

    tiers: dict[str, TierCounts] = field(default_factory=dict)
    on_ssd: int = 0  # asked for and found there after all
    unstored: int = 0  # handed on without being kept: no room
    failed: int = 0  # chunks that no tier gave
    expired: int = 0  # askers who got DeadlineExceeded
    joined: int = 0  # askers who shared somebody else's fetch
    given_up: int = 0  # askers who were told that nobody wants it any more
    received_bytes: int = 0  # from other machines, as they come; not known of one blob
    stalls: int = 0  # attempts that brought next to nothing, and were made again
    waiting: int = 0  # chunks in the queue now, what is left of prefetches not counted
    in_flight: int = 0  # chunks being fetched now


class Counters:
    """Counters that many threads add to. One addition per request, not per chunk, so a lock will do."""

    def __init__(self, tiers: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._stats = FetchStats({tier: TierCounts() for tier in tiers})

    def add_tier(
        self,
        tier: str,
        *,
        requests: int = 0,
        transferred_bytes: int = 0,
        chunks: int = 0,
        invalid: int = 0,
        errors: int = 0,
        fallbacks: int = 0,
    ) -> None:
        """Add to one tier's counts."""
        with self._lock:
            counts = self._stats.tiers.setdefault(tier, TierCounts())
            counts.requests += requests
            counts.bytes += transferred_bytes
            counts.chunks += chunks
            counts.invalid += invalid
            counts.errors += errors
            counts.fallbacks += fallbacks

    def add(
        self,
        *,
        on_ssd: int = 0,
        unstored: int = 0,
        failed: int = 0,
        expired: int = 0,
        joined: int = 0,
        given_up: int = 0,
    ) -> None:
        """Add to the other counts."""
        with self._lock:
            self._stats.on_ssd += on_ssd
            self._stats.unstored += unstored
            self._stats.failed += failed
            self._stats.expired += expired
            self._stats.joined += joined
            self._stats.given_up += given_up

    def read(self, *, waiting: int = 0, in_flight: int = 0, meters: Iterable[Meter] = ()) -> FetchStats:
        """A copy of the counts, with what the queue and the tiers' meters say about now."""
        came = list(meters)
        with self._lock:
            return replace(
                self._stats,
                tiers={tier: replace(counts) for tier, counts in self._stats.tiers.items()},
                received_bytes=sum(meter.received_bytes for meter in came),
                stalls=sum(meter.stalls for meter in came),
                waiting=waiting,
                in_flight=in_flight,
            )
