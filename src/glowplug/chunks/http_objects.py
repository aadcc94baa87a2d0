"""A region behind plain HTTP(S): a CDN, a bucket made public, any server that knows ranges. Read only."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import Buffer

from glowplug.chunks.http_address import Resolver
from glowplug.chunks.http_server import HttpServer, Wanted
from glowplug.chunks.objects import ObjectInfo
from glowplug.chunks.pace import Attempts, Meter, Stalled
from glowplug.types.clock import Clock, SystemClock
from glowplug.types.errors import InvalidInput, Unavailable

PAUSES_S = (0.1, 0.5)
"""Before the second and third attempt of a read that found the server unavailable."""


class HttpObjects:
    """See :class:`glowplug.chunks.objects.Objects`; what writes raises InvalidInput."""

    def __init__(
        self,
        url: str,
        *,
        tier: str = "region",
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """Raises InvalidInput for a URL that is no HTTP server's."""
        self._tier = tier
        self._clock = clock or SystemClock()
        self._server = HttpServer(url, self._clock, Resolver(self._clock), tls)
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self.url = str(self._server)

    @property
    def tier(self) -> str:
        """``region``."""
        return self._tier

    def close(self) -> None:
        """Drop the idle connections. May be called twice."""
        self._closed.set()
        self._server.close()

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> memoryview:
        """See :class:`glowplug.chunks.objects.Objects`."""
        return self._read(Wanted(key, start, size_bytes), timeout_s)

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        """See :class:`glowplug.chunks.objects.Objects`."""
        return bytes(self._read(Wanted(key, 0, limit_bytes, is_whole=True), timeout_s))

    @property
    def meters(self) -> Sequence[Meter]:
        """See :class:`glowplug.chunks.objects.MeteredObjects`."""
        return (self._server.meter,)

    def _read(self, wanted: Wanted, timeout_s: float) -> memoryview:
        deadline_s = self._clock.monotonic() + timeout_s
        attempts, came = Attempts(), bytearray()
        while True:
            try:
                data = self._read_patiently(wanted, attempts.patience_s, deadline_s)
            except Stalled as stalled:
                if not attempts.may_repeat(len(stalled.received)):
                    raise
                if not wanted.is_whole:  # an object may be another one by now; packs never change
                    came += stalled.received
                    wanted = wanted.after(len(stalled.received))
            else:
                return memoryview(came + data) if came else data

    def _read_patiently(self, wanted: Wanted, patience_s: float, deadline_s: float) -> memoryview:
        """What one attempt gives, or a few where the server is not available. Raises Stalled."""
        for pause_s in PAUSES_S:
            try:
                return self._server.request(wanted, patience_s).run(deadline_s).data
            except Stalled:
                raise
            except Unavailable:
                if self._clock.monotonic() + pause_s >= deadline_s:
                    raise
                self._pause(pause_s)
        return self._server.request(wanted, patience_s).run(deadline_s).data

    def sign(self, key: str, expires_s: float) -> str | None:
        """There are no signatures here."""
        return None

    def origin_url(self) -> str | None:
        """Where a zone's caches fetch from: the same place."""
        return self.url

    def write(self, key: str, data: Buffer | Path, timeout_s: float) -> None:
        """Raises InvalidInput."""
        self._refuse()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Raises InvalidInput."""
        self._refuse()

    def delete(self, keys: Collection[str]) -> None:
        """Raises InvalidInput."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InvalidInput(
            f"{self.url} can only be read: HTTP has no way to list or to write.",
            remedy="To push, name the bucket behind it: s3://.., gs://.., az://.. or a folder.",
        )
