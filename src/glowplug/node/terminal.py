"""`exec` and `shell`: a process inside a replica at the other end of a WebSocket (docs/architecture.md).

Promise: when the socket is gone, by whatever end, so is the process, inside and outside. Nothing here keeps a
thread: any number of people may look at quiet terminals.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import WebSocket, WebSocketDisconnect

from glowplug.types.errors import GlowplugError, InvalidInput

_CHUNK_BYTES = 64 << 10
_STDOUT, _STDERR = b"\x01", b"\x02"
_END_DEADLINE_S = 5.0
_BEGIN_POLL_S = 0.02
_MAX_SIDE = 1000
# Control-C is a signal to the foreground of whoever *controls* the terminal; runsc passes it on inside.
_WITH_TERMINAL = ("setsid", "--ctty")


@dataclass(frozen=True)
class ExecCommand:
    """A command line of the host's that starts something inside.

    ``has_begun`` tells whether it did, ``end_inside`` ends that (blocks; may be called twice).
    """

    argv: list[str]
    has_begun: Callable[[], bool]
    end_inside: Callable[[], None]


async def serve_exec(
    socket: WebSocket, make_command: Callable[[], ExecCommand], tty: bool, rows: int, cols: int
) -> None:
    """Run the command until it ends or the other side goes away; then nothing of it is left."""
    await socket.accept()
    try:
        await _serve(socket, make_command(), tty, rows, cols)
    except GlowplugError as error:
        await _send(socket, {"type": "error", "error": error.to_dict()})
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the other side closed it already
        await socket.close()


async def _serve(socket: WebSocket, command: ExecCommand, tty: bool, rows: int, cols: int) -> None:
    session = _Terminal(rows, cols) if tty else _Pipes()
    process = await session.start(command.argv)
    reader = asyncio.create_task(_read_client(socket, session))
    output = asyncio.create_task(session.pump(socket))
    try:
        await asyncio.wait([output, reader], return_when=asyncio.FIRST_COMPLETED)
        if output.done() and output.exception() is None:
            await _send(socket, {"type": "exit", "code": await process.wait()})
        elif reader.done():
            reader.result()  # raises what the client did wrong
    finally:
        for task in (reader, output):
            task.cancel()
        await asyncio.gather(reader, output, return_exceptions=True)
        await _end(process, command)
        session.close()


async def _end(process: Process, command: ExecCommand) -> None:
    """Kill what still runs: inside first, because killing the host's command would leave it alone there."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _END_DEADLINE_S
    # The runtime tells by writing a file: there is no event to wait for.
    while process.returncode is None and not command.has_begun() and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_BEGIN_POLL_S)
    await asyncio.to_thread(command.end_inside)
    for _ in range(2):
        try:
            await asyncio.wait_for(process.wait(), _END_DEADLINE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _read_client(socket: WebSocket, session: _Session) -> None:
    """Until the client leaves. Raises InvalidInput for what is no message of ours."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if (data := message.get("bytes")) is not None:
            await session.write(data)
        elif (text := message.get("text")) is not None:
            await _obey(text, session)


async def _obey(text: str, session: _Session) -> None:
    try:
        control = json.loads(text)
        match control["type"]:
            case "resize":
                session.resize(int(control["rows"]), int(control["cols"]))
            case "eof":
                await session.write_eof()
            case other:
                raise ValueError(f"type {other!r}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidInput(
            f"This is no exec message: {text[:80]!r}.", remedy='Send {"type": "resize"} or {"type": "eof"}.'
        ) from error


async def _send(socket: WebSocket, message: dict[str, object]) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(json.dumps(message))


class _Pipes:
    """No terminal: stdout and stderr stay apart."""

    _process: Process

    async def start(self, argv: list[str]) -> Process:
        self._process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        return self._process

    async def pump(self, socket: WebSocket) -> None:
        """Send output until there is none any more."""
        await asyncio.gather(
            _forward(self._process.stdout, socket, _STDOUT), _forward(self._process.stderr, socket, _STDERR)
        )

    async def write(self, data: bytes) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(data)
                await self._process.stdin.drain()

    async def write_eof(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def resize(self, rows: int, cols: int) -> None:
        """Only terminals have a size."""

    def close(self) -> None:
        """Everything of ours closes with the process."""


class _Terminal:
    """A pseudo-terminal: one stream, sizes and control characters. Owns its master side."""

    def __init__(self, rows: int, cols: int) -> None:
        self._size = (rows, cols)
        self._master = -1

    async def start(self, argv: list[str]) -> Process:
        self._master, slave = pty.openpty()
        try:
            os.set_blocking(self._master, False)
            self.resize(*self._size)
            return await asyncio.create_subprocess_exec(
                *_WITH_TERMINAL, *argv, stdin=slave, stdout=slave, stderr=slave
            )
        except BaseException:
            self.close()
            raise
        finally:
            os.close(slave)

    async def pump(self, socket: WebSocket) -> None:
        while data := await self._read():
            await socket.send_bytes(_STDOUT + data)

    async def write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data:
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                await _until(self._master, loop.add_writer, loop.remove_writer)
            except OSError:  # the other side of the terminal was closed
                return

    async def write_eof(self) -> None:
        await self.write(b"\x04")

    def resize(self, rows: int, cols: int) -> None:
        size = struct.pack("HHHH", min(max(rows, 1), _MAX_SIDE), min(max(cols, 1), _MAX_SIDE), 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self._master, _CHUNK_BYTES)
            except BlockingIOError:
                await _until(self._master, loop.add_reader, loop.remove_reader)
            except OSError:  # EIO: the other side of the terminal was closed
                return b""


_Session = _Pipes | _Terminal


async def _until(descriptor: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    """Wait until the descriptor can be read from, or written to."""
    is_possible = asyncio.Event()
    add(descriptor, is_possible.set)
    try:
        await is_possible.wait()
    finally:
        remove(descriptor)


async def _forward(stream: asyncio.StreamReader | None, socket: WebSocket, kind: bytes) -> None:
    while stream is not None and (data := await stream.read(_CHUNK_BYTES)):
        await socket.send_bytes(kind + data)
