"""`exec` and `shell`: a process inside a replica at the other end of a WebSocket (docs/architecture.md)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import termios
from collections.abc import Callable

from fastapi import WebSocket, WebSocketDisconnect

from glowplug.types.errors import GlowplugError

_CHUNK_BYTES = 64 << 10
_STDOUT, _STDERR = b"\x01", b"\x02"


async def serve_exec(
    socket: WebSocket, make_argv: Callable[[], list[str]], tty: bool, rows: int, cols: int
) -> None:
    """Run the command until it ends or the other side goes away; then nothing of it is left."""
    await socket.accept()
    try:
        argv = make_argv()
    except GlowplugError as error:
        await _send(socket, {"type": "error", "error": error.to_dict()})
        await socket.close()
        return
    session = _Terminal(argv, rows, cols) if tty else _Pipes(argv)
    await session.start()
    reader = asyncio.create_task(_read_client(socket, session))
    output = asyncio.create_task(session.pump(socket))
    try:
        await asyncio.wait([output, reader], return_when=asyncio.FIRST_COMPLETED)
        if output.done():
            await _send(socket, {"type": "exit", "code": await session.wait()})
            await socket.close()
    except (WebSocketDisconnect, RuntimeError):
        pass  # the client left; the process is ended below
    finally:
        reader.cancel()
        output.cancel()
        await asyncio.gather(reader, output, return_exceptions=True)
        await session.end()


async def _read_client(socket: WebSocket, session: _Session) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if (data := message.get("bytes")) is not None:
            await session.write(data)
        elif (text := message.get("text")) is not None:
            control = json.loads(text)
            if control.get("type") == "resize":
                session.resize(int(control["rows"]), int(control["cols"]))
            elif control.get("type") == "eof":
                session.write_eof()


async def _send(socket: WebSocket, message: dict[str, object]) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(json.dumps(message))


class _Session:
    """A running command."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        raise NotImplementedError

    async def pump(self, socket: WebSocket) -> None:
        """Send output until there is none any more."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    def write_eof(self) -> None:
        raise NotImplementedError

    def resize(self, rows: int, cols: int) -> None:
        """Only terminals have a size."""

    async def wait(self) -> int:
        assert self._process is not None  # noqa: S101 - started by serve_exec
        return await self._process.wait()

    async def end(self) -> None:
        """Kill what still runs. `runsc exec` ends its process inside when it is killed itself."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 2.0)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


class _Pipes(_Session):
    """No terminal: stdout and stderr stay apart."""

    async def start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._argv, stdin=pipe, stdout=pipe, stderr=pipe
        )

    async def pump(self, socket: WebSocket) -> None:
        assert self._process is not None  # noqa: S101 - started by serve_exec
        await asyncio.gather(
            _forward(self._process.stdout, socket, _STDOUT), _forward(self._process.stderr, socket, _STDERR)
        )

    async def write(self, data: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(data)
                await self._process.stdin.drain()

    def write_eof(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


class _Terminal(_Session):
    """A pseudo-terminal: one stream, sizes and control characters."""

    def __init__(self, argv: list[str], rows: int, cols: int) -> None:
        super().__init__(argv)
        self._size = (rows, cols)
        self._master = -1

    async def start(self) -> None:
        self._master, slave = pty.openpty()
        try:
            self.resize(*self._size)
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
            )
        finally:
            os.close(slave)

    async def pump(self, socket: WebSocket) -> None:
        while data := await asyncio.to_thread(self._read):
            await socket.send_bytes(_STDOUT + data)

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(os.write, self._master, data)

    def write_eof(self) -> None:
        os.write(self._master, b"\x04")

    def resize(self, rows: int, cols: int) -> None:
        size = struct.pack("HHHH", min(max(rows, 1), 1000), min(max(cols, 1), 1000), 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    async def end(self) -> None:
        await super().end()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self) -> bytes:
        try:
            return os.read(self._master, _CHUNK_BYTES)
        except OSError:  # EIO: the other side of the terminal was closed
            return b""


async def _forward(stream: asyncio.StreamReader | None, socket: WebSocket, kind: bytes) -> None:
    while stream is not None and (data := await stream.read(_CHUNK_BYTES)):
        await socket.send_bytes(kind + data)
