"""The SSD tier: the chunks of a machine, kept in pack files until room is needed, never believed unchecked.

Whatever is killed, fills up, is cut off from power or broken on disk: a reader gets the right bytes or is
told to ask the next tier. Everything that images and snapshots hold on this machine is here once. Several
processes may use one store at once. ``docs/image-store.md`` describes the folder and the rules for whoever
reads pack files directly, as mounted images do.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Collection, Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path

from typing_extensions import Buffer

from glowplug.chunks import ssd_errors, ssd_rows
from glowplug.chunks.accept import accept
from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, aligned
from glowplug.chunks.run import Run
from glowplug.chunks.ssd_ballast import Ballast
from glowplug.chunks.ssd_index import WRITE_TIMEOUT_S, Index
from glowplug.chunks.ssd_keep import Keeps, KeptTable, check_name
from glowplug.chunks.ssd_packs import Location, PackFile, PackFolder, location_of
from glowplug.chunks.ssd_prune import Pruner
from glowplug.chunks.ssd_read import ChunkReader, locations_in
from glowplug.chunks.ssd_reports import Counts, SsdStats, Usage, VerifyReport
from glowplug.chunks.ssd_room import Room
from glowplug.chunks.ssd_rows import Body
from glowplug.chunks.ssd_verify import Progress, all_bodies, bodies_of, verify_bodies
from glowplug.chunks.ssd_write import ChunkWriter
from glowplug.chunks.store import Pruned
from glowplug.chunks.table import ChunkTable
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import GlowplugError, ResourceExhausted

_LOG = logging.getLogger(__name__)

PACK_BYTES = 1 << 30
COMMIT_INTERVAL_S = 0.1


class SsdStore:
    """Chunks below ``root``, at most ``budget_bytes`` of them; an adapter of :class:`PruneStore`.

    Opening it repairs what a crash left. Close it, or use it as a context manager; not across ``fork``.
    Safe to use from many threads.
    """

    tier = "ssd"

    def __init__(
        self,
        root: Path,
        *,
        budget_bytes: int | None = None,
        clock: Clock | None = None,
        pack_bytes: int = PACK_BYTES,
        commit_interval_s: float = COMMIT_INTERVAL_S,
    ) -> None:
        self._root = root
        self._clock: Clock = clock or SystemClock()
        self._counts = Counts()
        self._packs = PackFolder(root / "packs")
        self._keeps = Keeps(root)
        self._ballast = Ballast(root)
        self._index = Index(root, self._start, self._ballast)
        self._pruner = Pruner(root, self._packs, self._index, self._keeps)
        self._writer = ChunkWriter(
            root,
            self._packs,
            self._index,
            prepare=self._pruner.prepare,
            make_room=lambda: self._room.make_for_commit(),
            clock=self._clock,
            pack_bytes=max(pack_bytes, CHUNK_BYTES),
            commit_interval_s=commit_interval_s,
        )
        self._reader = ChunkReader(
            root, self._packs, self._index, self._writer, self._pruner, self._counts, self.tier
        )
        self._room = Room(
            root,
            budget_bytes,
            self._pruner,
            self._ballast,
            used_bytes=self.used_bytes,
            commit=self._writer.commit,
            clock=self._clock,
        )
        try:
            if not self._index.is_read_only:
                self._pruner.open()
                with suppress(OSError):  # without it a full disk is only harder to clear
                    self._ballast.restore()
        except BaseException:
            self._index.close()
            raise

    def __enter__(self) -> SsdStore:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Make everything durable and let go of all files. On a full disk what was not durable is lost."""
        try:
            self._writer.close()
        except GlowplugError as error:
            _LOG.warning("the newest chunks in %s are lost: %s", self._root, error.message)
        self._index.close()
        self._packs.close()

    # Reading

    def get(self, chunk: Chunk, timeout_s: float) -> bytes:
        """The chunk's bytes, checked. One that is not right is removed, so that it is fetched again."""
        data = self._reader.get(chunk, timeout_s)
        if data is None:
            self._counts.add("misses")
            raise chunk.missing(self.tier)
        self._counts.add("hits")
        self.touch((chunk.id,))
        return data

    def missing(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that it does not hold, in order, each once."""
        unique = list(dict.fromkeys(chunks))
        known = self._reader.find_all(unique)
        return [chunk for chunk in unique if (body := known.get(chunk.id)) is None or not body.is_of(chunk)]

    def locate(self, chunk: Chunk) -> Location | None:
        """Where its bytes are; nothing is read, so nothing is checked.

        Stays true as long as the chunk has been pinned since before this was asked, or :meth:`removals` tells
        the same as before. After that there may be zeros.
        """
        body = self._reader.find(chunk.id)
        return location_of(body.place) if body is not None and body.is_of(chunk) else None

    def locate_all(self, chunks: Iterable[Chunk]) -> list[Location | None]:
        """:meth:`locate` for many."""
        return self._reader.locate_all(list(chunks))

    def pack_path(self, pack: int) -> Path:
        """The file of a pack."""
        return self._packs.path_of(pack)

    def open_pack(self, pack: int, *, past_cache: bool = False) -> PackFile:
        """A descriptor to read a pack with. Keep this object, no copy as plain int, until the read is done.

        ``past_cache`` as for :meth:`PackFolder.open`. Raises Unavailable if it is gone or cannot be opened.
        """
        try:
            return self._packs.open(pack, past_cache=past_cache)
        except OSError as error:
            raise ssd_errors.from_os(error, self._root) from error

    def read_at(self, location: Location, size_bytes: int) -> bytes:
        """What lies there, unchecked; short if the pack ends, empty if it is gone. Raises Unavailable."""
        return self._reader.read_at(location, size_bytes)

    def touch(self, chunk_ids: Iterable[bytes]) -> None:
        """Note that these were used: they are evicted later. Written some seconds later, or at a flush."""
        self._writer.touch(chunk_ids)

    def removals(self) -> int:
        """Changes with every removal of chunks by any process."""
        return self._index.read(ssd_rows.totals).removals

    # Filling

    def put(self, chunk: Chunk, data: Buffer) -> None:
        """Keep the chunk; see :class:`WriteStore`. Makes room by removing what was not used for longest."""
        known = self._reader.find(chunk.id)
        if known is not None and known.is_of(chunk):
            self.touch((chunk.id,))
            return
        accept(chunk, data, self.tier)
        if known is not None:
            self._reader.drop(known, WRITE_TIMEOUT_S)
        self._keep(Run.of(chunk, data))

    def put_verified(self, run: Run) -> list[int | None]:
        """:meth:`put` chunks of different names that the caller has just verified; they are not hashed again.

        Returns the place of each (:func:`~glowplug.chunks.ssd_packs.place_of`); None for one that was here
        before, whose bytes nobody has looked at.
        """
        known = self._reader.find_all(run.chunks)
        new: list[int] = []
        for number, chunk in enumerate(run.chunks):
            body = known.get(chunk.id)
            if body is None or not body.is_of(chunk):
                if body is not None:
                    self._reader.drop(body, WRITE_TIMEOUT_S)
                new.append(number)
        places: list[int | None] = [None] * len(run.chunks)
        rows = (row for part in run.only(new).parts(CHUNK_BYTES) for row in self._keep(part))
        for number, row in zip(new, rows, strict=True):
            places[number] = row.place
        return places

    def flush(self) -> None:
        """Make all that was put so far durable. Raises ResourceExhausted, DeadlineExceeded, Unavailable."""
        self._writer.commit()

    # Forgetting

    def used_bytes(self) -> int:
        """Room that its chunks take, as whole blocks."""
        return self._writer.totals().used_bytes

    def remove(self, chunks: Collection[Chunk]) -> int:
        """Forget these, pinned ones excepted."""
        self._writer.commit()
        self._room.changed()
        return self._pruner.remove(chunks)

    def prune(self, budget_bytes: int) -> Pruned:
        """Forget the least recently used, never a pinned one, until :meth:`used_bytes` fits."""
        with suppress(ResourceExhausted):  # on a full disk room comes first
            self._writer.commit()
        pruned = self._pruner.prune(budget_bytes)
        with suppress(OSError):
            self._ballast.restore()
        return pruned

    def gc(self) -> int:
        """Give back the room that crashes left taken; how many bytes that were."""
        return self._pruner.gc()

    def forget_corrupt(self, chunk: Chunk) -> bool:
        """Check a chunk that a reader found wrong, and remove it if it is; whether it was.

        If not, it lies elsewhere by now, or the reader was mistaken: :meth:`locate` it again.
        """
        body = self._reader.find(chunk.id)
        if body is None or self._reader.right_bytes(chunk, body) is not None:
            return False
        return self._reader.drop(body, WRITE_TIMEOUT_S)

    # Pins and complete sets

    def pin(self, owner: str, table: Path) -> None:
        """Keep all chunks of a chunk table's file, those that come later too, until ``owner`` is unpinned.

        Durable. An owner has one table: a second one takes the place of the first. Raises InvalidInput.
        """
        check_name(owner)
        kept = KeptTable.read(table)
        self._index.write(lambda connection: self._keeps.pin(connection, owner, kept))

    def unpin(self, owner: str) -> None:
        """Let go of what ``owner`` has pinned, if anything."""
        self._index.write(lambda connection: self._keeps.unpin(connection, owner))
        self._room.changed()

    def pins(self) -> list[str]:
        """Who has pinned something."""
        return self._index.read(self._keeps.owners)

    def mark_complete(
        self, name: str, table: Path, locations: Sequence[Location | None] | None = None
    ) -> bool:
        """Note, durably, that all chunks of a table are here; False if they are not.

        With ``locations`` (as :meth:`locate_all` gave them), also False if one lies elsewhere by now.
        Removing any of the chunks, for whatever reason, takes the mark away in the same transaction.
        """
        check_name(name)
        kept = KeptTable.read(table)
        self._writer.commit()
        self._pruner.forget_lost_packs()

        def change(connection: sqlite3.Connection) -> bool:
            found = ssd_rows.find_all(connection, [chunk.id for chunk in kept.chunks])
            here = locations_in(found, kept.chunks)
            if None in here or (locations is not None and here != list(locations)):
                return False
            self._keeps.mark_complete(connection, name, kept)
            return True

        return self._index.write(change)

    def is_complete(self, name: str) -> bool:
        """Whether the set is complete at this moment; pin it to have it stay so (:meth:`pin_if_complete`)."""
        if self._index.is_read_only:  # what was removed last may be in a journal that we do not see
            return False
        return self._index.read(lambda connection: self._keeps.is_complete(connection, name))

    def pin_if_complete(self, owner: str, name: str, table: Path) -> bool:
        """Pin the table if it is marked complete, in one step that no removal comes between."""
        check_name(owner)
        kept = KeptTable.read(table)
        return self._index.write(
            lambda connection: self._keeps.pin_if_complete(connection, owner, name, kept)
        )

    # Telling

    def stats(self) -> SsdStats:
        """Numbers for metrics."""
        totals, counts = self._writer.totals(), self._counts
        return SsdStats(
            used_bytes=totals.used_bytes,
            chunks=totals.chunks,
            hits=counts["hits"],
            misses=counts["misses"],
            corrupt_chunks=counts["corrupt_chunks"],
            full_errors=counts["full_errors"],
            index_resets=self._index.resets,
        )

    def usage(self, table: ChunkTable) -> Usage:
        """How much of a table is here."""
        here = [
            chunk for chunk, place in zip(table, self.locate_all(table), strict=True) if place is not None
        ]
        return Usage(len(here), sum(chunk.size_bytes for chunk in here), len(table), table.content_bytes)

    def unneeded(self, needed: Set[bytes], idle_s: float = 0.0) -> list[Chunk]:
        """All chunks but those with these ids, and those used within the last ``idle_s``."""
        used_before_s = int(self._clock.wall() - idle_s)
        return [
            Chunk(body.id, body.size_bytes)
            for body in all_bodies(self._index, used_before_s)
            if body.id not in needed
        ]

    def verify(
        self,
        progress: Progress | None = None,
        cancelled: threading.Event | None = None,
        only: Iterable[Chunk] | None = None,
    ) -> VerifyReport:
        """Hash everything, or ``only`` these chunks, again and remove what is wrong."""
        self._writer.commit()
        if only is None:
            bodies, total_bytes = all_bodies(self._index), self.used_bytes()
        else:
            chunks = list(only)
            bodies = bodies_of(self._index, chunks)
            total_bytes = sum(aligned(chunk.size_bytes) for chunk in chunks)
        return verify_bodies(bodies, total_bytes, self._reader.is_right, progress, cancelled)

    # Inside

    def _start(self, connection: sqlite3.Connection) -> None:
        """Fit for a new index: it knows no chunk, so there must be no pack."""
        self._packs.start_over()
        self._keeps.start(connection)

    def _keep(self, run: Run) -> list[Body]:
        """Write them, of together at most CHUNK_BYTES; on a full disk, once more after some room was made."""
        room_bytes = run.room_bytes
        try:
            with self._room.taken(room_bytes):
                try:
                    return self._append(run, room_bytes)
                except ResourceExhausted:
                    self._room.make_on_disk()
                    return self._append(run, room_bytes)
        except ResourceExhausted:
            self._counts.add("full_errors")
            raise

    def _append(self, run: Run, room_bytes: int) -> list[Body]:
        try:
            self._room.check_disk(room_bytes)
            return self._writer.append(run)
        except OSError as error:
            raise ssd_errors.from_os(error, self._root) from error
