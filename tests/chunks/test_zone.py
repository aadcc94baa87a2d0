"""A zone of caches that fail in every way: latency at most, never a wrong byte."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chunks.servers import Behaviour, Conversation, HttpServer, http_server, stalling
from tests.ports import free_port

from glowplug.chunks import zone as zone_module
from glowplug.chunks import zone_health
from glowplug.chunks.objects import Objects
from glowplug.chunks.zone import ZoneObjects
from glowplug.chunks.zone_health import (
    FAILURES_TO_SKIP,
    FIRST_SKIP_S,
    HEDGE_FLOOR_S,
    HEDGES_SAVED_UP,
    LONGEST_SKIP_S,
    Patience,
    ServerHealth,
)
from glowplug.chunks.zone_race import Alarm, Race
from glowplug.chunks.zone_ring import STRIPE_BYTES, Ring
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError, InvalidInput, NotFound, Unavailable

CONTENT = bytes(range(256)) * 4096
TIMEOUT_S = 20.0
KEY = "packs/ab/one"

# --- the ring


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=6, unique=True),
    st.integers(0, 40 << 20),
    st.integers(1, 20 << 20),
)
def test_parts_cover_the_range_once_and_each_has_one_owner(servers: list[int], start: int, size: int) -> None:
    ring = Ring([f"http://cache-{number}" for number in servers])
    at = start
    for part in ring.parts(KEY, start, size):
        assert part.start == at
        first, last = part.start // STRIPE_BYTES, (part.start + part.size_bytes - 1) // STRIPE_BYTES
        assert all(ring.order(KEY, stripe)[0] == part.order[0] for stripe in range(first, last + 1))
        assert sorted(part.order) == list(range(len(servers)))
        at += part.size_bytes
    assert at == start + size


def test_all_nodes_agree_however_they_list_the_servers() -> None:
    names = [f"http://cache-{number}" for number in range(4)]
    there, back = Ring(names), Ring(names[::-1])
    for stripe in range(50):
        ours = [names[position] for position in there.order(KEY, stripe)]
        theirs = [names[::-1][position] for position in back.order(KEY, stripe)]
        assert ours == theirs


def test_stripes_spread_evenly_and_only_those_of_a_lost_server_move() -> None:
    names = [f"http://cache-{number}" for number in range(4)]
    whole, smaller = Ring(names), Ring(names[:3])
    owners = [whole.order(KEY, stripe)[0] for stripe in range(2000)]
    assert all(400 < count < 600 for count in Counter(owners).values())
    for stripe, owner in enumerate(owners):
        after = smaller.order(KEY, stripe)[0]
        assert after == owner if owner < 3 else after == whole.order(KEY, stripe)[1]


# --- health


def test_a_server_is_left_alone_after_failing_in_a_row_and_comes_back_on_probation() -> None:
    clock = ManualClock()
    health = ServerHealth(clock)
    assert [health.failed() for _ in range(FAILURES_TO_SKIP)] == [False, False, True]
    assert not health.may_ask()
    clock.advance(FIRST_SKIP_S)
    assert health.may_ask()
    assert not health.may_ask()  # one trial at a time
    health.answered()
    assert not health.is_skipped
    assert health.may_ask()


def test_each_failed_trial_makes_the_wait_longer_up_to_a_limit() -> None:
    clock = ManualClock()
    health = ServerHealth(clock)
    for _ in range(FAILURES_TO_SKIP):
        health.failed()
    for wait_s in (2, 4, 8, 16, 30, 30):
        clock.advance(LONGEST_SKIP_S)
        assert health.may_ask()
        health.failed()
        clock.advance(wait_s - 0.5)
        assert not health.may_ask()
        clock.advance(0.5)
        assert health.may_ask()


def test_a_success_between_failures_keeps_a_server_in() -> None:
    health = ServerHealth(ManualClock())
    for _ in range(10):
        health.failed()
        health.failed()
        health.answered()
    assert health.may_ask()


def test_patience_follows_what_is_usual_and_second_requests_are_rationed() -> None:
    patience = Patience()
    assert patience.hedge_after_s == HEDGE_FLOOR_S
    for _ in range(100):
        patience.took(0.3)
    assert patience.hedge_after_s == pytest.approx(0.3)
    granted = sum(patience.may_hedge() for _ in range(1000))
    assert granted == HEDGES_SAVED_UP
    for _ in range(20):
        patience.took(0.3)
    assert patience.may_hedge()


# --- the race


class Runner:
    """A candidate that does what a test says."""

    received_bytes = 0

    def __init__(self, act: Callable[[threading.Event], str]) -> None:
        self.act = act
        self.called_off = threading.Event()
        self.has_started = threading.Event()
        self.has_lost = False

    def run(self, deadline_s: float) -> str:
        self.has_started.set()
        return self.act(self.called_off)

    def cancel(self) -> None:
        self.called_off.set()

    def lost(self) -> None:
        self.has_lost = True


def failing(called_off: threading.Event) -> str:
    raise Unavailable("It is down.", remedy="Wait.")


def waiting(called_off: threading.Event) -> str:
    called_off.wait(TIMEOUT_S)
    raise Unavailable("It was called off.", remedy="")


def race_of(*runners: Runner) -> Race[str]:
    clock = SystemClock()
    return Race(iter(runners), clock.monotonic() + TIMEOUT_S, clock)


def test_only_the_first_is_asked_while_it_answers() -> None:
    first, second = Runner(lambda _: "first"), Runner(lambda _: "second")
    assert race_of(first, second).run() == "first"
    assert not second.has_started.is_set()


def test_the_next_is_asked_when_one_fails() -> None:
    assert race_of(Runner(failing), Runner(failing), Runner(lambda _: "third")).run() == "third"


def test_the_last_problem_is_told_when_all_fail() -> None:
    def absent(_: threading.Event) -> str:
        raise NotFound("It is not there.", remedy="")

    with pytest.raises(NotFound):
        race_of(Runner(failing), Runner(absent)).run()


def test_who_joins_and_is_faster_wins_and_the_other_is_called_off() -> None:
    slow, fast = Runner(waiting), Runner(lambda _: "fast")
    race = race_of(slow, fast)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(race.run)
        assert slow.has_started.wait(TIMEOUT_S)
        race.join()
        assert result.result(TIMEOUT_S) == "fast"
    assert slow.called_off.is_set()
    assert slow.has_lost
    assert not fast.has_lost


def test_who_joins_and_is_slower_is_called_off_without_having_lost() -> None:
    may_answer = threading.Event()

    def late(_: threading.Event) -> str:
        may_answer.wait(TIMEOUT_S)
        return "first"

    first, second = Runner(late), Runner(waiting)
    race = race_of(first, second)
    with ThreadPoolExecutor(2) as pool:
        result = pool.submit(race.run)
        assert first.has_started.wait(TIMEOUT_S)
        joining = pool.submit(race.join)
        assert second.has_started.wait(TIMEOUT_S)
        may_answer.set()
        assert result.result(TIMEOUT_S) == "first"
        joining.result(TIMEOUT_S)
    assert second.called_off.is_set()
    assert not second.has_lost


def test_a_race_ends_at_its_deadline_and_calls_everybody_off() -> None:
    stuck, clock = Runner(waiting), ManualClock()
    race = Race(iter([stuck]), clock.monotonic() + 10, clock)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(race.join)
        assert stuck.has_started.wait(TIMEOUT_S)
        clock.advance(10)
        with pytest.raises(DeadlineExceeded):
            race.run()
        joining.result(TIMEOUT_S)
    assert stuck.called_off.is_set()


def test_a_bug_in_a_candidate_is_not_waited_for() -> None:
    def broken(_: threading.Event) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        race_of(Runner(broken)).run()


def test_an_alarm_calls_in_order_and_nothing_after_it_was_closed() -> None:
    alarm = Alarm(SystemClock(), "alarm")
    called: list[int] = []
    done = threading.Event()
    alarm.set(0.5, lambda: (called.append(2), done.set())[0])
    alarm.set(0.001, lambda: called.append(1))
    assert done.wait(TIMEOUT_S)
    assert called == [1, 2]
    alarm.close()
    alarm.close()
    alarm.set(0, lambda: called.append(3))
    assert called == [1, 2]


# --- reading through servers


def good(status: str = "HIT") -> Behaviour:
    return lambda conversation: conversation.give(CONTENT, {"X-Cache-Status": status})


class FakeRegion:
    """A region that has the content, or does what a test says."""

    tier = "region"

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.problem: GlowplugError | None = None

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        return self.read_all(key, 0, timeout_s)[start : start + size_bytes]

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        self.asked.append(key)
        if self.problem is not None:
            raise self.problem
        return CONTENT


@pytest.fixture
def region() -> FakeRegion:
    return FakeRegion()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server(good()) as made:
        yield made


@pytest.fixture
def zone_of() -> Iterator[Callable[..., ZoneObjects]]:
    made: list[ZoneObjects] = []

    def run(*urls: str, region: Objects | None = None) -> ZoneObjects:
        made.append(ZoneObjects(urls, region))
        return made[-1]

    yield run
    for zone in made:
        zone.close()


ZoneOf = Callable[..., ZoneObjects]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second requests, however slow this machine is right now."""
    monkeypatch.setattr(Patience, "may_hedge", lambda self: False)
    monkeypatch.setattr(zone_module, "LATE_S", 1e6)


@pytest.mark.usefixtures("unhurried")
def test_a_range_is_read_from_the_cache(server: HttpServer, region: FakeRegion, zone_of: ZoneOf) -> None:
    zone = zone_of(server.url, region=region)
    assert zone.tier == "zone"
    assert zone.read(KEY, 1000, 5000, TIMEOUT_S) == CONTENT[1000:6000]
    assert zone.read_all("images/one/manifest.json", len(CONTENT), TIMEOUT_S) == CONTENT
    assert region.asked == []
    counters = zone.counters
    assert (counters.reads, counters.hits, counters.misses) == (2, 2, 0)
    assert counters.read_bytes == 5000 + len(CONTENT)


def test_hits_and_misses_are_the_caches_own_word(server: HttpServer, zone_of: ZoneOf) -> None:
    zone = zone_of(server.url)
    for status in ("MISS", "HIT", "EXPIRED", "STALE", ""):
        server.behaviour = good(status)
        zone.read(KEY, 0, 10, TIMEOUT_S)
    assert (zone.counters.hits, zone.counters.misses) == (2, 2)


@pytest.mark.parametrize(
    "key", ["refs/team/name.json", "images/ab/placement.bin.zst", "images/ab/traces/x.json"]
)
def test_what_may_change_never_comes_from_a_cache(
    server: HttpServer, region: FakeRegion, zone_of: ZoneOf, key: str
) -> None:
    zone_of(server.url, region=region).read_all(key, len(CONTENT), TIMEOUT_S)
    assert server.requests == []
    assert region.asked == [key]


@pytest.mark.usefixtures("unhurried")
def test_stripes_go_to_their_owners_and_come_back_in_order(zone_of: ZoneOf) -> None:
    stripes = 6
    content = bytes(range(250)) * (stripes * STRIPE_BYTES // 250 + 1)
    with http_server(lambda c: c.give(content)) as one, http_server(lambda c: c.give(content)) as two:
        zone = zone_of(one.url, two.url)
        start, size = STRIPE_BYTES - 100, 4 * STRIPE_BYTES + 300
        assert zone.read(KEY, start, size, TIMEOUT_S) == content[start : start + size]
        for stripe in range(stripes):
            before = len(one.requests), len(two.requests)
            zone.read(KEY, stripe * STRIPE_BYTES, 10, TIMEOUT_S)
            zone.read(KEY, stripe * STRIPE_BYTES + 99, 10, TIMEOUT_S)
            asked = sorted((len(one.requests) - before[0], len(two.requests) - before[1]))
            assert asked == [0, 2]


def breaking_off(conversation: Conversation) -> None:
    conversation.answer("206 OK", b"abc", {"Content-Range": "bytes 0-9/10"}, length=10)
    conversation.connection.close()


def talking_nonsense(conversation: Conversation) -> None:
    conversation.send(b"\0" * 100 + b"\r\n\r\n")
    conversation.connection.close()


def dripping_body(conversation: Conversation) -> None:
    start, end = conversation.wanted
    told = {"Content-Range": f"bytes {start}-{end - 1}/{end}"}
    conversation.answer("206 OK", b"", told, length=end - start)
    conversation.drip(bytes(end - start - 1))


FAILING: dict[str, Behaviour] = {
    "an error": lambda c: c.answer("500 Oops"),
    "a refusal": lambda c: c.answer("403 No"),
    "not found": lambda c: c.answer("404 Not Found"),
    "the whole object": lambda c: c.answer("200 OK", CONTENT),
    "too little": lambda c: c.answer("206 OK", b"abc", {"Content-Range": "bytes 0-2/3"}),
    "a redirect": lambda c: c.answer("302 Found", b"", {"Location": "http://169.254.169.254/"}),
    "garbage": talking_nonsense,
    "an early end": breaking_off,
    "nothing": stalling,
    "drops of a body": dripping_body,
    "drops of a head": lambda c: c.drip(b"HTTP/1.1 206 OK\r\n" + b"x" * 2000),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_failing_cache_is_made_up_for_by_the_region(
    server: HttpServer, region: FakeRegion, zone_of: ZoneOf, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(zone_health, "FIRST_SKIP_S", 300.0)  # skipped to the end of the test
    server.behaviour = FAILING[what]
    zone = zone_of(server.url, region=region)
    for _ in range(2 * FAILURES_TO_SKIP):
        assert zone.read(KEY, 0, 10, TIMEOUT_S) == CONTENT[:10]
    if what != "not found":
        assert len(server.requests) <= 2 * FAILURES_TO_SKIP - 1
        assert zone.skipped_servers == [server.url]
        assert zone.counters.skips == 1


@pytest.mark.parametrize("what", FAILING)
def test_a_failing_cache_is_made_up_for_by_another_one(
    server: HttpServer, zone_of: ZoneOf, what: str
) -> None:
    with http_server(FAILING[what]) as bad:
        zone = zone_of(server.url, bad.url)
        for stripe in range(8):
            start = stripe * 1000
            assert zone.read(f"packs/{stripe}", start, 500, TIMEOUT_S) == CONTENT[start : start + 500]


def test_a_cache_that_is_down_is_made_up_for(server: HttpServer, zone_of: ZoneOf) -> None:
    zone = zone_of(server.url, f"http://127.0.0.1:{free_port()}")
    for number in range(8):
        assert zone.read(f"packs/{number}", 0, 500, TIMEOUT_S) == CONTENT[:500]


def test_a_cache_that_recovers_is_used_again(region: FakeRegion) -> None:
    clock = ManualClock()
    with http_server(lambda c: c.answer("500 Oops")) as server:
        zone = ZoneObjects([server.url], region, clock=clock)
        for _ in range(FAILURES_TO_SKIP + 3):
            zone.read(KEY, 0, 10, TIMEOUT_S)
        assert len(server.requests) == FAILURES_TO_SKIP
        server.behaviour = good()
        clock.advance(FIRST_SKIP_S)
        region.asked.clear()
        for _ in range(5):
            zone.read(KEY, 0, 10, TIMEOUT_S)
        assert region.asked == []
        assert zone.skipped_servers == []
        zone.close()


def test_when_everything_fails_the_region_has_the_last_word(
    server: HttpServer, region: FakeRegion, zone_of: ZoneOf
) -> None:
    server.behaviour = FAILING["an error"]
    region.problem = NotFound("It is not there.", remedy="")
    zone = zone_of(server.url, region=region)
    with pytest.raises(NotFound):
        zone.read(KEY, 0, 10, TIMEOUT_S)


def test_without_a_region_servers_that_failed_are_better_than_none(
    server: HttpServer, zone_of: ZoneOf
) -> None:
    server.behaviour = FAILING["an error"]
    zone = zone_of(server.url)
    for _ in range(FAILURES_TO_SKIP + 2):
        with pytest.raises(Unavailable):
            zone.read(KEY, 0, 10, TIMEOUT_S)
    server.behaviour = good()
    assert zone.read(KEY, 0, 10, TIMEOUT_S) == CONTENT[:10]


@pytest.mark.parametrize("what", ["nothing", "drops of a body", "drops of a head"])
def test_a_read_ends_at_its_deadline_whatever_the_servers_do(
    server: HttpServer, zone_of: ZoneOf, what: str
) -> None:
    server.behaviour = FAILING[what]
    with http_server(FAILING[what]) as other:
        zone = zone_of(server.url, other.url)
        with pytest.raises(DeadlineExceeded):
            zone.read(KEY, 0, 10, 0.3)
        with pytest.raises(DeadlineExceeded):
            zone.read(KEY, 0, 3 * STRIPE_BYTES, 0.3)


def test_many_threads_read_while_caches_come_and_go(region: FakeRegion, zone_of: ZoneOf) -> None:
    """Each request of each server behaves in a way of its own, by turns."""
    turns = [good(), *FAILING.values()]

    def behave_by_turns(servers: list[HttpServer], offset: int) -> Behaviour:
        def behave(conversation: Conversation) -> None:
            server = servers[offset]
            turns[(len(server.requests) * 7 + offset) % len(turns)](conversation)

        return behave

    servers: list[HttpServer] = []
    for offset in range(3):
        servers.append(HttpServer(behave_by_turns(servers, offset)))
    try:
        zone = zone_of(*(server.url for server in servers), region=region)
        with ThreadPoolExecutor(8) as pool:
            starts = range(0, 200_000, 1000)
            found = pool.map(lambda start: zone.read(f"packs/{start}", start, 700, TIMEOUT_S), starts)
            assert all(data == CONTENT[at : at + 700] for at, data in zip(starts, found, strict=True))
    finally:
        for server in servers:
            server.stop()


def test_when_every_cache_stalls_the_region_answers(region: FakeRegion, zone_of: ZoneOf) -> None:
    with http_server(stalling) as one, http_server(stalling) as two:
        zone = zone_of(one.url, two.url, region=region)
        assert zone.read(KEY, 0, 10, 8.0) == CONTENT[:10]


def test_a_read_does_not_fail_for_want_of_second_requests(
    server: HttpServer, region: FakeRegion, zone_of: ZoneOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "may_hedge", lambda self: False)
    server.behaviour = stalling
    assert zone_of(server.url, region=region).read(KEY, 0, 10, 4.0) == CONTENT[:10]


# --- signatures


class SigningRegion(FakeRegion):
    def __init__(self) -> None:
        super().__init__()
        self.signed: list[str] = []

    def sign(self, key: str, expires_s: float) -> str | None:
        self.signed.append(key)
        return f"https://bucket.example/prefix/{key}?X-Signature={len(self.signed)}&X-Expires={expires_s:.0f}"


def test_a_private_regions_signature_goes_along_and_is_used_for_half_its_life(server: HttpServer) -> None:
    region, clock = SigningRegion(), ManualClock()
    zone = ZoneObjects([server.url], region, clock=clock)
    for _ in range(3):
        zone.read(KEY, 0, 10, TIMEOUT_S)
    clock.advance(1801)
    zone.read(KEY, 0, 10, TIMEOUT_S)
    zone.close()
    assert region.signed == [KEY, KEY]
    assert server.requests[0] == server.requests[2] == f"/{KEY}?X-Signature=1&X-Expires=3600"
    assert server.requests[3].endswith("X-Signature=2&X-Expires=3600")


# --- use


@pytest.mark.parametrize("urls", [[], ["http://a", "http://a"], ["ftp://a"], ["http://a", "x"]])
def test_a_zone_of_impossible_servers_is_refused(urls: list[str]) -> None:
    with pytest.raises(InvalidInput):
        ZoneObjects(urls)


@pytest.mark.parametrize(("start", "size"), [(0, 0), (-1, 5), (5, -1)])
def test_a_range_that_is_none_is_refused(server: HttpServer, zone_of: ZoneOf, start: int, size: int) -> None:
    with pytest.raises(InvalidInput):
        zone_of(server.url).read(KEY, start, size, TIMEOUT_S)


def test_a_bad_key_never_reaches_a_server(server: HttpServer, region: FakeRegion, zone_of: ZoneOf) -> None:
    for key in ("../x", "a b", "a?b", "a\r\nX: y"):
        with pytest.raises(InvalidInput):
            zone_of(server.url, region=region).read(key, 0, 10, TIMEOUT_S)
    assert server.requests == []
    assert region.asked == []
