"""Orders of chunks on the control socket: base64 of little-endian 32-bit indices, a third of a JSON list."""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Iterable

from glowplug.types.errors import InvalidInput


def pack_order(order: Iterable[int]) -> str:
    """Chunk indices as text."""
    numbers = array("I", order)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers).decode()


def unpack_order(text: object) -> array[int]:
    """What :func:`pack_order` was given. Raises InvalidInput."""
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        raw = None
    if raw is None or len(raw) % 4:
        raise InvalidInput("This is no order of chunks.", remedy="Send base64 of 32-bit numbers.")
    numbers = array("I", raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
