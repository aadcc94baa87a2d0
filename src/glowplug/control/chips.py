"""Names of GPU chips: users, drivers and price lists write them in more or less detail."""

from __future__ import annotations


def is_alike(one: str, other: str) -> bool:
    """Whether these may name one chip: ``H100`` and ``H100-80GB`` do."""
    words, others = set(one.lower().split("-")), set(other.lower().split("-"))
    return bool(one and other) and (words <= others or others <= words)
