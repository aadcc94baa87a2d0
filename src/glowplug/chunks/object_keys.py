"""What keys of objects and URLs of buckets look like; checked before they become part of a path or a URL."""

from __future__ import annotations

import re

from glowplug.types.errors import InvalidInput, NotFound

CLOUDS = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"})
"""Schemes of URLs of buckets."""

MAX_KEY_CHARACTERS = 512
REFS_PREFIX = "refs/"
PLACEMENT_NAME = "placement.bin.zst"
_PART = r"(?!\.{1,2}(/|$))[A-Za-z0-9._:+-]+"
_KEY = re.compile(rf"{_PART}(/{_PART})*/?")


def check_key(key: str) -> str:
    """The key itself (or a prefix, which ends in a slash). Raises InvalidInput."""
    if len(key) > MAX_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise InvalidInput(
            f"{key[:MAX_KEY_CHARACTERS]!r} is not a key that an object can have.",
            remedy="Use letters, digits and . _ : + - in parts separated by slashes.",
        )
    return key


def is_mutable(key: str) -> bool:
    """What this key names may be replaced, so a copy of it must not be kept: refs, placements, traces."""
    return key.startswith(REFS_PREFIX) or key.endswith(f"/{PLACEMENT_NAME}") or "/traces/" in key


def absent(key: str, where: str) -> NotFound:
    """The error of an object that is not there."""
    return NotFound(
        f"There is no {key} in {where}.",
        remedy="`glowplug image push` puts an image there; check GLOWPLUG_REGION and GLOWPLUG_ZONE.",
        key=key,
    )


def wrong_answer(key: str, where: str, why: str) -> InvalidInput:
    """The error of an answer that is not what was asked for; nothing of it is used."""
    return InvalidInput(
        f"{where} answered wrongly for {key}: {why}.",
        remedy="Look at what serves it: a proxy between, or a server that does not know ranges.",
        key=key,
    )
