"""Replica logs: reading their end, following them, keeping them small.

The sandbox writes straight to the file (opened O_APPEND), so rotation copies and truncates: the writer never
notices, and no process of ours stands between an application and its log.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

MAX_LOG_BYTES = 16 << 20
KEPT_ROTATIONS = 2
KEPT_ENDED_LOGS = 100
_FOLLOW_POLL_S = 0.1
_TAIL_CHUNK_BYTES = 64 << 10
_READ_BYTES = 1 << 20
_ERROR_TAIL_BYTES = 8 << 10


logger = logging.getLogger(__name__)


def tail(log: Path, lines: int) -> str:
    """The last ``lines`` lines; empty for a log that is not there."""
    data, _end = _tail(log, lines)
    return data.decode(errors="replace")


def _tail(log: Path, lines: int) -> tuple[bytes, int]:
    """The last ``lines`` lines, and the position after them."""
    try:
        with log.open("rb") as file:
            end = position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                step = min(_TAIL_CHUNK_BYTES, position)
                position -= step
                file.seek(position)
                data = file.read(step) + data
    except FileNotFoundError:
        return b"", 0
    kept = data.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return b"".join(kept), end


def last_words(log: Path, lines: int = 12) -> str:
    """The end of a log, short enough to go into an error message."""
    return tail(log, lines)[-_ERROR_TAIL_BYTES:].strip()


async def follow(log: Path, lines: int, is_over: Callable[[], bool]) -> AsyncIterator[str]:
    """The last ``lines`` lines, then what is added, until ``is_over()`` and everything was read."""
    # A character may be written, and read, in two pieces.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    start, position = await asyncio.to_thread(_tail, log, lines)
    yield decoder.decode(start)
    while True:
        over = is_over()
        added, position = await asyncio.to_thread(_read_from, log, position)
        if added:
            yield decoder.decode(added)
        elif over:
            return
        else:
            await asyncio.sleep(_FOLLOW_POLL_S)


def _read_from(log: Path, position: int) -> tuple[bytes, int]:
    """What was written after ``position``; from the start if the log was emptied by a rotation."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0 if size < position else position)
            data = file.read(_READ_BYTES)
            return data, file.tell()
    except FileNotFoundError:
        return b"", 0


def rotate(log: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Copy a log that has grown too big to ``.1`` and empty it. Returns whether it did.

    On a full disk it is emptied without a copy: it may well be what fills it.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(KEPT_ROTATIONS, 1, -1):
        older = log.with_name(f"{log.name}.{number - 1}")
        if older.exists():
            older.rename(log.with_name(f"{log.name}.{number}"))
    copy = log.with_name(f"{log.name}.1")
    try:
        shutil.copyfile(log, copy)
    except OSError as error:
        logger.warning("%s is emptied without a copy: %s", log.name, error)
        copy.unlink(missing_ok=True)
    os.truncate(log, 0)
    return True


def prune(folder: Path, living: set[str], keep: int = KEPT_ENDED_LOGS) -> None:
    """Remove the logs of replicas that ended long ago: all but the newest ``keep``."""
    ended = [
        path
        for path in folder.glob("*.log")
        if path.is_file() and path.name.removesuffix(".log") not in living
    ]
    ended.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in ended[keep:]:
        for rotated in folder.glob(f"{path.name}*"):
            rotated.unlink(missing_ok=True)
