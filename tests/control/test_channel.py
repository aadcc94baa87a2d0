"""The way to one replica: a server that answers in pieces is not made to wait between them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from multidict import CIMultiDict

from glowplug.control.channel import ReplicaChannel
from glowplug.node.address import LocalNode
from glowplug.types.replica import Endpoint

DELAYED_S = 0.040
"""What the kernel waits with an acknowledgement at least, if nothing else is to be sent."""


async def answer_in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As Python's http.server: the head, then the body, and Nagle's algorithm is on."""
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
            await asyncio.sleep(0)
            writer.write(b"body")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


@pytest.fixture
async def channel() -> AsyncIterator[ReplicaChannel]:
    server = await asyncio.start_server(answer_in_pieces, "127.0.0.1", 0)
    endpoint = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    channel = ReplicaChannel("r1", endpoint, LocalNode(Path()), silence_limit_s=30.0)
    yield channel
    await channel.close()
    server.close()


async def test_an_answer_in_pieces_waits_for_no_delayed_acknowledgement(channel: ReplicaChannel) -> None:
    took_s = []
    for _ in range(20):
        began_s = time.monotonic()
        response = await channel.request("GET", "/", CIMultiDict(), None)
        assert await response.read() == b"body"
        took_s.append(time.monotonic() - began_s)
    # The first ones of a connection are acknowledged at once by themselves.
    assert min(took_s[10:]) < DELAYED_S / 2, took_s
