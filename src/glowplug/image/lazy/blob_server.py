"""Reads of blobs: from packs on this machine where the chunks are here, else when they have arrived.

A read that finds everything in page cache is answered on the caller's thread. One that needs the disk is
handed to a few threads that may wait for it, one that needs a fetch waits on nobody's thread: neither ever
holds up a read that could be answered at once. What is answered was hashed by us or by the fetcher; whatever
goes wrong fails that read and no other, and is counted and logged. No byte is made up, except for the zeros
between a chunk's end and the next block, which are part of the blob.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from glowplug.chunks.fetch import Done, Outcome, PrefetchHandle, Priority, RemoteBlob
from glowplug.chunks.fetch_stats import FetchStats
from glowplug.image.lazy.blob import NOWHERE, Blob, pack_and_block, place_word
from glowplug.image.lazy.fuse_session import Part, Scratch
from glowplug.image.lazy.local_read import LocalChunks, LocalReader, Piece, WouldBlock, padded, pieces_of
from glowplug.observe.limited_log import LimitedLog
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, Unavailable

_log = logging.getLogger(__name__)

_DISK_THREADS = 8  # reads in flight to the SSD
_LOCATED_AHEAD = 32  # chunks

ReadDone = Callable[[Sequence[Part] | GlowplugError], None]
"""Called once: with the bytes as parts (good until it returns), or with what went wrong."""


class ChunkFetcher(Protocol):
    """What reads need of :class:`glowplug.chunks.fetch.Fetcher`."""

    def want(self, blob: RemoteBlob, index: int, priority: Priority, done: Done) -> None:
        """Call ``done`` once, with verified bytes or the error."""
        ...

    def prefetch(self, blob: RemoteBlob, order: Iterable[int], *, is_guess: bool = False) -> PrefetchHandle:
        """Fetch these while nobody wants anything more urgent."""
        ...

    def read_ahead(
        self, blob: RemoteBlob, order: Iterable[int], when_given_up: Callable[[Sequence[int]], None]
    ) -> None:
        """Fetch these soon, for somebody who may want them next."""
        ...

    def give_up(self, blob: RemoteBlob) -> None:
        """Nobody wants it any more: tell who waits."""
        ...

    def stats(self) -> FetchStats:
        """What was done so far."""
        ...

    def close(self, timeout_s: float = ...) -> None:
        """Take no more, and give up what is left after the timeout."""
        ...


class _Read:
    """A read that was not answered yet."""

    __slots__ = (
        "arrived", "blob", "distrusted", "done", "end", "is_over", "lock", "missed_s", "new_chunks", "start",
        "waiting",
    )  # fmt: skip

    def __init__(self, blob: Blob, start: int, end: int, done: ReadDone, new_chunks: int) -> None:
        self.blob = blob
        self.start = start
        self.end = end
        self.done = done
        self.new_chunks = new_chunks
        self.arrived: dict[int, tuple[Part, Part]] = {}  # what it wants of a chunk, and of its padding
        self.distrusted: set[int] = set()  # were not where they should be: fetched, so a read always ends
        self.lock = threading.Lock()
        self.waiting = 0
        self.missed_s = 0.0
        self.is_over = False


class BlobServer:
    """See the module. Safe to use from many threads, each with its own scratch."""

    def __init__(self, chunks: LocalChunks, fetcher: ChunkFetcher, clock: Clock) -> None:
        self._chunks = chunks
        self._fetcher = fetcher
        self._clock = clock
        self._reader = LocalReader(chunks)
        self._warnings = LimitedLog(_log, clock)
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        self._own = threading.local()

    def read(self, blob: Blob, offset: int, size_bytes: int, scratch: Scratch, done: ReadDone) -> None:
        """Read as ``pread`` does: nothing at the end, less than asked for before it.

        ``done`` is called before this returns, or later on another thread. Never more than MAX_READ_BYTES.
        """
        end = min(offset + size_bytes, offset + len(scratch.answer), blob.size_bytes)
        if offset >= end:
            done(())
            return
        new = self._touch(blob, blob.table.at(offset), blob.table.at(end - 1))
        self._go_on(_Read(blob, offset, end, done, new), scratch, may_block=False)

    def noticed(self, blob: Blob, first: int, last: int) -> None:
        """These chunks, verified and on this machine, were read past this server."""
        blob.count(ssd_chunks=self._touch(blob, first, last))

    def close(self) -> None:
        """End the threads that wait for disks; reads that are not answered by now may never be."""
        self._disk.shutdown(wait=False, cancel_futures=True)

    def _touch(self, blob: Blob, first: int, last: int) -> int:
        """Note a read of these chunks; how many had not been read before."""
        new = blob.touch(first, last)
        if new:
            self._chunks.touch([blob.table[index].id for index in new])
            self._read_ahead(blob, blob.ahead.reached(new[0], new[-1]))
        return len(new)

    def _go_on(self, read: _Read, scratch: Scratch, *, may_block: bool) -> None:
        """Bring a read as far as it gets on this thread: to its answer, its error, or somebody's queue."""
        try:
            while not self._attempt(read, scratch, may_block):
                pass
        except WouldBlock:
            read.blob.count(waited_for_disk=1)
            self._wait_for_disk(read)
        except GlowplugError as problem:
            self._fail(read, problem)
        except OSError as problem:
            self._fail(read, _disk_failed(read.blob, problem))
        except Exception as problem:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            _log.error("a read of %s failed unexpectedly", read.blob.digest[:16], exc_info=problem)
            self._fail(read, _disk_failed(read.blob, problem))

    def _attempt(self, read: _Read, scratch: Scratch, may_block: bool) -> bool:
        """False: some of what is said to be here is not, so the rest of the read is another one."""
        pieces = self._placed(read)
        absent = [piece for piece in pieces if _is_absent(read, piece)]
        if absent:
            self._fetch(read, absent)
            return True
        here = [piece for piece in pieces if piece.chunk not in read.arrived]
        wrong = self._reader.read(read.blob, here, read.start, scratch, may_block=may_block)
        if wrong:
            read.distrusted.update(piece.chunk for piece in wrong)
            self._drop(read.blob, wrong)
            return False
        self._finish(read, self._assemble(read, pieces, scratch))
        return True

    @staticmethod
    def _assemble(read: _Read, pieces: list[Piece], scratch: Scratch) -> Sequence[Part]:
        """The answer: what arrived as it came if that is all of it, else put in between what was read."""
        if len(read.arrived) == len(pieces):
            return [part for piece in pieces for part in read.arrived[piece.chunk]]
        answer = scratch.answer
        for piece in pieces:
            at = piece.start - read.start
            for part in read.arrived.get(piece.chunk, ()):
                answer[at : at + len(part)] = part
                at += len(part)
        return (answer[: read.end - read.start],)

    def _placed(self, read: _Read) -> list[Piece]:
        """The read's pieces, each with its place on this machine if there is one."""
        blob = read.blob
        pieces = pieces_of(blob, read.start, read.end)
        unknown = [
            piece.chunk for piece in pieces if piece.place == NOWHERE and piece.chunk not in read.arrived
        ]
        if not unknown:
            return pieces
        # One look-up for many: who reads in order asks for those behind next.
        behind = range(pieces[-1].chunk + 1, min(len(blob.table), pieces[-1].chunk + _LOCATED_AHEAD))
        unknown += [index for index in behind if blob.places[index] == NOWHERE]
        if not self._locate(blob, unknown):
            return pieces
        return pieces_of(blob, read.start, read.end)

    def _locate(self, blob: Blob, indices: list[int]) -> bool:
        """Look these chunks up on this machine; whether any is here. A broken SSD tier has none."""
        try:
            locations = self._chunks.locate_all([blob.table[index] for index in indices])
        except (GlowplugError, OSError) as problem:
            self._warnings.warning("the SSD tier cannot be asked, so chunks are fetched: %s", problem)
            return False
        found = False
        for index, location in zip(indices, locations, strict=True):
            if location is not None:
                blob.places[index] = place_word(location)
                found = True
        return found

    def _drop(self, blob: Blob, wrong: list[Piece]) -> None:
        """Forget where these were said to lie, and have the SSD tier forget those that are damaged."""
        for piece in wrong:
            blob.misplace(piece.chunk, piece.place)
            chunk = blob.table[piece.chunk]
            try:
                is_damaged = self._chunks.forget_corrupt(chunk)
            except GlowplugError as problem:
                self._warnings.warning("chunk %s cannot be checked: %s", chunk.id.hex()[:16], problem)
                continue
            if is_damaged:
                blob.count(corrupt_chunks=1)
                self._warnings.warning(
                    "chunk %s in pack %d was damaged; it is fetched again",
                    chunk.id.hex()[:16],
                    pack_and_block(piece.place)[0],
                )

    def _fetch(self, read: _Read, absent: list[Piece]) -> None:
        blob = read.blob
        blob.count(waited_for_fetch=1)
        read.waiting = len(absent)
        read.missed_s = self._clock.monotonic()
        for piece in absent:
            self._fetcher.want(blob.remote, piece.chunk, Priority.READ, partial(self._arrived, read, piece))
        self._read_ahead(
            blob, blob.ahead.missed(blob.remote, absent[0].chunk, absent[-1].chunk, read.missed_s)
        )

    def _arrived(self, read: _Read, piece: Piece, outcome: Outcome) -> None:
        """On a thread of the fetcher: one chunk is there, or is not to be had."""
        if isinstance(outcome, GlowplugError):
            self._fail(read, outcome)
            return
        content, padding = padded(read.blob, piece.chunk, outcome, read.start, read.end)
        with read.lock:
            if read.is_over:
                return
            read.waiting -= 1
            is_last = read.waiting == 0
            # The bytes are a view of more, and ours until we return only: copy what has to wait.
            read.arrived[piece.chunk] = (content if is_last else bytes(content), padding)
        if not is_last:
            return
        read.blob.ahead.waited(self._clock.monotonic() - read.missed_s)
        pieces = pieces_of(read.blob, read.start, read.end)
        if len(read.arrived) == len(pieces):
            self._finish(read, [part for one in pieces for part in read.arrived[one.chunk]])
        else:
            read.arrived[piece.chunk] = (bytes(content), padding)
            self._wait_for_disk(read)

    def _read_ahead(self, blob: Blob, indices: Sequence[int]) -> None:
        if indices:
            self._fetcher.read_ahead(blob.remote, indices, blob.ahead.forget)

    def _wait_for_disk(self, read: _Read) -> None:
        try:
            self._disk.submit(self._go_on_waiting, read)
        except RuntimeError:  # closed
            self._fail(read, _closed())

    def _go_on_waiting(self, read: _Read) -> None:
        scratch = getattr(self._own, "scratch", None)
        if scratch is None:
            scratch = self._own.scratch = Scratch()
        self._go_on(read, scratch, may_block=True)

    def _finish(self, read: _Read, parts: Sequence[Part]) -> None:
        if self._claim(read):
            fetched = len(read.arrived)
            fetched_bytes = sum(len(content) + len(padding) for content, padding in read.arrived.values())
            size_bytes = read.end - read.start
            read.blob.count_read(
                size_bytes, size_bytes - fetched_bytes, max(0, read.new_chunks - fetched), fetched
            )
            read.done(parts)

    def _fail(self, read: _Read, problem: GlowplugError) -> None:
        if self._claim(read):
            read.blob.count(errors=1)
            self._warnings.warning(
                "bytes %d to %d of image %s cannot be read: %s",
                read.start, read.end, read.blob.digest[:16], problem,
            )  # fmt: skip
            read.done(problem)

    @staticmethod
    def _claim(read: _Read) -> bool:
        """Whether the caller is the one to answer."""
        with read.lock:
            is_first = not read.is_over
            read.is_over = True
        return is_first


def _is_absent(read: _Read, piece: Piece) -> bool:
    """Whether it has to be fetched."""
    is_here = piece.place != NOWHERE and piece.chunk not in read.distrusted
    return not is_here and piece.chunk not in read.arrived


def _disk_failed(blob: Blob, problem: Exception) -> Unavailable:
    return Unavailable(
        f"Content of image {blob.digest[:16]} could not be read from this machine: {problem}.",
        remedy="Check the disk and the log of the blob daemon.",
        digest=blob.digest,
    )


def _closed() -> Unavailable:
    return Unavailable("The blob daemon is stopping.", remedy="Try again.")
