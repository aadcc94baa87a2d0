"""The router's end of what control tells it: a Unix socket that the node's gateway lets control through to.

One control plane at a time, that of the newest term: one that was succeeded is hung up on. When nobody tells
anything, the table stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from glowplug.control.edge.table import RouteTable
from glowplug.control.edge.upstream import Upstream
from glowplug.types.cluster import CertificateAnswer
from glowplug.types.errors import GlowplugError
from glowplug.types.routes import MAX_UPDATE_BYTES, SILENCE_LIMIT_S, RouterHello, RouteUpdate

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5


class Follower:
    """Applies updates to ``table`` and reports. ``on_certificate`` is given every new certificate, and may
    raise a GlowplugError, OSError.
    """

    def __init__(
        self,
        socket_path: Path,
        hello: RouterHello,
        table: RouteTable,
        upstream: Upstream,
        on_certificate: Callable[[CertificateAnswer], None],
    ) -> None:
        self.updates = 0
        self._socket_path = socket_path
        self._hello = hello
        self._table = table
        self._upstream = upstream
        self._on_certificate = on_certificate
        self._term = -math.inf
        self._current: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Listen until cancelled."""
        self._socket_path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(
            self._connected, str(self._socket_path), limit=MAX_UPDATE_BYTES
        )
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            if self._current is not None:
                self._current.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reporting: asyncio.Task[None] | None = None
        try:
            writer.write(self._hello.model_dump_json().encode() + b"\n")
            update = await _update(reader)
            if not self._is_newest(update, writer):
                return
            conversation = _Conversation(writer, self._table)
            reporting = asyncio.get_running_loop().create_task(conversation.report())
            reporting.add_done_callback(lambda _: writer.transport.abort())
            while True:
                await self._apply(update, conversation)
                update = await _update(reader)
        except (GlowplugError, OSError, EOFError, TimeoutError, ValueError) as error:
            log.warning("control tells nothing more for now: %s: %s", type(error).__name__, error)
        finally:
            if reporting is not None:
                reporting.cancel()
                (outcome,) = await asyncio.gather(reporting, return_exceptions=True)
                if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
                    log.error("reporting to control broke", exc_info=outcome)
            writer.transport.abort()
            if self._current is writer:
                self._current = None

    def _is_newest(self, update: RouteUpdate, writer: asyncio.StreamWriter) -> bool:
        if update.term < self._term:
            log.warning("control of term %d is not listened to: %s is known", update.term, self._term)
            return False
        if self._current is not None:
            self._current.transport.abort()
        if update.term > self._term:
            log.info("listening to control of term %d", update.term)
        self._term, self._current = update.term, writer
        return True

    async def _apply(self, update: RouteUpdate, conversation: _Conversation) -> None:
        self.updates += 1
        if update.certificate is not None:
            # A few milliseconds, every two hours.
            self._on_certificate(update.certificate)
            self._table.open_ways()
        if update.is_whole or update.version > conversation.version > 0:
            self._table.apply(update)
            conversation.applied(update.version)
            await self._upstream.was_told(update.control_url)
        if update.version == conversation.version > 0:
            self._table.heard()
        self._table.note_outstanding(update.outstanding)


class _Conversation:
    """One connection of control: which version was applied because of it, and what it is told."""

    def __init__(self, writer: asyncio.StreamWriter, table: RouteTable) -> None:
        self.version = 0
        self._writer = writer
        self._table = table
        self._hurry = asyncio.Event()

    def applied(self, version: int) -> None:
        """It is told at once: replicas may wait for it to go."""
        self.version = version
        self._hurry.set()

    async def report(self) -> None:
        """Until cancelled, or control reads no more."""
        is_first = True
        while True:
            self._hurry.clear()
            report = self._table.report(self.version, is_first=is_first)
            is_first = False
            self._writer.write(report.model_dump_json().encode() + b"\n")
            async with asyncio.timeout(SILENCE_LIMIT_S):
                await self._writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._hurry.wait()


async def _update(reader: asyncio.StreamReader) -> RouteUpdate:
    """The next one. Raises EOFError at the end, TimeoutError, ValueError for nonsense."""
    async with asyncio.timeout(SILENCE_LIMIT_S):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it hung up")
    return RouteUpdate.model_validate_json(line)
