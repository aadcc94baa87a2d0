"""Making room in the SSD tier: rows go first, durably, and only then the bytes they stood for.

Removed chunks leave a note of their range in the same transaction; whoever prunes next, after a crash too,
gives back what is noted. One rule keeps mounted images right: a range is not given back while the chunk that
was there is pinned. So somebody who found a chunk at a place after pinning it, and goes on reading there, or
has the kernel do it, reads the chunk and never the zeros of a hole, whatever became of the row.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from glowplug.chunks import ssd_errors, ssd_rows
from glowplug.chunks.chunk import ALIGN_BYTES, Chunk, aligned
from glowplug.chunks.ssd_index import Index
from glowplug.chunks.ssd_keep import Keeps
from glowplug.chunks.ssd_packs import LockedPack, PackFolder, location_of, pack_of
from glowplug.chunks.ssd_rows import Body
from glowplug.chunks.store import Pruned
from glowplug.types.errors import ResourceExhausted

_LOG = logging.getLogger(__name__)

_BATCH = 16_384  # chunks of one transaction: others wait for it
_BATCH_WHEN_FULL = 256  # a removed row may cost the journal three pages: the ballast has room for those
_LOOK_AT = 16_384  # rows of one transaction, where many are pinned


@dataclass(frozen=True)
class _Step:
    """What one transaction of a prune removed, and where the next goes on; None when there is no next."""

    removed: list[Body]
    used_bytes: int
    go_on: tuple[int, int] | None


class Pruner:
    """Removes chunks and gives back their room. Safe to use from many threads and processes."""

    def __init__(self, root: Path, packs: PackFolder, index: Index, keeps: Keeps) -> None:
        self._root = root
        self._packs = packs
        self._index = index
        self._keeps = keeps

    def open(self) -> None:
        """Forget chunks whose pack is gone or was cut short."""
        try:
            self._packs.make(self._index.read(ssd_rows.highest_pack))
            self._keeps.make()
        except OSError as error:
            raise ssd_errors.from_os(error, self._root) from error
        self.forget_lost_packs()

    def prune(self, budget_bytes: int) -> Pruned:
        """As :meth:`PruneStore.prune`. Raises ResourceExhausted if there is no room even for removing."""
        try:
            return self._prune(budget_bytes, _BATCH)
        except ResourceExhausted:
            return self._prune(budget_bytes, _BATCH_WHEN_FULL)

    def remove(self, chunks: Iterable[Chunk]) -> int:
        """Forget these, pinned ones excepted; how many were forgotten."""
        ids = list({chunk.id for chunk in chunks})

        def change(connection: sqlite3.Connection) -> int:
            pinned = self._keeps.pinned(connection)
            found = ssd_rows.find_all(connection, [one for one in ids if not pinned.holds(one)])
            self._keeps.forget(connection, list(found.values()))
            return len(found)

        removed = self._index.write(change)
        self.punch()
        return removed

    def forget_corrupt(self, body: Body, timeout_s: float) -> bool:
        """Forget a chunk that is not right where it lies, pinned or not; False if it lies elsewhere now."""

        def change(connection: sqlite3.Connection) -> bool:
            if ssd_rows.find(connection, body.id) != body:
                return False
            self._keeps.forget(connection, [body])
            return True

        return self._index.write(change, timeout_s)

    def forget_lost_packs(self) -> int:
        """Forget the chunks of packs that are gone, or end before the chunk does; how many those were."""
        if not self._index.read(self._lost_chunks):
            return 0

        def change(connection: sqlite3.Connection) -> int:
            lost = self._lost_chunks(connection)
            self._keeps.forget(connection, lost)
            return len(lost)

        count = self._index.write(change)
        _LOG.warning("%d chunks in %s are gone with their packs, they are fetched again", count, self._root)
        return count

    def punch(self) -> None:
        """Give back all ranges that are noted and may be, and delete packs that hold nothing any more."""
        holes = self._index.read(self._holes_to_punch)
        for number, of_pack in groupby(holes, lambda hole: pack_of(hole.place)):
            try:
                self._packs.punch(number, _merged(of_pack))
            except OSError as error:  # it stays noted
                raise ssd_errors.from_os(error, self._root) from error
        if holes:
            self._index.write(partial(ssd_rows.delete_holes, punched=holes))
            self._delete_empty({pack_of(hole.place) for hole in holes})

    def gc(self) -> int:
        """Give back all that nobody needs; how many bytes of it killed processes had left unnoted."""
        self.punch()
        found_bytes = 0
        for number in self._packs.numbers():
            locked = self._packs.lock(number)
            if locked is not None:
                try:
                    found_bytes += self._punch_unknown(locked)
                finally:
                    locked.release()
        self._delete_empty(self._packs.numbers())
        self._index.write(self._keeps.sweep)
        return found_bytes

    def prepare(self, pack: LockedPack) -> int:
        """Give back what an earlier writer of the pack left uncommitted; where the next one appends."""
        self._punch_unknown(pack)
        ends = self._index.read(
            lambda connection: [
                ssd_rows.end_of(connection, table, pack.number) for table in ("chunk", "hole")
            ]
        )
        return max(pack.size_bytes(), *ends)

    def _prune(self, budget_bytes: int, batch: int) -> Pruned:
        removed = freed_bytes = 0
        go_on: tuple[int, int] | None = (-1, -1)
        while True:
            step = self._index.write(partial(self._prune_step, budget_bytes, batch, go_on or (-1, -1)))
            removed += len(step.removed)
            freed_bytes += sum(aligned(body.size_bytes) for body in step.removed)
            self.punch()
            go_on = step.go_on
            if go_on is None:
                return Pruned(removed, freed_bytes, step.used_bytes)

    def _prune_step(
        self, budget_bytes: int, batch: int, go_on: tuple[int, int], connection: sqlite3.Connection
    ) -> _Step:
        used_bytes = ssd_rows.totals(connection).used_bytes
        if used_bytes <= budget_bytes:
            return _Step([], used_bytes, None)
        pinned = self._keeps.pinned(connection)
        removed: list[Body] = []
        looked_at = ssd_rows.oldest(connection, go_on, _LOOK_AT)
        for last_use, body in looked_at:
            if used_bytes <= budget_bytes or len(removed) == batch:
                break
            go_on = last_use
            if not pinned.holds(body.id):
                removed.append(body)
                used_bytes -= aligned(body.size_bytes)
        self._keeps.forget(connection, removed)
        is_done = used_bytes <= budget_bytes or not looked_at
        return _Step(removed, used_bytes, None if is_done else go_on)

    def _holes_to_punch(self, connection: sqlite3.Connection) -> list[Body]:
        # Pins are read last: one that comes later still is of somebody who finds no row to go by.
        holes = ssd_rows.holes(connection)
        pinned = self._keeps.pinned(connection) if holes else None
        return [hole for hole in holes if pinned is not None and not pinned.holds(hole.id)]

    def _lost_chunks(self, connection: sqlite3.Connection) -> list[Body]:
        sizes = self._packs.sizes()
        lost: list[Body] = []
        for number, end_bytes in ssd_rows.packs(connection):
            size_bytes = sizes.get(number, 0)
            if end_bytes > size_bytes:
                bodies = ssd_rows.in_pack(connection, "chunk", number)
                lost += [body for body in bodies if _end(body) > size_bytes]
        return lost

    def _punch_unknown(self, pack: LockedPack) -> int:
        """Give back what no row speaks of, in a pack that nobody is writing to; how many bytes there were."""

        def known_bodies(connection: sqlite3.Connection) -> list[Body]:
            chunks, holes = (ssd_rows.in_pack(connection, table, pack.number) for table in ("chunk", "hole"))
            return sorted(chunks + holes)

        try:
            ranges = list(_with_data(pack, _gaps(self._index.read(known_bodies), pack.size_bytes())))
            self._packs.punch(pack.number, ranges)
        except OSError as error:
            raise ssd_errors.from_os(error, self._root) from error
        return sum(end - start for start, end in ranges)

    def _delete_empty(self, numbers: Collection[int]) -> None:
        highest = max(self._packs.numbers(), default=0)  # stays: its successor's number follows from it
        for number in numbers:
            locked = self._packs.lock(number) if number < highest else None
            if locked is None:
                continue
            try:
                if self._index.read(partial(ssd_rows.is_empty, pack=number)):
                    self._packs.delete(number)
            finally:
                locked.release()


def _end(body: Body) -> int:
    return location_of(body.place).offset + aligned(body.size_bytes)


def _merged(bodies: Iterable[Body]) -> Iterator[tuple[int, int]]:
    """The byte ranges of these, which are in order, adjacent ones as one."""
    start = end = -1
    for body in bodies:
        offset = location_of(body.place).offset
        if offset != end:
            if end > start:
                yield start, end
            start = offset
        end = _end(body)
    if end > start:
        yield start, end


def _gaps(bodies: Sequence[Body], size_bytes: int) -> Iterator[tuple[int, int]]:
    """What lies between these, which are in order, and after the last of them."""
    end = 0
    for body in bodies:
        offset = location_of(body.place).offset
        if offset > end:
            yield end, offset
        end = max(end, _end(body))
    if end < size_bytes:
        yield end, size_bytes


def _with_data(pack: LockedPack, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Those that take room on disk, without the holes they start with."""
    for start, end in ranges:
        try:
            data = os.lseek(pack.descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only holes up to the end of the file
            raise
        if data < end:
            yield data // ALIGN_BYTES * ALIGN_BYTES, end
