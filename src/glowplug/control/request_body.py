"""The body of one request on its way in: streamed with back-pressure, and kept while it is small.

A body is read only as fast as the replica takes it, so ten gigabytes need no more memory than one chunk. As
long as everything read so far fits in ``REPLAY_LIMIT_BYTES`` it is kept, so that the request can be sent
again to another replica; all requests together keep no more than their :class:`KeptBytes` allows. One reader
at a time: the ASGI server's ``receive`` is not shared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from glowplug.control import headers
from glowplug.control.headers import RawHeaders
from glowplug.types.clock import Clock

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

REPLAY_LIMIT_BYTES = 1 << 20
SMALL_BODY_BYTES = 64 << 10


class ClientGone(Exception):
    """The caller hung up: there is nobody to answer."""


class KeptBytes:
    """What all requests together may keep of their bodies: thousands may wait at the same time."""

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    @property
    def is_free(self) -> bool:
        """More may be kept."""
        return self._used_bytes < self._limit_bytes

    def add(self, count: int) -> None:
        """So many are kept more (or, negative, fewer)."""
        self._used_bytes += count


class RequestBody:
    """Reads one request's body and notices when its caller goes away. :meth:`close` when it is answered."""

    def __init__(self, receive: Receive, raw_headers: RawHeaders, clock: Clock, kept: KeptBytes) -> None:
        self._receive = receive
        self._clock = clock
        length = headers.first(raw_headers, b"content-length")
        is_chunked = headers.first(raw_headers, b"transfer-encoding") is not None
        self.length_bytes = None if is_chunked or length is None else int(length)
        self.is_present = is_chunked or bool(self.length_bytes)
        self.is_complete = not self.is_present
        self.is_kept = True
        """Everything read so far can be sent again."""
        self.is_caller_gone = False
        self.moved_at_s = clock.monotonic()
        """When the last chunk was read or handed on."""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._all_kept = kept

    @property
    def is_small(self) -> bool:
        """Short enough to be read whole before a replica is asked."""
        return self.length_bytes is not None and self.length_bytes <= SMALL_BODY_BYTES

    async def read_all(self) -> bytes:
        """The whole of a small body. Raises ClientGone."""
        while not self.is_complete:
            await self._read()
        return b"".join(self._kept)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body from its beginning (what was kept), then as it arrives. Raises ClientGone."""
        for chunk in list(self._kept):
            yield chunk
        while not self.is_complete:
            if chunk := await self._read():
                yield chunk
                self.moved_at_s = self._clock.monotonic()

    async def wait_for_disconnect(self) -> bool:
        """Return True once the caller is gone. Meanwhile keep what arrives of the body.

        Returns False when no more may be kept: from there on the connection's own back-pressure stops the
        caller, and its going away shows when reading resumes.
        """
        try:
            while self.is_complete or self._may_keep_more:
                await self._read()
        except ClientGone:
            return True
        return False

    async def _read(self) -> bytes:
        message = await self._receive()
        self.moved_at_s = self._clock.monotonic()
        if message["type"] == "http.disconnect":
            self.is_caller_gone = True
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            self.is_complete = True
        if chunk and self.is_kept:
            self._keep(chunk)
        return chunk

    @property
    def _may_keep_more(self) -> bool:
        return self._kept_bytes < REPLAY_LIMIT_BYTES and (self._all_kept.is_free or self.is_small)

    def _keep(self, chunk: bytes) -> None:
        # One chunk past the limit is still kept if it was read while waiting; then reading stops.
        if not self._may_keep_more:
            self.is_kept = False
            self.close()
            return
        self._kept.append(chunk)
        self._kept_bytes += len(chunk)
        self._all_kept.add(len(chunk))

    def close(self) -> None:
        """Keep nothing any more."""
        self._all_kept.add(-self._kept_bytes)
        self._kept.clear()
        self._kept_bytes = 0
