"""Filling the SSD tier: bodies are appended by many threads at once, their rows committed in groups.

A body is readable in this process as soon as it is written, in others once its row is committed, a fraction
of a second later or at :meth:`ChunkWriter.commit`. Packs are synced before rows are committed, so a committed
row never points at bytes that a power cut can lose. A pack stays locked until all that this process knows to
be in it is committed; what a killed process had not committed belongs to nobody, and is given back by whoever
locks the pack next.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

from glowplug.chunks import ssd_errors, ssd_rows
from glowplug.chunks.chunk import ALIGN_BYTES, Chunk, aligned
from glowplug.chunks.run import Run
from glowplug.chunks.ssd_index import Index
from glowplug.chunks.ssd_packs import LockedPack, PackFolder, pack_of, place_of
from glowplug.chunks.ssd_rows import Body, Totals
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, ResourceExhausted

_LOG = logging.getLogger(__name__)

TOUCH_INTERVAL_S = 5.0
TOUCH_GRAIN_S = 60  # the order of eviction need not be finer, and the same chunks are read again and again
_MAX_TOUCHED = 1 << 15
_MAX_PENDING = 1 << 16  # then whoever puts also commits
_RETRY_S = 2.0


@dataclass(eq=False)
class _Appended:
    """A pack that this process appends to, or has appended to and not yet committed all of."""

    pack: LockedPack
    end_bytes: int
    in_flight: int = 0
    is_retired: bool = False


@dataclass(eq=False)
class _Batch:
    rows: list[Body]
    holes: list[Body]
    packs: list[_Appended]

    @property
    def first_id(self) -> bytes:
        return self.rows[0].id if self.rows else b""

    @cached_property
    def room_bytes(self) -> int:
        return sum(aligned(row.size_bytes) for row in self.rows)


class ChunkWriter:
    """``prepare`` makes a pack that was just locked ready, and says where to append.

    ``make_room`` is called when the disk is full as rows are committed; then they are tried once more.
    Safe to use from many threads.
    """

    def __init__(
        self,
        root: Path,
        packs: PackFolder,
        index: Index,
        *,
        prepare: Callable[[LockedPack], int],
        make_room: Callable[[], object],
        clock: Clock,
        pack_bytes: int,
        commit_interval_s: float,
    ) -> None:
        self._root = root
        self._packs = packs
        self._index = index
        self._prepare = prepare
        self._make_room = make_room
        self._clock = clock
        self._pack_bytes = pack_bytes
        self._commit_interval_s = commit_interval_s
        self._reserving = threading.Lock()
        self._committing = threading.Lock()
        self._changed = threading.Condition()  # its lock guards all that follows
        self._current: _Appended | None = None
        self._appended: list[_Appended] = []
        self._pending: dict[bytes, Body] = {}
        self._lost: list[Body] = []
        self._touched: set[bytes] = set()
        self._pending_bytes = 0
        self._batch = _Batch([], [], [])
        self._batches = 0
        self._due_s = 0.0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def append(self, run: Run) -> list[Body]:
        """Write chunks that were verified, one behind the other; of together at most CHUNK_BYTES.

        Raises OSError, and what opening a pack raises.
        """
        appended, offset = self._reserve(run.room_bytes)
        places = accumulate(
            (aligned(chunk.size_bytes) // ALIGN_BYTES for chunk in run.chunks),
            initial=place_of(appended.pack.number, offset),
        )
        rows = [
            Body(place, chunk.size_bytes, chunk.id) for chunk, place in zip(run.chunks, places, strict=False)
        ]
        try:
            appended.pack.append(run, offset)
        except BaseException:
            self._finish(appended, rows, is_written=False)
            raise
        if self._finish(appended, rows, is_written=True) > _MAX_PENDING:
            self.commit()
        return rows

    def find(self, chunk_id: bytes) -> Body | None:
        """The row of a chunk that is not committed yet."""
        return self._pending.get(chunk_id)

    def find_all(self, chunks: Iterable[Chunk]) -> dict[bytes, Body]:
        """The rows of those of these that are not committed yet."""
        find = self._pending.get
        return {chunk.id: body for chunk in chunks if (body := find(chunk.id)) is not None}

    def totals(self) -> Totals:
        """The sums over all chunks, committed or not, each counted once."""
        while True:
            with self._changed:
                batches, batch = self._batches, self._batch
                chunks, used_bytes = len(self._pending), self._pending_bytes
            known, has_batch = self._index.read(partial(ssd_rows.totals_and_has, chunk_id=batch.first_id))
            if has_batch:  # it is about to be no longer pending
                chunks, used_bytes = chunks - len(batch.rows), used_bytes - batch.room_bytes
            if batches == self._batches:  # else what was pending may have been committed meanwhile
                return Totals(known.used_bytes + used_bytes, known.chunks + chunks, known.removals)

    def touch(self, ids: Iterable[bytes]) -> None:
        """Note, some time soon, that these were used now."""
        if self._index.is_read_only:
            return
        with self._changed:
            if not self._touched:
                self._wake(TOUCH_INTERVAL_S)
            self._touched.update(ids)
            if len(self._touched) > _MAX_TOUCHED:
                self._wake(0)

    def commit(self) -> None:
        """Make everything that was appended so far durable, and known to all processes.

        Raises ResourceExhausted when the disk is full: what is not committed stays readable in this process,
        and is tried again.
        """
        with self._committing:
            batch, touched = self._begin_batch(), self._take_touched()
            if not (batch.rows or batch.holes or touched):
                self._release_retired()
                return
            self._sync(batch)
            change = self._change(batch, touched)
            try:
                self._index.write(change, may_use_ballast=False)
            except ResourceExhausted:
                self._make_room()
                self._index.write(change, may_use_ballast=False)
            self._forget_pending(batch.rows, len(batch.holes))
            self._release_retired()

    def close(self) -> None:
        """Commit, and let go of all packs."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        try:
            self.commit()
        finally:
            with self._changed:
                for appended in self._appended:
                    appended.pack.release()
                self._appended, self._current = [], None

    def _reserve(self, room_bytes: int) -> tuple[_Appended, int]:
        """A range that is ours alone, for ever."""
        with self._reserving:
            current = self._current
            if current is None or not self._has_room(current, room_bytes):
                current = self._next_pack()
            offset = current.end_bytes
            current.end_bytes += room_bytes
            with self._changed:
                current.in_flight += 1
            return current, offset

    def _has_room(self, appended: _Appended, room_bytes: int) -> bool:
        if appended.is_retired or appended.end_bytes + room_bytes > self._pack_bytes:
            return False
        return appended.pack.is_linked()

    def _next_pack(self) -> _Appended:
        pack = self._packs.take(self._pack_bytes)
        try:
            begun = _Appended(pack, self._prepare(pack))
        except BaseException:
            pack.release()
            raise
        with self._changed:
            if self._current is not None:
                self._current.is_retired = True
            self._current = begun
            self._appended.append(begun)
        return begun

    def _finish(self, appended: _Appended, rows: Iterable[Body], is_written: bool) -> int:
        """Account for a range that was reserved; how many rows are waiting."""
        with self._changed:
            appended.in_flight -= 1
            for row in rows:
                if is_written and row.id not in self._pending:
                    if not self._pending:
                        self._wake(self._commit_interval_s)
                    self._pending[row.id] = row
                    self._pending_bytes += aligned(row.size_bytes)
                else:
                    self._lost.append(row)
            return len(self._pending)

    def _begin_batch(self) -> _Batch:
        with self._changed:
            self._batches += 1
            self._batch = _Batch(list(self._pending.values()), list(self._lost), list(self._appended))
            return self._batch

    def _sync(self, batch: _Batch) -> None:
        """Have the bodies on disk. What cannot be brought there is given up, with the pack it is in."""
        numbers = {pack_of(row.place) for row in batch.rows}
        for appended in batch.packs:
            if appended.pack.number not in numbers:
                continue
            try:
                os.fdatasync(appended.pack.descriptor)
            except OSError as error:
                self._give_up(appended, batch)
                raise ssd_errors.from_os(error, self._root) from error

    def _give_up(self, appended: _Appended, batch: _Batch) -> None:
        number = appended.pack.number
        _LOG.error("pack %d could not be synced: its newest chunks are given up", number)
        lost = [row for row in batch.rows if pack_of(row.place) == number]
        self._forget_pending(lost, 0)
        with self._changed:
            appended.is_retired = True
            self._lost += lost

    def _change(self, batch: _Batch, touched: list[bytes]) -> Callable[[sqlite3.Connection], None]:
        now_s = int(self._clock.wall())

        def change(connection: sqlite3.Connection) -> None:
            # Looked at in the transaction, where no other process can be starting the index anew.
            gone = {appended.pack.number for appended in batch.packs if not appended.pack.is_linked()}
            ssd_rows.insert(connection, _outside(gone, batch.rows), now_s)
            ssd_rows.add_holes(connection, _outside(gone, batch.holes))
            ssd_rows.touch(connection, touched, now_s, TOUCH_GRAIN_S)
            for appended in batch.packs:
                appended.is_retired |= appended.pack.number in gone

        return change

    def _take_touched(self) -> list[bytes]:
        with self._changed:
            touched, self._touched = self._touched, set()
        return list(touched)

    def _forget_pending(self, rows: list[Body], holes: int) -> None:
        with self._changed:
            self._batch = _Batch([], [], [])
            for row in rows:
                del self._pending[row.id]
                self._pending_bytes -= aligned(row.size_bytes)
            del self._lost[:holes]
            if self._pending:  # put while we were at it
                self._wake(self._commit_interval_s)

    def _release_retired(self) -> None:
        """Let go of packs that are full, or gone, once nothing of them is unknown to the index."""
        with self._changed:
            waiting = {pack_of(row.place) for row in self._pending.values()}
            waiting |= {pack_of(hole.place) for hole in self._lost}
            for appended in list(self._appended):
                if appended.is_retired and not appended.in_flight and appended.pack.number not in waiting:
                    self._appended.remove(appended)
                    appended.pack.release()

    def _wake(self, within_s: float) -> None:
        """Have the committing thread come round by then; the caller holds the lock."""
        due_s = time.monotonic() + within_s
        if self._thread is None and not self._is_closed:
            self._due_s = due_s
            self._thread = threading.Thread(target=self._run, name="ssd-commit", daemon=True)
            self._thread.start()
        elif due_s < self._due_s:
            self._due_s = due_s
            self._changed.notify_all()

    def _run(self) -> None:
        while self._wait_until_due():
            try:
                self.commit()
            except GlowplugError as error:
                _LOG.warning("chunks are not committed yet: %s", error.message)
                with self._changed:
                    self._due_s = time.monotonic() + _RETRY_S

    def _wait_until_due(self) -> bool:
        """Whether there is something to commit; False once the writer is closed."""
        with self._changed:
            while not self._is_closed:
                left_s = self._due_s - time.monotonic()
                if left_s <= 0:
                    self._due_s = float("inf")
                    return True
                self._changed.wait(None if left_s == float("inf") else left_s)
        return False


def _outside(packs: set[int], bodies: list[Body]) -> list[Body]:
    return [body for body in bodies if pack_of(body.place) not in packs] if packs else bodies
