"""A slow link, where the kernel has no netem: carries bytes both ways, each as late as a file says.

``python -m tests.faults.cluster.delay_proxy LISTEN_HOST LISTEN_PORT TARGET_HOST TARGET_PORT FILE``: the file
holds seconds, and may change at any time; none is no delay. Bytes stay in order, and nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

_PIECE_BYTES = 64 << 10
_PIECES = 256


class Link:
    """Passes what arrives on to ``target``."""

    def __init__(self, target: tuple[str, int], delay_file: Path) -> None:
        self._target = target
        self._delay_file = delay_file

    def _delay_s(self) -> float:
        try:
            return float(self._delay_file.read_text() or 0.0)
        except (OSError, ValueError):
            return 0.0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._one_way(reader, far_writer), self._one_way(far_reader, writer))

    async def _one_way(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Many pieces may be on their way at once."""
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
        arriving = asyncio.create_task(self._arrive(way, sink))
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            try:
                data = await source.read(_PIECE_BYTES)
            except OSError:
                data = b""
            await way.put((loop.time() + self._delay_s(), data))
        await arriving

    async def _arrive(self, way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await way.get()
            await asyncio.sleep(due_s - loop.time())
            if not data:
                break
            with contextlib.suppress(OSError):
                sink.write(data)
                await sink.drain()
        sink.close()


async def main() -> None:
    """Until killed."""
    host, port, target_host, target_port, delay_file = sys.argv[1:]
    link = Link((target_host, int(target_port)), Path(delay_file))
    server = await asyncio.start_server(link.carry, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
