"""The first lines of a tunnel: what control says to a node's gateway, and what it is answered.

``glowplug/1 replica ID`` asks for the replica ``ID``; ``ok`` means that every byte from here on is the
replica's, both ways; anything else is an error of ours as JSON. Each line ends with one line feed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from glowplug.types.errors import GlowplugError, InvalidInput, Unavailable

MAX_OPENING_BYTES = 128
MAX_ANSWER_BYTES = 4096
ACCEPTED = b"ok\n"
_OPENING = re.compile(rb"glowplug/1 replica (?P<id>[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)\n")
_MAX_TEXT_CHARACTERS = 500


def opening(replica_id: str) -> bytes:
    """The line that asks for a replica."""
    return f"glowplug/1 replica {replica_id}\n".encode("ascii")


def parse_opening(line: bytes) -> str:
    """The replica's id. Raises InvalidInput for every other line."""
    match = _OPENING.fullmatch(line)
    if match is None:
        raise InvalidInput(
            "The first line of this tunnel names no replica.",
            remedy="Run one version of Glowplug on all machines.",
            line=repr(line[:MAX_OPENING_BYTES])[:200],
        )
    return match["id"].decode("ascii")


def refusal(error: GlowplugError) -> bytes:
    """The line that says why not."""
    told: dict[str, Any] = {
        "code": error.code,
        "message": error.message[:_MAX_TEXT_CHARACTERS],
        "remedy": error.remedy[:_MAX_TEXT_CHARACTERS],
        "details": {},
    }
    return json.dumps(told).encode() + b"\n"


def check_answer(line: bytes) -> None:
    """Return if the tunnel is open. Raises the error that the gateway told, or Unavailable."""
    if line == ACCEPTED:
        return
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if isinstance(told, dict) and "code" in told and "message" in told:
        raise GlowplugError.from_dict(told)
    raise Unavailable(
        "The node's gateway answered something that is no message of ours.",
        remedy="Run one version of Glowplug on all machines.",
        answer=repr(line[:100]),
    )
