"""Which chunks a file had when it was last read, so that an unchanged one is not read again.

"Unchanged" is git's rule: device, inode, size, mtime and ctime are the same, *and* the file had been left
alone for a while when it was read. The while is longer than a clock tick: a program that writes through
``mmap`` moves a file's times only when a page turns dirty anew, and pages stay dirty for about 35 s.

Only a cache: damaged, locked or lost, it costs time. Then it says so in the log, and everything is read.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from glowplug.chunks.chunk import CHUNK_BYTES, ID_BYTES, Chunk
from glowplug.image.index.tree import Extent
from glowplug.image.origin.folder_access import Signature

_log = logging.getLogger(__name__)

SETTLED_S = 60
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE file (
    device INTEGER NOT NULL, inode INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, seen_day INTEGER NOT NULL, extents BLOB NOT NULL,
    PRIMARY KEY (device, inode)
) WITHOUT ROWID
"""
_LOCK_TIMEOUT_S = 5.0
_FORGET_AFTER_DAYS = 60
_DAY_S = 86_400
_EXTENT = struct.Struct("<QI")
_CHUNK = struct.Struct(f"<{ID_BYTES}sI")

Extents = tuple[Extent, ...]


class ScanCache:
    """The cache in one file, which several processes may use at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, signatures: Sequence[Signature]) -> list[Extents | None]:
        """What each file held, None for those that are unknown or changed."""
        try:
            with closing(self._connect()) as database:
                return [_recall(database, signature) for signature in signatures]
        except (sqlite3.Error, OSError) as error:
            self._give_up("read", error)
            return [None] * len(signatures)

    def record(
        self, files: Iterable[tuple[Signature, Extents]], recalled: Iterable[Signature], scan_started_s: float
    ) -> None:
        """Remember ``files`` that were read, and that those ``recalled`` are still in use.

        ``scan_started_s`` is Unix time; files touched shortly before it, or after, are not remembered.
        """
        settled_ns = int((scan_started_s - SETTLED_S) * 1e9)
        today = int(scan_started_s) // _DAY_S
        try:
            with closing(self._connect()) as database, database:
                database.executemany(
                    "UPDATE file SET seen_day = ? WHERE device = ? AND inode = ? AND seen_day < ?",
                    ((today, _signed(known.device), _signed(known.inode), today) for known in recalled),
                )
                database.executemany(
                    "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        (*_row(signature), today, _pack(extents))
                        for signature, extents in files
                        if signature.ctime_ns < settled_ns
                    ),
                )
                database.execute("DELETE FROM file WHERE seen_day < ?", (today - _FORGET_AFTER_DAYS,))
        except (sqlite3.Error, OSError) as error:
            self._give_up("written", error)

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with database:
                database.execute("BEGIN IMMEDIATE")
                if database.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
                    database.execute("DROP TABLE IF EXISTS file")
                    database.execute(_SCHEMA)
                    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    def _give_up(self, what: str, error: Exception) -> None:
        _log.warning("the scan cache %s could not be %s: %s; files are read anew", self._path, what, error)
        is_damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, sqlite3.OperationalError
        )
        if is_damaged:
            for name in (self._path.name, f"{self._path.name}-wal", f"{self._path.name}-shm"):
                self._path.with_name(name).unlink(missing_ok=True)


def _recall(database: sqlite3.Connection, signature: Signature) -> Extents | None:
    row = database.execute(
        "SELECT size_bytes, mtime_ns, ctime_ns, extents FROM file WHERE device = ? AND inode = ?",
        (_signed(signature.device), _signed(signature.inode)),
    ).fetchone()
    if row is None or row[:3] != signature[2:]:
        return None
    return _unpack(row[3], signature.size_bytes)


def _row(signature: Signature) -> tuple[int, ...]:
    return (_signed(signature.device), _signed(signature.inode), *signature[2:])


def _signed(number: int) -> int:
    """Inode numbers have 64 bits, SQLite's integers 63 and a sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _pack(extents: Extents) -> bytes:
    parts = []
    for extent in extents:
        parts.append(_EXTENT.pack(extent.offset, len(extent.chunks)))
        parts.extend(_CHUNK.pack(chunk.id, chunk.size_bytes) for chunk in extent.chunks)
    return b"".join(parts)


def _unpack(data: bytes, size_bytes: int) -> Extents | None:
    """The extents, None if they cannot be those of a file of this size."""
    extents: list[Extent] = []
    at = end = 0
    try:
        while at < len(data):
            offset, count = _EXTENT.unpack_from(data, at)
            at += _EXTENT.size
            body = data[at : at + count * _CHUNK.size]
            at += count * _CHUNK.size
            chunks = tuple(Chunk(*fields) for fields in _CHUNK.iter_unpack(body))
            if offset < end or offset % CHUNK_BYTES or not 0 < len(chunks) == count:
                return None
            end = offset + sum(chunk.size_bytes for chunk in chunks)
            extents.append(Extent(offset, chunks))
    except struct.error:
        return None
    return tuple(extents) if end <= size_bytes else None
