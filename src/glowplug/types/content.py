"""What rooms tell each other about files kept by digest, without knowing each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KeptFiles:
    """Files that were put into the content store. ``deduplicated_bytes`` of them were there already."""

    digest: str
    deduplicated_bytes: int


@dataclass(frozen=True)
class TierRead:
    """What one tier gave: bytes as transferred, and chunks, each of them a hit."""

    bytes: int = 0
    chunks: int = 0


def read_since(before: Mapping[str, TierRead], now: Mapping[str, TierRead]) -> dict[str, TierRead]:
    """By tier, what was read between two counts; tiers that gave nothing are left out."""
    grown = {
        tier: TierRead(read.bytes - earlier.bytes, read.chunks - earlier.chunks)
        for tier, read in now.items()
        for earlier in (before.get(tier, TierRead()),)
    }
    return {tier: read for tier, read in grown.items() if read.bytes > 0}


def bytes_by_tier(reads: Mapping[str, TierRead]) -> dict[str, int]:
    """Of these, the bytes."""
    return {tier: read.bytes for tier, read in reads.items()}


def chunks_by_tier(reads: Mapping[str, TierRead]) -> dict[str, int]:
    """Of these, the hits."""
    return {tier: read.chunks for tier, read in reads.items()}


@dataclass(frozen=True)
class ContentUsage:
    """How much of some kept files this machine holds, and whether the region has all of them."""

    here_bytes: int = 0
    missing_bytes: int = 0
    is_complete: bool = False
    is_in_region: bool = False


@dataclass(frozen=True)
class Fetching:
    """What comes from other machines now: bytes as they come, chunks on their way, attempts that stalled.

    ``failed`` chunks nobody gave so far; ``invalid`` ones came with other bytes than they should have.
    """

    received_bytes: int = 0
    in_flight: int = 0
    stalls: int = 0
    failed: int = 0
    invalid: int = 0
