"""Two connections made one: bytes pass both ways as they come, and neither side runs ahead of the other."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

from glowplug.kernel.tcp import acknowledge, notice_the_dead

PIECE_BYTES = 64 << 10
_CLOSE_S = 30.0


@dataclass(frozen=True)
class Stream:
    """One connection. Its owner closes it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def protocol(self) -> str | None:
        """What TLS agreed on (ALPN)."""
        tls = self.writer.get_extra_info("ssl_object")
        return None if tls is None else tls.selected_alpn_protocol()

    async def close(self) -> None:
        """Send what was written, then close; after half a minute whatever is left is dropped."""
        self.writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.writer.wait_closed()
        except (OSError, TimeoutError):
            self.abort()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once, whatever is on its way."""
        self.writer.transport.abort()


async def accept_tls(accepted: socket.socket, context: ssl.SSLContext, timeout_s: float) -> Stream:
    """The other end of an accepted connection, its certificate checked. Raises OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    notice_the_dead(accepted)
    reader = asyncio.StreamReader(limit=PIECE_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=timeout_s
    )
    return Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def splice(near: Stream, far: Stream) -> None:
    """Carry bytes until one side has ended; what it said last is still delivered. Closes both.

    TLS, as asyncio speaks it, has no half-closed connections: the end of either side is the end of both.
    """
    pumps = {
        asyncio.ensure_future(_pump(near, far)),
        asyncio.ensure_future(_pump(far, near, is_acknowledged=True)),
    }
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        near.abort()
        far.abort()
        raise
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
    await asyncio.gather(near.close(), far.close())


async def _pump(source: Stream, sink: Stream, *, is_acknowledged: bool = False) -> None:
    """``is_acknowledged``: ``source`` is told of each piece at once, and does not wait to send the next."""
    with suppress(OSError):
        while data := await source.reader.read(PIECE_BYTES):
            if is_acknowledged:
                acknowledge(source.writer.transport)
            sink.writer.write(data)
            await sink.writer.drain()
