"""Cuts file content into chunks, names them by hash and puts them into a store, on a few threads.

Many small files come in one call and cost one question to the store; of a large one, several chunks are read,
hashed and put at once, and never more than a few MiB of it are in memory.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from types import TracebackType

from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, is_zero
from glowplug.chunks.cutting import checksum_ends, first_cut
from glowplug.chunks.store import WriteStore
from glowplug.image.index.tree import Extent
from glowplug.image.origin.port import ByteStream, Range
from glowplug.types.errors import InvalidInput

_AHEAD = 2  # chunks in flight per thread: one being worked on, one waiting for it


class ChunkSink:
    """A :class:`~glowplug.image.origin.port.ContentSink` upon a store, and the count of what it took.

    A context manager: leaving the block ends its threads. ``check`` is called for each chunk of a large
    file, and what it raises ends the reading of that file.
    """

    def __init__(
        self, store: WriteStore, workers: int | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._check = check
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="chunk-sink")
        self._lock = threading.Lock()
        self._seen: set[bytes] = set()
        self._new_bytes = 0
        self._known_bytes = 0

    def __enter__(self) -> ChunkSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def new_bytes(self) -> int:
        """Of distinct chunks that the store did not hold before."""
        return self._new_bytes

    @property
    def known_bytes(self) -> int:
        """Of distinct chunks that the store held already."""
        return self._known_bytes

    def add_contents(self, contents: Sequence[bytes]) -> list[tuple[Extent, ...]]:
        """See :class:`~glowplug.image.origin.port.ContentSink`."""
        chunks = [None if is_zero(content) else Chunk.of(content) for content in contents]
        bodies = {chunk: body for chunk, body in zip(chunks, contents, strict=True) if chunk is not None}
        for chunk in self._claim(bodies):
            self._store.put(chunk, bodies[chunk])
        return [() if chunk is None else (Extent(0, (chunk,)),) for chunk in chunks]

    def add_stream(
        self, stream: ByteStream, size_bytes: int, data_ranges: Sequence[Range] | None = None
    ) -> tuple[Extent, ...]:
        """See :class:`~glowplug.image.origin.port.ContentSink`."""

        def read(_offset: int, length: int) -> bytes:
            return _read_all(stream, length)

        def work() -> Iterator[tuple[int, Callable[[], Chunk | None]]]:
            for index, pieces in cut(size_bytes, data_ranges):
                body = _assemble(index, pieces, size_bytes, read)
                yield index * CHUNK_BYTES, lambda body=body: self._keep(body)  # type: ignore[misc]

        return self._run(work())

    def add_file(
        self, descriptor: int, size_bytes: int, data_ranges: Sequence[Range] | None = None
    ) -> tuple[Extent, ...]:
        """See :class:`~glowplug.image.origin.port.ContentSink`."""

        def read(offset: int, length: int) -> bytes:
            return _pread_all(descriptor, offset, length)

        def keep(index: int, pieces: list[Range]) -> Chunk | None:
            return self._keep(_assemble(index, pieces, size_bytes, read))

        def work() -> Iterator[tuple[int, Callable[[], Chunk | None]]]:
            for index, pieces in cut(size_bytes, data_ranges):
                yield index * CHUNK_BYTES, lambda index=index, pieces=pieces: keep(index, pieces)  # type: ignore[misc]

        return self._run(work())

    def add_pages(
        self, descriptor: int, size_bytes: int, cuts: Sequence[int] | None = None
    ) -> tuple[Extent, ...]:
        """See :class:`~glowplug.image.origin.port.ContentSink`."""

        def read(offset: int, length: int) -> bytes:
            return _pread_all(descriptor, offset, length)

        def work() -> Iterator[tuple[int, Callable[[], Chunk | None]]]:
            for offset, body in cut_at_pages(size_bytes, read) if cuts is None else cut_as_told(cuts, read):
                yield offset, lambda body=body: self._keep(body)  # type: ignore[misc]

        return self._run(work())

    def missing(self, chunks: Iterable[Chunk]) -> set[Chunk]:
        """See :class:`~glowplug.image.origin.port.ContentSink`."""
        asked = {chunk.id: chunk for chunk in chunks}
        absent = set(self._store.missing(asked.values()))
        with self._lock:
            for chunk in asked.values():
                if chunk not in absent and chunk.id not in self._seen:
                    self._seen.add(chunk.id)
                    self._known_bytes += chunk.size_bytes
        return absent

    def _run(self, work: Iterable[tuple[int, Callable[[], Chunk | None]]]) -> tuple[Extent, ...]:
        """Do the work (a chunk's offset, and what makes it) on the pool, in order, not far ahead."""
        extents = _Extents()
        waiting: deque[tuple[int, Future[Chunk | None]]] = deque()
        try:
            for offset, task in work:
                self._check()
                if len(waiting) >= _AHEAD * self._workers:
                    extents.append(waiting[0][0], waiting[0][1].result())
                    waiting.popleft()
                waiting.append((offset, self._pool.submit(task)))
            for offset, future in waiting:
                extents.append(offset, future.result())
        except BaseException:
            _settle(future for _, future in waiting)
            raise
        return extents.finish()

    def _keep(self, body: Buffer) -> Chunk | None:
        if is_zero(body):
            return None
        chunk = Chunk.of(body)
        for new in self._claim([chunk]):
            self._store.put(new, body)
        return chunk

    def _claim(self, chunks: Iterable[Chunk]) -> list[Chunk]:
        """Those that nobody has put yet: the caller has to."""
        with self._lock:
            unseen = [chunk for chunk in chunks if chunk.id not in self._seen]
            self._seen.update(chunk.id for chunk in unseen)
        if not unseen:
            return unseen
        absent = self._store.missing(unseen)
        new_bytes = sum(chunk.size_bytes for chunk in absent)
        with self._lock:
            self._new_bytes += new_bytes
            self._known_bytes += sum(chunk.size_bytes for chunk in unseen) - new_bytes
        return absent


class _Extents:
    """Gathers the chunks of a file, in order, into runs."""

    def __init__(self) -> None:
        self._done: list[Extent] = []
        self._start = 0
        self._end = 0
        self._run: list[Chunk] = []

    def append(self, offset: int, chunk: Chunk | None) -> None:
        if chunk is None:
            return
        if self._run and offset != self._end:
            self._close()
        if not self._run:
            self._start = offset
        self._run.append(chunk)
        self._end = offset + chunk.size_bytes

    def finish(self) -> tuple[Extent, ...]:
        self._close()
        return tuple(self._done)

    def _close(self) -> None:
        if self._run:
            self._done.append(Extent(self._start, tuple(self._run)))
            self._run = []


def cut(size_bytes: int, data_ranges: Sequence[Range] | None) -> Iterator[tuple[int, list[Range]]]:
    """The chunks that hold data: each one's number, and the (start, length) of its data in the file.

    Raises InvalidInput unless the ranges are ascending, apart and within the file.
    """
    ranges = [(0, size_bytes)] if data_ranges is None else data_ranges
    pieces = _split_at_chunks(size_bytes, ranges)
    for index, group in groupby(pieces, key=lambda piece: piece[0] // CHUNK_BYTES):
        yield index, list(group)


def cut_at_pages(size_bytes: int, read: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Chunks that end where the content of a page says so (:mod:`glowplug.chunks.cutting`)."""
    offset = 0
    while offset < size_bytes:
        body = read(offset, min(CHUNK_BYTES, size_bytes - offset))
        end = first_cut(body, checksum_ends)
        yield offset, body[:end]
        offset += end


def cut_as_told(cuts: Sequence[int], read: Callable[[int, int], bytes]) -> Iterator[tuple[int, bytes]]:
    """Chunks of these lengths: of content that does not tell any more where it is to be cut."""
    offset = 0
    for length in cuts:
        yield offset, read(offset, length)
        offset += length


def _split_at_chunks(size_bytes: int, ranges: Sequence[Range]) -> Iterator[Range]:
    end = 0
    for start, length in ranges:
        if start < end or length < 0 or start + length > size_bytes:
            raise InvalidInput(
                f"The map of a sparse file of {size_bytes} bytes is wrong at byte {start}.",
                remedy="Make the archive again.",
            )
        end = start + length
        while start < end:
            step = min(end, (start // CHUNK_BYTES + 1) * CHUNK_BYTES) - start
            yield start, step
            start += step


def _assemble(
    index: int, pieces: list[Range], size_bytes: int, read: Callable[[int, int], bytes]
) -> bytes | bytearray:
    """The whole chunk ``index``: its data, and zeros where it has none."""
    base = index * CHUNK_BYTES
    chunk_bytes = min(CHUNK_BYTES, size_bytes - base)
    if pieces == [(base, chunk_bytes)]:
        return read(base, chunk_bytes)
    body = bytearray(chunk_bytes)
    for start, length in pieces:
        body[start - base : start - base + length] = read(start, length)
    return body


def _read_all(stream: ByteStream, length: int) -> bytes:
    body = stream.read(length)
    if len(body) == length:
        return body
    parts = [body]
    got = len(body)
    while got < length:
        part = stream.read(length - got)
        if not part:
            raise _ended_early(length - got)
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def _pread_all(descriptor: int, offset: int, length: int) -> bytes:
    body = os.pread(descriptor, length, offset)
    while len(body) < length:
        part = os.pread(descriptor, length - len(body), offset + len(body))
        if not part:
            raise _ended_early(length - len(body))
        body += part
    return body


def _ended_early(missing_bytes: int) -> InvalidInput:
    return InvalidInput(
        f"A file's content ended {missing_bytes} bytes before its end.",
        remedy="It was cut off on its way, or changed while it was read: get it again and try again.",
        missing_bytes=missing_bytes,
    )


def _settle(futures: Iterable[Future[Chunk | None]]) -> None:
    """Let go of work that nobody wants any more, so that it touches nothing once this returns."""
    running = [future for future in futures if not future.cancel()]
    for future in running:
        future.exception()
