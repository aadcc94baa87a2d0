"""How much an archive may ask of this machine before it is taken for a bomb."""

from __future__ import annotations

from dataclasses import dataclass

from glowplug.types.errors import InvalidInput


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds for everything that a few bytes of a hostile archive could blow up. All of them inclusive."""

    unpacked_bytes: int = 1 << 40  # of one archive after decompression
    logical_bytes: int = 1 << 44  # of all files, holes counted: an index needs 8 bytes for each MiB of them
    entries: int = 4_000_000  # ever made in one tree, parents that have no entry of their own among them
    metadata_bytes: int = 1 << 30  # of names, link targets and extended attributes: these stay in memory
    ratio: int = 1000  # unpacked to packed, once more than ``ratio_grace_bytes`` came out
    ratio_grace_bytes: int = 1 << 30


def over_limit(what: str, limit: int) -> InvalidInput:
    """The error for an archive that goes beyond ``limit``."""
    return InvalidInput(
        f"This archive has more than {limit} {what}: it is damaged or made to fill this machine up.",
        remedy="If it is meant to be that large, import it unpacked, as a folder.",
        limit=limit,
    )
