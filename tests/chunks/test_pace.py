"""Servers that stall: noticed soon, and asked again for the rest only; slow ones are left in peace."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from tests.chunks.servers import Conversation, HttpServer, http_server

from glowplug.chunks import pace
from glowplug.chunks import zone as zone_module
from glowplug.chunks.http_objects import HttpObjects
from glowplug.chunks.objects import MeteredObjects, Objects
from glowplug.chunks.pace import LEAST_BYTES_PER_S, Attempts, Meter, Pace, Stalled
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.chunks.zone import ZoneObjects
from glowplug.chunks.zone_health import Patience
from glowplug.types.clock import ManualClock
from glowplug.types.errors import NotFound

CONTENT = bytes(range(256)) * 2048
TIMEOUT_S = 60.0
META = {"ETag": '"x"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


class Faulty:
    """A good server, but for its first answers: these send ``sent_bytes`` of a body, then stall."""

    def __init__(self, faults: int, sent_bytes: int = 0, trickles: bool = False) -> None:
        self.faults = itertools.count(-faults)
        self.sent_bytes = sent_bytes
        self.trickles = trickles
        self.asked: list[tuple[int, int]] = []

    def __call__(self, conversation: Conversation) -> None:
        start, end = conversation.wanted
        self.asked.append((start, end))
        if next(self.faults) >= 0:
            conversation.give(CONTENT, META)
            return
        told = {"Content-Range": f"bytes {start}-{end - 1}/{len(CONTENT)}", **META}
        body = CONTENT[start : start + self.sent_bytes]
        conversation.answer("206 Partial Content", body, told, length=end - start)
        if self.trickles:
            conversation.drip(CONTENT[start + self.sent_bytes : end])
        conversation.released.wait()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server(Faulty(0)) as server:
        yield server


@pytest.fixture(params=["plain", "s3"])
def objects(request: pytest.FixtureRequest, server: HttpServer) -> Iterator[Objects]:
    made: HttpObjects | ObstoreObjects
    if request.param == "plain":
        made = HttpObjects(server.url)
    else:
        options = {"endpoint": server.url, "access_key_id": "x", "secret_access_key": "y", "region": "r"}
        made = ObstoreObjects("s3://bucket", options)
    yield made
    made.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PATIENCE_S", (1.5, 1.5, 1.5))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("trickles", [False, True])
def test_an_answer_that_stalls_is_asked_for_again_from_where_it_stopped(
    server: HttpServer, objects: Objects, trickles: bool
) -> None:
    server.behaviour = faulty = Faulty(1, sent_bytes=200_000, trickles=trickles)
    began_s = time.monotonic()
    assert objects.read("k", 1000, 400_000, TIMEOUT_S) == CONTENT[1000:401_000]
    assert time.monotonic() - began_s < TIMEOUT_S / 4
    assert faulty.asked[0] == (1000, 401_000)
    again, end = faulty.asked[1]
    assert 201_000 - LEAST_BYTES_PER_S <= again < 202_000, "hardly anything is asked for twice"
    assert end == 401_000
    assert isinstance(objects, MeteredObjects)
    assert [meter.stalls for meter in objects.meters] == [1]
    assert objects.meters[0].received_bytes >= 400_000


@pytest.mark.usefixtures("hurried")
def test_a_server_that_never_says_anything_is_given_up_after_a_few_attempts(
    server: HttpServer, objects: Objects
) -> None:
    server.behaviour = lambda conversation: conversation.released.wait() and None
    began_s = time.monotonic()
    with pytest.raises(Stalled, match="sent fewer than 16 KiB/s"):
        objects.read("k", 0, 400_000, TIMEOUT_S)
    assert time.monotonic() - began_s < TIMEOUT_S / 4
    assert len(server.requests) == 3


@pytest.mark.usefixtures("hurried")
def test_a_server_that_stalls_now_and_then_gets_through(server: HttpServer, objects: Objects) -> None:
    """Each attempt brings something, so none of them is the last."""
    server.behaviour = faulty = Faulty(2, sent_bytes=50_000)
    assert objects.read("k", 0, 400_000, TIMEOUT_S) == CONTENT[:400_000]
    assert len(faulty.asked) == 3


def slowly(conversation: Conversation) -> None:
    """At 125 KB/s: a sixteenth of 2 MB/s."""
    start, end = conversation.wanted
    told = {"Content-Range": f"bytes {start}-{end - 1}/{len(CONTENT)}", **META}
    conversation.answer("206 Partial Content", b"", told, length=end - start)
    for at in range(start, end, 12_500):
        conversation.send(CONTENT[at : min(at + 12_500, end)])
        time.sleep(0.1)


@pytest.mark.usefixtures("hurried")
def test_a_slow_server_that_keeps_sending_is_asked_once(server: HttpServer, objects: Objects) -> None:
    server.behaviour = slowly
    assert objects.read("k", 0, 200_000, TIMEOUT_S) == CONTENT[:200_000]
    assert len(server.requests) == 1


@pytest.mark.usefixtures("hurried")
def test_a_zone_does_not_ask_past_a_slow_cache_that_keeps_sending(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "may_hedge", lambda self: False)
    monkeypatch.setattr(zone_module, "LATE_S", 1.0)
    server.behaviour = slowly
    zone = ZoneObjects([server.url], NoRegion())
    try:
        assert zone.read("packs/k", 0, 200_000, TIMEOUT_S) == CONTENT[:200_000]
        assert (zone.counters.hedges, len(server.requests)) == (0, 1)
    finally:
        zone.close()


class NoRegion:
    tier = "region"

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        raise NotFound("It is not here.")

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        raise NotFound("It is not here.")


def test_pace_is_judged_over_the_patience_and_not_by_the_whole() -> None:
    clock, meter = ManualClock(), Meter()
    judged = Pace(clock, 1.0, meter)
    judged.got(10 << 20)
    clock.advance(0.9)
    assert not judged.is_stalled, "too early to say"
    clock.advance(0.2)
    assert not judged.is_stalled
    clock.advance(1.1)
    judged.got(LEAST_BYTES_PER_S - 1)
    assert judged.is_stalled, "what came before does not count"
    assert meter.received_bytes == judged.received_bytes == (10 << 20) + LEAST_BYTES_PER_S - 1


def test_patience_grows_with_each_attempt_and_starts_anew_after_one_that_brought_something() -> None:
    attempts = Attempts()
    found = [attempts.patience_s]
    while attempts.may_repeat(0):
        found.append(attempts.patience_s)
    assert tuple(found) == pace.PATIENCE_S
    attempts = Attempts()
    assert all(attempts.may_repeat(LEAST_BYTES_PER_S) for _ in range(100))
