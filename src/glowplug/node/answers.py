"""What an agent answers, read as what a stranger says: bounded, and a message of ours or a typed error.

The control plane talks to agents of other machines, any of which may have been taken over. Whatever they send
costs a bounded amount of memory, and where it is no message it is an error of ours, never an exception that
would end whoever asked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

import httpx
from pydantic import ValidationError

from glowplug.types.errors import GlowplugError, NotFound, Unavailable
from glowplug.types.replica import ErrorInfo

MAX_ANSWER_BYTES = 64 << 20
MAX_LINE_BYTES = 16 << 20
MAX_ERROR_BYTES = 1 << 20
_MAX_CAUSE_CHARACTERS = 500
_Read = TypeVar("_Read")


class NoAnswer(Unavailable):
    """Nothing came back, or nothing that can be read: what was asked may have happened, or not."""


class NotConnected(NoAnswer):
    """There was no connection, so nothing was asked."""


async def content_of(response: httpx.Response, limit_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """The whole answer. Raises NoAnswer for one that is too long, and what httpx raises."""
    pieces: list[bytes] = []
    total_bytes = 0
    async for piece in response.aiter_raw():
        total_bytes += len(piece)
        if total_bytes > limit_bytes:
            raise _too_long("an answer", limit_bytes)
        pieces.append(piece)
    return b"".join(pieces)


async def lines_of(
    pieces: AsyncIterator[bytes], limit_bytes: int = MAX_LINE_BYTES
) -> AsyncGenerator[bytes, None]:
    """Lines that are not empty, without their line feed. Raises NoAnswer for one that is too long.

    A line feed alone ends one: JSON may hold every other character at which text is commonly split.
    """
    held: list[bytes] = []
    held_bytes = 0
    async for piece in pieces:
        first, *following = piece.split(b"\n")
        held.append(first)
        held_bytes += len(first)
        if held_bytes > limit_bytes:
            raise _too_long("a line", limit_bytes)
        for begun in following:
            if held_bytes:
                yield b"".join(held)
            held, held_bytes = [begun], len(begun)
    if held_bytes:
        yield b"".join(held)


def parse(read: Callable[[bytes], _Read], content: bytes) -> _Read:
    """What ``read`` makes of it. Raises NoAnswer for what is no message of ours."""
    try:
        return read(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        raise NoAnswer(
            "The node agent sent something that is no message of ours.",
            remedy="Restart glowplug, so that agent and control plane are of one version.",
            cause=f"{error.title}: {where}: {first['msg']}"[:_MAX_CAUSE_CHARACTERS],
        ) from error


def error_from(status: int, body: bytes) -> GlowplugError:
    """The error that an agent told, or the one that its status stands for."""
    try:
        return GlowplugError.from_dict(ErrorInfo.model_validate_json(body).model_dump())
    except ValidationError:
        pass
    if status == NotFound.http_status:
        return NotFound("The node agent knows nothing by that name.", remedy="See glowplug ps.")
    return Unavailable(
        f"The node agent answered with status {status}.",
        remedy="See logs/agent.log in the state directory.",
        body=body[:_MAX_CAUSE_CHARACTERS].decode(errors="replace"),
    )


def _too_long(what: str, limit_bytes: int) -> NoAnswer:
    return NoAnswer(
        f"The node agent sends {what} of more than {limit_bytes >> 20} MiB.",
        remedy="No agent of ours does: look at that machine, or remove it (`glowplug cluster remove`).",
    )
