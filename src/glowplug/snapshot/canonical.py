"""One byte sequence per JSON value, because everything here is named and checked by a hash of it.

Canonical JSON: keys sorted by code point, no white space, everything outside ASCII escaped, numbers as
Python's ``repr`` writes them (the shortest text that reads back as the same number). NaN and infinities do
not exist in it. :func:`parse_json` is its counterpart for hostile input: it raises ValueError, and nothing
else, for whatever is not JSON that :func:`canonical_json` could have written.
"""

from __future__ import annotations

import json
import math
from typing import Any

from blake3 import blake3

MAX_DEPTH = 128
"""Deeper documents are refused: Python's own JSON code recurses, and an honest one has about ten levels."""


def canonical_json(value: Any) -> bytes:
    """The canonical encoding. Raises ValueError for NaN and infinities, TypeError for what is not JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def blake3_hex(data: bytes) -> str:
    """BLAKE3 (64 hex digits) of ``data``."""
    return blake3(data).hexdigest()


def parse_json(raw: bytes) -> Any:
    """The value of a UTF-8 JSON document. Raises ValueError for anything else, however deep or odd."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    _check_depth(value, MAX_DEPTH)
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number out of range: {text[:40]}")
    return number


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _check_depth(value: Any, levels_left: int) -> None:
    if levels_left == 0:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for item in value.values():
            _check_depth(item, levels_left - 1)
    elif isinstance(value, list):
        for item in value:
            _check_depth(item, levels_left - 1)
