"""The client's end of the exec socket: bytes between this terminal and a process inside a replica.

The protocol is in ``docs/architecture.md``. Input and output are copied independently, so that a process
which never reads what we send is still heard, and whatever happens the terminal gets its old settings back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from glowplug.types.errors import DeadlineExceeded, GlowplugError, Unavailable

_OPEN_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 1.0
_READ_BYTES = 32 * 1024
_MAX_FRAME_BYTES = 16 * 1024 * 1024
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True)
class ExecRequest:
    """What to run, and which of our streams it gets. ``stdin`` None means that it reads nothing."""

    command: list[str]
    has_terminal: bool
    stdin: int | None

    def query(self) -> str:
        """The socket's query string."""
        pairs = [("command", word) for word in self.command]
        pairs.append(("tty", "1" if self.has_terminal else "0"))
        if self.has_terminal:
            rows, columns = terminal_size()
            pairs += [("rows", str(rows)), ("cols", str(columns))]
        return urlencode(pairs)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal we are on; 24 and 80 when it does not say."""
    for stream in (sys.__stdout__, sys.__stdin__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):
            size = os.get_terminal_size(stream.fileno())  # type: ignore[union-attr]
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80


def run_remotely(url: str, headers: dict[str, str], request: ExecRequest) -> int:
    """Run a command in a replica with our streams; returns its exit code. Raises what the server says."""
    return asyncio.run(_run(url, headers, request))


async def _run(url: str, headers: dict[str, str], request: ExecRequest) -> int:
    async with _connected(url, headers) as connection:
        with _raw_terminal(request):
            copies = [asyncio.create_task(_copy_input(connection, request.stdin))]
            if request.has_terminal:
                copies.append(asyncio.create_task(_send_sizes(connection)))
            try:
                return await _copy_output(connection)
            finally:
                for copy in copies:
                    copy.cancel()
                    with suppress(asyncio.CancelledError, ConnectionClosed):
                        await copy


@asynccontextmanager
async def _connected(url: str, headers: dict[str, str]) -> AsyncIterator[ClientConnection]:
    parts = urlsplit(url)
    try:
        connection = await connect(
            url,
            sock=await asyncio.to_thread(_open_socket, parts),
            additional_headers=headers,
            open_timeout=_OPEN_TIMEOUT_S,
            close_timeout=_CLOSE_TIMEOUT_S,
            max_size=_MAX_FRAME_BYTES,
            # A process that does not read its input holds up everything we send, pings too.
            ping_interval=None,
        )
    except InvalidStatus as error:
        raise _refusal(error) from error
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"{parts.netloc} did not open the exec socket in time.", remedy="Try again.", stage="exec"
        ) from error
    except (OSError, InvalidHandshake) as error:
        raise Unavailable(
            f"Nothing answers at {parts.netloc}.",
            remedy="Start Glowplug with `glowplug up`, or correct --url or GLOWPLUG_URL.",
            reason=str(error),
        ) from error
    async with connection:
        yield connection


def _open_socket(parts: SplitResult) -> socket.socket:
    """A socket of our own: no proxy comes between, and the kernel notices a machine that went away."""
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    stream = socket.create_connection((parts.hostname or "", port), _OPEN_TIMEOUT_S)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    return stream


def _refusal(error: InvalidStatus) -> GlowplugError:
    with suppress(ValueError, TypeError):
        data = json.loads(error.response.body or b"")
        if isinstance(data, dict) and "message" in data:
            return GlowplugError.from_dict(data)
    return Unavailable(
        f"The exec socket was refused with status {error.response.status_code}.",
        remedy="`glowplug ps` lists the replicas that run.",
    )


async def _copy_output(connection: ClientConnection) -> int:
    outputs = {_STDOUT: sys.stdout.buffer, _STDERR: sys.stderr.buffer}
    try:
        async for message in connection:
            if isinstance(message, str):
                return _exit_code(message)
            output = outputs.get(message[0]) if message else None
            if output is not None:
                output.write(message[1:])
                output.flush()
    except ConnectionClosed as error:
        raise _cut_off(str(error)) from error
    raise _cut_off("closed without an exit code")


def _cut_off(reason: str) -> Unavailable:
    return Unavailable(
        "The connection to the replica ended before the command did.",
        remedy="The replica may have been stopped: see `glowplug ps --all`.",
        reason=reason,
    )


def _exit_code(message: str) -> int:
    try:
        data: Any = json.loads(message)
        if data["type"] == "error":
            raise GlowplugError.from_dict(dict(data["error"]))
        return int(data["code"])
    except (ValueError, KeyError, TypeError) as error:
        raise _cut_off(f"it sent {message[:100]!r}") from error


@contextmanager
def _raw_terminal(request: ExecRequest) -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C too; the old settings come back in any case."""
    if not request.has_terminal or request.stdin is None or not os.isatty(request.stdin):
        yield
        return
    settings = termios.tcgetattr(request.stdin)
    try:
        tty.setraw(request.stdin)
        yield
    finally:
        termios.tcsetattr(request.stdin, termios.TCSADRAIN, settings)


async def _copy_input(connection: ClientConnection, stdin: int | None) -> None:
    while stdin is not None:
        await _readable(stdin)
        data = _read(stdin)
        if not data:
            break
        await connection.send(data)
    await connection.send(json.dumps({"type": "eof"}))


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return  # a plain file: always readable, and nothing one can wait for
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError:
        return b""  # the terminal went away: that is the end of input


async def _send_sizes(connection: ClientConnection) -> None:
    loop = asyncio.get_running_loop()
    resized = asyncio.Event()
    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    try:
        while True:
            await resized.wait()
            resized.clear()
            rows, columns = terminal_size()
            await connection.send(json.dumps({"type": "resize", "rows": rows, "cols": columns}))
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
