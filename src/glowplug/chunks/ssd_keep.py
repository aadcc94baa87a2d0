"""What must stay: the chunk tables that are pinned, and those that are known to be complete.

The database holds a row per pin and per complete table, a folder holds a copy of each table, named by what it
is for. So pinning costs the same for ten chunks as for a million, and pins outlive the database: a database
that is started anew takes them from the folder. Whoever removes chunks reads the tables concerned; a pinned
table that cannot be read stops all removal, a complete one is no longer taken to be complete.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import blake3

from glowplug.chunks import ssd_rows
from glowplug.chunks.chunk import ID_BYTES
from glowplug.chunks.ssd_packs import sync_folder
from glowplug.chunks.ssd_rows import Body
from glowplug.chunks.table import HEADER, ChunkTable
from glowplug.types.errors import InvalidInput

_LOG = logging.getLogger(__name__)
_MAX_NAME_BYTES = 150  # a file name holds it, quoted, and the hash
_PREFIX_BYTES = 8


class KeptTable:
    """The content of a table's file, checked, and its hash."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.hash = blake3.blake3(data).digest()
        self.chunks = ChunkTable(data)

    @staticmethod
    def read(path: Path) -> KeptTable:
        """Raises InvalidInput for anything that is not a table, or cannot be read."""
        try:
            return KeptTable(path.read_bytes())
        except OSError as error:
            raise InvalidInput(
                f"The chunk table {path} cannot be read: {error}.",
                remedy="Pull or import the image again.",
                file=str(path),
            ) from error

    def ids(self) -> memoryview:
        """The ids, one after the other."""
        return memoryview(self.data)[HEADER.size : HEADER.size + len(self.chunks) * ID_BYTES]

    def contains_any(self, ids: set[tuple[bytes]]) -> bool:
        """Whether one of these (as 1-tuples) is in the table."""
        return not ids.isdisjoint(struct.iter_unpack(f"{ID_BYTES}s", self.ids()))


class PinnedIds:
    """The chunks of all pinned tables, as sorted prefixes of their ids: 8 bytes for each of millions.

    Another chunk with the same first 8 bytes counts as pinned, too, which does no harm.
    """

    def __init__(self, tables: Iterable[KeptTable], is_everything: bool = False) -> None:
        prefixes = array("Q")
        for table in tables:
            # Every fourth 8-byte word is the start of an id.
            prefixes.extend(table.ids().cast("Q")[:: ID_BYTES // _PREFIX_BYTES])
        self._sorted = array("Q", sorted(prefixes))
        self.is_everything = is_everything

    def holds(self, chunk_id: bytes) -> bool:
        """Whether the chunk must stay. Nothing (an empty id) need not."""
        if self.is_everything:
            return True
        if not chunk_id:
            return False
        (prefix,) = struct.unpack_from("=Q", chunk_id)
        index = bisect_left(self._sorted, prefix)
        return index < len(self._sorted) and self._sorted[index] == prefix


class Keeps:
    """Pins and complete tables. Methods with a ``connection`` work in the transaction their caller began."""

    def __init__(self, root: Path) -> None:
        self._pins = root / "pins"
        self._complete = root / "complete"
        self._cached: tuple[frozenset[tuple[str, bytes]], PinnedIds] | None = None

    def make(self) -> None:
        """Make the folders where there are none."""
        self._pins.mkdir(mode=0o700, exist_ok=True)
        self._complete.mkdir(mode=0o700, exist_ok=True)

    def start(self, connection: sqlite3.Connection) -> None:
        """Fill a new database: with the pins that the folder knows of, and with no complete table."""
        self.make()
        for path in self._complete.iterdir():
            path.unlink()
        for path in self._pins.iterdir():
            known = _owner_and_hash(path.name)
            if known is not None:
                connection.execute("INSERT OR IGNORE INTO pin VALUES (?, ?)", known)

    def pin(self, connection: sqlite3.Connection, owner: str, table: KeptTable) -> None:
        """Keep this table's chunks, and no others, for ``owner``."""
        path = self._pins / _file_name(owner, table.hash)
        (is_there,) = connection.execute(
            "SELECT count(*) FROM pin WHERE owner = ? AND hash = ?", (owner, table.hash)
        ).fetchone()
        if not is_there or not path.exists():
            _write_durably(path, table.data)
        connection.execute("DELETE FROM pin WHERE owner = ?", (owner,))
        connection.execute("INSERT INTO pin VALUES (?, ?)", (owner, table.hash))

    def unpin(self, connection: sqlite3.Connection, owner: str) -> None:
        """Keep nothing for ``owner`` any more."""
        connection.execute("DELETE FROM pin WHERE owner = ?", (owner,))

    def owners(self, connection: sqlite3.Connection) -> list[str]:
        """Who has pinned something."""
        return [owner for (owner,) in connection.execute("SELECT DISTINCT owner FROM pin ORDER BY owner")]

    def mark_complete(self, connection: sqlite3.Connection, name: str, table: KeptTable) -> None:
        """Note that all chunks of the table are here."""
        _write_durably(self._complete / _file_name(name, table.hash), table.data)
        connection.execute("INSERT OR REPLACE INTO complete VALUES (?, ?)", (name, table.hash))

    def is_complete(self, connection: sqlite3.Connection, name: str, table_hash: bytes | None = None) -> bool:
        """Whether the table of that name, or just this table, was marked and nothing removed since."""
        found = connection.execute("SELECT hash FROM complete WHERE name = ?", (name,)).fetchone()
        return found is not None and table_hash in (None, found[0])

    def pin_if_complete(
        self, connection: sqlite3.Connection, owner: str, name: str, table: KeptTable
    ) -> bool:
        """Pin the table if it is marked complete."""
        if not self.is_complete(connection, name, table.hash):
            return False
        self.pin(connection, owner, table)
        return True

    def pinned(self, connection: sqlite3.Connection) -> PinnedIds:
        """What must not be removed in this transaction."""
        pins = frozenset(connection.execute("SELECT owner, hash FROM pin").fetchall())
        cached = self._cached
        if cached is not None and cached[0] == pins:
            return cached[1]
        pinned = self._load_pinned(pins)
        if not pinned.is_everything:  # what could not be read may be readable the next time
            self._cached = pins, pinned
        return pinned

    def forget(self, connection: sqlite3.Connection, removed: Sequence[Body]) -> None:
        """Remove chunks, and with them the marks of all complete tables that they are in."""
        if not removed:
            return
        ssd_rows.delete(connection, removed)
        ids = {(row.id,) for row in removed}
        for name, table_hash in connection.execute("SELECT name, hash FROM complete").fetchall():
            table = self._load(self._complete, name, table_hash)
            if table is None or table.contains_any(ids):
                connection.execute("DELETE FROM complete WHERE name = ?", (name,))

    def sweep(self, connection: sqlite3.Connection) -> None:
        """Remove the copies of tables that no row speaks of."""
        self._sweep(self._pins, connection.execute("SELECT owner, hash FROM pin").fetchall())
        self._sweep(self._complete, connection.execute("SELECT name, hash FROM complete").fetchall())

    def _sweep(self, folder: Path, known: Collection[tuple[str, bytes]]) -> None:
        names = {_file_name(name, table_hash) for name, table_hash in known}
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    def _load_pinned(self, pins: Collection[tuple[str, bytes]]) -> PinnedIds:
        """Several owners of one table cost one reading."""
        owners_by_hash = {table_hash: owner for owner, table_hash in pins}
        tables = [self._load(self._pins, owner, table_hash) for table_hash, owner in owners_by_hash.items()]
        is_everything = None in tables
        if is_everything:
            _LOG.error("a pinned chunk table cannot be read: nothing is removed until it is unpinned")
        return PinnedIds([table for table in tables if table is not None], is_everything)

    def _load(self, folder: Path, name: str, table_hash: bytes) -> KeptTable | None:
        path = folder / _file_name(name, table_hash)
        try:
            table = KeptTable.read(path)
        except InvalidInput as error:
            _LOG.warning("%s", error.message)
            return None
        if table.hash != table_hash:
            _LOG.warning("%s is not what was written there", path)
            return None
        return table


def check_name(name: str) -> None:
    """Raise InvalidInput for a name that no file can be called after."""
    if not name or len(quote(name, safe="")) > _MAX_NAME_BYTES:
        raise InvalidInput(
            f"{name[:40]!r} cannot name a set of chunks: it is empty or too long.", remedy="Use a short name."
        )


def _file_name(name: str, table_hash: bytes) -> str:
    return f"{quote(name, safe='')}@{table_hash.hex()}"


def _owner_and_hash(file_name: str) -> tuple[str, bytes] | None:
    quoted, separator, digits = file_name.partition("@")
    try:
        table_hash = bytes.fromhex(digits)
    except ValueError:
        return None
    if not separator or len(table_hash) != ID_BYTES:
        return None
    return unquote(quoted), table_hash


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
