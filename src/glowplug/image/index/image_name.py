"""What an image may be called, and how to tell a name from a digest."""

from __future__ import annotations

import re

from glowplug.types.errors import InvalidInput

MAX_NAME_CHARACTERS = 200
MIN_PREFIX_CHARACTERS = 8
DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_PART = r"[a-z0-9][a-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?")


def is_digest(text: str) -> bool:
    """It has the form of a whole digest."""
    return DIGEST.fullmatch(text) is not None


def is_digest_prefix(text: str) -> bool:
    """It can only be a digest or the beginning of one."""
    return _PREFIX.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise InvalidInput unless an image may be called that: ``vllm``, ``team/vllm:1``."""
    if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name) or is_digest_prefix(name):
        raise InvalidInput(
            f"{name[:MAX_NAME_CHARACTERS]!r} is not a name that an image can have.",
            remedy="Use lower-case letters, digits, '.', '_', '-' and '/', then perhaps ':' and a tag; "
            f"at most {MAX_NAME_CHARACTERS} characters, and nothing that reads as a digest.",
            name=name[:MAX_NAME_CHARACTERS],
        )


def file_name_of(name: str) -> str:
    """The name of the file that keeps a checked name: a single path component, never one that hides."""
    return name.replace("/", "+")


def name_of_file(file_name: str) -> str:
    """The inverse of :func:`file_name_of`."""
    return file_name.replace("+", "/")
