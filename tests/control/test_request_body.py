"""Bodies on their way in: kept while small, bounded altogether."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.control.request_body import REPLAY_LIMIT_BYTES, ClientGone, KeptBytes, RequestBody
from glowplug.types.clock import ManualClock

CHUNKED = [(b"transfer-encoding", b"chunked")]


class Caller:
    """Sends these chunks, then hangs up if asked for more."""

    def __init__(self, chunks: Iterable[bytes], *, is_whole: bool = True) -> None:
        self.messages: list[dict[str, Any]] = [_message(chunk, is_last=False) for chunk in chunks]
        if is_whole:
            self.messages.append(_message(b"", is_last=True))

    async def receive(self) -> dict[str, Any]:
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}


def _message(chunk: bytes, *, is_last: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": chunk, "more_body": not is_last}


def body_of(caller: Caller, kept: KeptBytes | None = None) -> RequestBody:
    return RequestBody(caller.receive, CHUNKED, ManualClock(), kept or KeptBytes())


async def read(body: RequestBody) -> bytes:
    return b"".join([chunk async for chunk in body.stream()])


@given(st.lists(st.binary(max_size=50), max_size=20))
async def test_what_is_kept_can_be_read_again(chunks: list[bytes]) -> None:
    body = body_of(Caller(chunks))
    assert await read(body) == b"".join(chunks)
    assert body.is_kept
    assert await read(body) == b"".join(chunks)


async def test_what_arrives_while_waiting_is_not_lost() -> None:
    body = body_of(Caller([b"a", b"b"]))
    assert await body.wait_for_disconnect()
    assert body.is_caller_gone
    assert await read(body) == b"ab"


async def test_waiting_stops_reading_at_the_limit_and_loses_nothing() -> None:
    chunks = [b"x" * (REPLAY_LIMIT_BYTES // 4)] * 8
    body = body_of(Caller(chunks))
    assert not await body.wait_for_disconnect()
    assert not body.is_complete
    assert len(await read(body)) == REPLAY_LIMIT_BYTES * 2
    assert not body.is_kept


async def test_a_large_body_is_read_but_not_kept() -> None:
    body = body_of(Caller([b"x" * 100_000] * 40))
    assert len(await read(body)) == 4_000_000
    assert not body.is_kept


async def test_all_requests_together_keep_no_more_than_allowed() -> None:
    kept = KeptBytes(1000)
    bodies = [body_of(Caller([b"x" * 100] * 9), kept) for _ in range(5)]
    for body in bodies:
        await body.wait_for_disconnect()
    assert [body.is_complete for body in bodies] == [True, False, False, False, False]
    assert not kept.is_free
    for body in bodies:
        body.close()
        body.close()
    assert kept._used_bytes == 0


async def test_a_caller_who_leaves_while_sending_is_gone() -> None:
    body = body_of(Caller([b"a"], is_whole=False))
    with pytest.raises(ClientGone):
        await read(body)
    assert body.is_caller_gone
