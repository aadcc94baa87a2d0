"""The SQL of the SSD tier's chunk rows. Every function works inside the transaction its caller began."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from glowplug.chunks.chunk import Chunk, aligned
from glowplug.chunks.ssd_packs import location_of, pack_of, place_of

_IDS_PER_QUERY = 256
_ROWS_PER_INSERT = 64  # each statement gives the GIL away, and waits for it


class Body(NamedTuple):
    """Where a chunk's bytes lie (:func:`~glowplug.chunks.ssd_packs.place_of`), or lay: then it is a hole."""

    place: int
    size_bytes: int
    id: bytes

    def is_of(self, chunk: Chunk) -> bool:
        """Whether it can be this chunk: a row of another length is not."""
        return self.size_bytes == chunk.size_bytes


class Totals(NamedTuple):
    """Sums over all rows. ``removals`` grows with every transaction that removes chunks."""

    used_bytes: int
    chunks: int
    removals: int


def find(connection: sqlite3.Connection, chunk_id: bytes) -> Body | None:
    """The row of a chunk."""
    found = connection.execute("SELECT place, size FROM chunk WHERE id = ?", (chunk_id,)).fetchone()
    return None if found is None else Body(found[0], found[1], chunk_id)


def find_all(connection: sqlite3.Connection, ids: Sequence[bytes]) -> dict[bytes, Body]:
    """The rows of those that there are."""
    rows: dict[bytes, Body] = {}
    for start in range(0, len(ids), _IDS_PER_QUERY):
        some = ids[start : start + _IDS_PER_QUERY]
        marks = ",".join("?" * len(some))
        query = f"SELECT place, size, id FROM chunk WHERE id IN ({marks})"  # noqa: S608 (question marks only)
        for row in connection.execute(query, some):
            rows[row[2]] = Body._make(row)
    return rows


def in_pack(connection: sqlite3.Connection, table: str, pack: int) -> list[Body]:
    """What ``chunk`` or ``hole`` says of a pack, by offset."""
    query = f"SELECT place, size, id FROM {table} WHERE place >= ? AND place < ? ORDER BY place"  # noqa: S608
    bounds = (place_of(pack, 0), place_of(pack + 1, 0))
    return [Body._make(row) for row in connection.execute(query, bounds)]


def after(connection: sqlite3.Connection, place: int, used_until_s: int, limit: int) -> list[Body]:
    """The next rows, in the order of the bytes on disk, of chunks that were not used since."""
    query = "SELECT place, size, id FROM chunk WHERE place > ? AND +used_s <= ? ORDER BY place LIMIT ?"
    return [Body._make(row) for row in connection.execute(query, (place, used_until_s, limit))]


def packs(connection: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """Each pack that has rows, with the offset at which its last chunk ends."""
    pack = -1
    while True:
        query = "SELECT place FROM chunk WHERE place >= ? ORDER BY place LIMIT 1"
        found = connection.execute(query, (place_of(pack + 1, 0),)).fetchone()
        if found is None:
            return
        pack = pack_of(found[0])
        yield pack, end_of(connection, "chunk", pack)


def highest_pack(connection: sqlite3.Connection) -> int:
    """The last pack that anything is known of."""
    query = "SELECT max(place) FROM (SELECT max(place) AS place FROM chunk UNION SELECT max(place) FROM hole)"
    (place,) = connection.execute(query).fetchone()
    return 0 if place is None else pack_of(place)


def end_of(connection: sqlite3.Connection, table: str, pack: int) -> int:
    """Where the last ``chunk`` or ``hole`` of a pack ends, in bytes."""
    query = f"SELECT place, size FROM {table} WHERE place >= ? AND place < ? ORDER BY place DESC LIMIT 1"  # noqa: S608
    found = connection.execute(query, (place_of(pack, 0), place_of(pack + 1, 0))).fetchone()
    return 0 if found is None else location_of(found[0]).offset + aligned(found[1])


def is_empty(connection: sqlite3.Connection, pack: int) -> bool:
    """Whether a pack has neither a chunk nor a range that is still to be given back."""
    return end_of(connection, "chunk", pack) == end_of(connection, "hole", pack) == 0


def oldest(
    connection: sqlite3.Connection, after_use: tuple[int, int], limit: int
) -> list[tuple[tuple[int, int], Body]]:
    """The next rows by last use, each with what to go on from: ``(used_s, place)``."""
    query = """SELECT used_s, place, size, id FROM chunk WHERE (used_s, place) > (?, ?)
               ORDER BY used_s, place LIMIT ?"""
    found = connection.execute(query, (*after_use, limit))
    return [((used_s, place), Body(place, size, chunk_id)) for used_s, place, size, chunk_id in found]


def insert(connection: sqlite3.Connection, rows: Sequence[Body], used_s: int) -> None:
    """Add chunks; of one that another process has added meanwhile, our copy becomes a hole."""
    before = connection.total_changes
    for start in range(0, len(rows), _ROWS_PER_INSERT):
        some = rows[start : start + _ROWS_PER_INSERT]
        marks = ",".join(["(?, ?, ?, ?)"] * len(some))
        values = [value for place, size, chunk_id in some for value in (place, chunk_id, size, used_s)]
        statement = f"INSERT INTO chunk VALUES {marks} ON CONFLICT (id) DO NOTHING"  # noqa: S608 (question marks only)
        connection.execute(statement, values)
    added_rows = rows
    if connection.total_changes - before != len(rows):
        known = find_all(connection, [row.id for row in rows])
        add_holes(connection, [row for row in rows if known[row.id] != row])
        added_rows = [row for row in rows if known[row.id] == row]
    _add_to_totals(connection, added_rows, 1)


def delete(connection: sqlite3.Connection, rows: Sequence[Body]) -> None:
    """Remove chunks; their ranges become holes."""
    connection.executemany("DELETE FROM chunk WHERE place = ?", [(row.place,) for row in rows])
    add_holes(connection, rows)
    _add_to_totals(connection, rows, -1)
    connection.execute("UPDATE total SET removals = removals + 1")


def touch(connection: sqlite3.Connection, ids: Sequence[bytes], used_s: int, grain_s: int) -> None:
    """Note that these were used, unless that was noted less than ``grain_s`` ago."""
    connection.executemany(
        "UPDATE chunk SET used_s = ? WHERE id = ? AND used_s < ?",
        [(used_s, chunk_id, used_s - grain_s) for chunk_id in ids],
    )


def totals(connection: sqlite3.Connection) -> Totals:
    """The sums."""
    return Totals._make(connection.execute("SELECT used_bytes, chunks, removals FROM total").fetchone())


def totals_and_has(connection: sqlite3.Connection, chunk_id: bytes) -> tuple[Totals, bool]:
    """The sums, and whether they include this chunk."""
    query = "SELECT used_bytes, chunks, removals, EXISTS (SELECT 1 FROM chunk WHERE id = ?) FROM total"
    *sums, has_chunk = connection.execute(query, (chunk_id,)).fetchone()
    return Totals._make(sums), bool(has_chunk)


def holes(connection: sqlite3.Connection) -> list[Body]:
    """All ranges to give back, in the order of the bytes on disk."""
    return [
        Body._make(hole) for hole in connection.execute("SELECT place, size, id FROM hole ORDER BY place")
    ]


def add_holes(connection: sqlite3.Connection, added: Sequence[Body]) -> None:
    """Note ranges to give back."""
    connection.executemany("INSERT OR REPLACE INTO hole VALUES (?, ?, ?)", added)


def delete_holes(connection: sqlite3.Connection, punched: Sequence[Body]) -> None:
    """Forget ranges that were given back, or whose pack is gone."""
    connection.executemany("DELETE FROM hole WHERE place = ?", [(hole.place,) for hole in punched])


def _add_to_totals(connection: sqlite3.Connection, rows: Sequence[Body], sign: int) -> None:
    used_bytes = sum(aligned(row.size_bytes) for row in rows)
    connection.execute(
        "UPDATE total SET used_bytes = used_bytes + ?, chunks = chunks + ?",
        (sign * used_bytes, sign * len(rows)),
    )
