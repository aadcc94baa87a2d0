"""What a server that wants to know who asks says about how to tell it: the ``WWW-Authenticate`` header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_HEADER_CHARACTERS = 8 << 10
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_PIECE = re.compile(
    rf'[\s,]*(?:(?P<name>{_TOKEN})\s?=\s?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s",]+))'
    rf"|(?P<scheme>{_TOKEN})(?=[\s,]|$))"
)


@dataclass(frozen=True)
class Challenge:
    """One way to authenticate, in lower case (``bearer``), and its parameters."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All ways that are offered, in order. What cannot be understood is left out; never fails."""
    found: list[Challenge] = []
    text = ", ".join(headers)[:MAX_HEADER_CHARACTERS]
    place = 0
    while match := _PIECE.match(text, place):
        place = match.end()
        if match["scheme"]:
            found.append(Challenge(match["scheme"].lower()))
        elif found:
            quoted = match["quoted"]
            value = match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].parameters.setdefault(match["name"].lower(), value)
    return found
