"""A secret must not sleep in a memory image: look for the bytes of every declared secret in a capture.

A replica that is captured has no secrets of its own; this is the proof, made before a capture is kept.
It finds a secret as the bytes it was declared with. A copy that was encoded otherwise (base64, UTF-16) is
not found, and neither is one of fewer than ``min_length`` bytes, which chance alone would find everywhere:
:func:`too_short_to_find` names those.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from glowplug.snapshot.durable import open_regular

MIN_LENGTH = 8
_CHUNK_BYTES = 4 << 20


class FoundSecret(NamedTuple):
    """The first place in a file where the secret called ``name`` lies. Its value is never repeated."""

    name: str
    file: str
    offset: int


def find_secrets(
    directory: Path, secrets: Mapping[str, bytes], min_length: int = MIN_LENGTH
) -> list[FoundSecret]:
    """The first occurrence of each secret in each file below ``directory``, by file and offset.

    Raises OSError if a file cannot be read: what was not looked at is not proved clean.
    """
    wanted = {name: value for name, value in secrets.items() if len(value) >= max(min_length, 1)}
    if not wanted:
        return []
    found: list[FoundSecret] = []
    for path in _regular_files(directory):
        offsets = _first_offsets(path, wanted)
        file = path.relative_to(directory).as_posix()
        found.extend(FoundSecret(name, file, offset) for name, offset in offsets.items())
    return sorted(found, key=lambda hit: (hit.file, hit.offset, hit.name))


def too_short_to_find(secrets: Mapping[str, bytes], min_length: int = MIN_LENGTH) -> list[str]:
    """Names of the secrets :func:`find_secrets` does not look for."""
    return sorted(name for name, value in secrets.items() if len(value) < max(min_length, 1))


def _regular_files(directory: Path) -> Iterator[Path]:
    """Every regular file below; unlike ``rglob``, a folder that is missing or unreadable is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(directory, onerror=refuse):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _first_offsets(path: Path, wanted: Mapping[str, bytes]) -> dict[str, int]:
    """Read in pieces that overlap by one byte less than the longest secret, so that none hides in a seam."""
    overlap = max(len(value) for value in wanted.values()) - 1
    buffer = bytearray(overlap + _CHUNK_BYTES)
    view = memoryview(buffer)
    missing = dict(wanted)
    offsets: dict[str, int] = {}
    kept = 0
    start_of_buffer = 0
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        while missing and (count := file.readinto(view[kept:])):
            end = kept + count
            for name, value in list(missing.items()):
                position = buffer.find(value, 0, end)
                if position >= 0:
                    offsets[name] = start_of_buffer + position
                    del missing[name]
            carried = min(overlap, end)
            view[:carried] = view[end - carried : end]
            start_of_buffer += end - carried
            kept = carried
    return offsets
