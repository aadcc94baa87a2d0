"""Whole files: sealed where they lie, chunk by chunk, and opened by several threads.

A sealed file has the length of the plain one, and its chunks the same bounds: so it is kept, mounted and
fetched as the plain one would be. What that tells to others is in ``docs/snapshot-sealing.md``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from glowplug.chunks.chunk import CHUNK_BYTES, is_zero
from glowplug.chunks.cutting import CUT_ONE_IN, EndsBefore, first_cut, is_memory
from glowplug.snapshot.sealing.cipher import TAG_BYTES, Seal, Sealer, WrongSeal
from glowplug.snapshot.sealing.keys import SealingKey
from glowplug.snapshot.sealing.table import SealedChunk, SealedFile, altered, sealed_name

_CHUNK_PURPOSE = "chunk"
_CUT_PURPOSE = "where memory is cut"
_MOST_THREADS = 8


def seal_file(path: Path, name: str, key: SealingKey) -> SealedFile:
    """Put the ciphertext in the place of what the file holds. Raises OSError; the file is lost then."""
    sealer, ends_before = Sealer(key, _CHUNK_PURPOSE), _keyed_cut(key)
    sealed = bytearray(CHUNK_BYTES + TAG_BYTES)
    chunks = []
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size_bytes, offset = os.fstat(descriptor).st_size, 0
        while offset < size_bytes:
            body = memoryview(_read(descriptor, offset, min(CHUNK_BYTES, size_bytes - offset), path))
            if is_memory(size_bytes):
                body = body[: first_cut(body, ends_before)]
            seal = None
            if not is_zero(body):
                seal = sealer.seal(body, sealed)
                _write(descriptor, offset, memoryview(sealed)[: len(body)])
            chunks.append(SealedChunk(len(body), seal))
            offset += len(body)
    finally:
        os.close(descriptor)
    return SealedFile(name, size_bytes, tuple(chunks))


def open_files(source: Path, files: Sequence[SealedFile], target: Path, key: SealingKey) -> None:
    """Write all of ``files``, sealed in ``source``, to the empty folder ``target``, the small ones first.

    Returns once every byte was authenticated. Raises InvalidInput for what was altered, OSError.
    """
    with ExitStack() as stack:
        work = _Work(stack, source, files, target)
        thread_count = min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(thread_count, "snapshot-open") as pool:
            opened = [
                pool.submit(_open_chunks, work, Sealer(key, _CHUNK_PURPOSE)) for _ in range(thread_count)
            ]
        for thread in opened:
            thread.result()


@dataclass(frozen=True, slots=True)
class _Piece:
    source: int
    target: int
    offset: int
    size_bytes: int
    seal: Seal
    name: str


class _Work:
    """The chunks to open, handed out one by one to threads. After :meth:`stop` there are no more."""

    def __init__(self, stack: ExitStack, source: Path, files: Sequence[SealedFile], target: Path) -> None:
        self._stack = stack
        self._source = source
        self._target = target
        self._lock = threading.Lock()
        self._pieces = self._in_order(sorted(enumerate(files), key=lambda item: item[1].size_bytes))

    def next(self) -> _Piece | None:
        with self._lock:
            return next(self._pieces, None)

    def stop(self) -> None:
        with self._lock:
            self._pieces = iter(())

    def _in_order(self, files: Sequence[tuple[int, SealedFile]]) -> Iterator[_Piece]:
        for number, file in files:
            source = self._open(self._source / sealed_name(number), os.O_RDONLY)
            if os.fstat(source).st_size != file.size_bytes:
                raise altered(f"{file.name} has not {file.size_bytes} bytes")
            target = self._open(self._target / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.ftruncate(target, file.size_bytes)
            offset = 0
            for chunk in file.chunks:
                if chunk.seal is not None:
                    yield _Piece(source, target, offset, chunk.size_bytes, chunk.seal, file.name)
                offset += chunk.size_bytes

    def _open(self, path: Path, flags: int) -> int:
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise altered(f"{path.name} is missing") from None
        self._stack.callback(os.close, descriptor)
        return descriptor


def _open_chunks(work: _Work, sealer: Sealer) -> None:
    sealed, plain = bytearray(CHUNK_BYTES + TAG_BYTES), bytearray(CHUNK_BYTES)
    try:
        while (piece := work.next()) is not None:
            _open_piece(piece, sealer, sealed, plain)
    except BaseException:
        work.stop()
        raise


def _open_piece(piece: _Piece, sealer: Sealer, sealed: bytearray, plain: bytearray) -> None:
    room = memoryview(sealed)[: piece.size_bytes]
    if os.preadv(piece.source, [room], piece.offset) != piece.size_bytes:
        room[:] = _read(piece.source, piece.offset, piece.size_bytes, Path(piece.name))
    try:
        sealer.open(sealed, piece.size_bytes, piece.seal, plain)
    except WrongSeal as wrong:
        raise altered(f"{piece.name} at byte {piece.offset}: {wrong}") from wrong
    _write(piece.target, piece.offset, memoryview(plain)[: piece.size_bytes])


def _keyed_cut(key: SealingKey) -> EndsBefore:
    """As often as what is not sealed is cut, but where only the key tells: lengths name known content."""
    cut_key = key.subkey(_CUT_PURPOSE)

    def ends_before(start_of_page: memoryview) -> bool:
        return blake3(start_of_page, key=cut_key).digest(1)[0] % CUT_ONE_IN == 0

    return ends_before


def _read(descriptor: int, offset: int, size_bytes: int, path: Path) -> bytes:
    body = os.pread(descriptor, size_bytes, offset)
    while len(body) < size_bytes:
        more = os.pread(descriptor, size_bytes - len(body), offset + len(body))
        if not more:
            raise altered(f"{path.name} ends at byte {offset + len(body)}")
        body += more
    return body


def _write(descriptor: int, offset: int, body: memoryview) -> None:
    while body:
        count = os.pwrite(descriptor, body, offset)
        body, offset = body[count:], offset + count
