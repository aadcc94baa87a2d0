"""Packs on their way to a region: built in order by one thread, uploaded by a few, never many in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.objects import WriteObjects
from glowplug.chunks.pack import Pack, PackWriter, index_key, pack_key
from glowplug.chunks.placement import Place

PACKS_AT_ONCE = 4
UPLOAD_TIMEOUT_S = 600.0


class Uploads:
    """Takes chunks in order and turns them into packs in a region. A context manager, for one thread.

    Leaving the block by an exception drops what has not been sent; packs that are there stay.
    """

    def __init__(self, objects: WriteObjects, pack_bytes: int, *, is_compressing: bool) -> None:
        self._objects = objects
        self._pack_bytes = pack_bytes
        self._is_compressing = is_compressing
        self._room = threading.BoundedSemaphore(PACKS_AT_ONCE)
        self._senders = ThreadPoolExecutor(PACKS_AT_ONCE, "glowplug-push")
        self._sending: list[Future[None]] = []
        self._writer = PackWriter(is_compressing=is_compressing)
        self._indices: list[int] = []
        self._places: list[tuple[int, Place]] = []
        self.sent_bytes = 0
        self.packs = 0

    def __enter__(self) -> Uploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._senders.shutdown(cancel_futures=True)

    def add(self, index: int, chunk: Chunk, data: Buffer) -> None:
        """The next chunk. Waits while too much is under way. Raises what an earlier upload raised."""
        self._writer.add(chunk, data)
        self._indices.append(index)
        if self._writer.is_full or self._writer.size_bytes >= self._pack_bytes:
            self._send()

    def finish(self) -> Iterator[tuple[int, Place]]:
        """Send the rest and wait; then where each chunk lies. Raises what an upload raised."""
        if self._indices:
            self._send()
        for sent in self._sending:
            sent.result()
        return iter(self._places)

    def _send(self) -> None:
        pack = self._writer.finish()
        self._places.extend(
            (index, Place(pack.id, member.offset, member.stored_bytes, member.encoding))
            for index, member in zip(self._indices, pack.members, strict=True)
        )
        self.sent_bytes += len(pack.data)
        self.packs += 1
        self._writer = PackWriter(is_compressing=self._is_compressing)
        self._indices = []
        self._room.acquire()
        self._raise_failures()
        self._sending.append(self._senders.submit(self._upload, pack))

    def _raise_failures(self) -> None:
        going = []
        for sent in self._sending:
            if sent.done():
                sent.result()
            else:
                going.append(sent)
        self._sending = going

    def _upload(self, pack: Pack) -> None:
        try:
            self._objects.write(pack_key(pack.id), pack.data, UPLOAD_TIMEOUT_S)
            self._objects.write(index_key(pack.id), pack.index, UPLOAD_TIMEOUT_S)
        finally:
            self._room.release()
