"""Quantities as Kubernetes writes them: ``500m``, ``16Gi``, ``1e3``."""

from __future__ import annotations

import re

_SUFFIXES = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip
_QUANTITY = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)(?P<suffix>[A-Za-z]*)")


def count_of(text: str | None) -> float:
    """Zero for what is missing or cannot be read: it is shown, and nothing is decided by it."""
    match = _QUANTITY.fullmatch(str(text or ""))
    if match is None or match["suffix"] not in _SUFFIXES:
        return 0.0
    return float(match["number"]) * _SUFFIXES[match["suffix"]]


def bytes_of(text: str | None) -> int:
    """The same, in whole bytes."""
    return int(count_of(text))
