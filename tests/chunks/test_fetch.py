"""Fetching chunks: each once, readers first, everybody answered once and never with wrong bytes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
from tests.chunks.fetch_fakes import (
    PATIENCE_S,
    Asker,
    FakeSsd,
    FakeTier,
    MadeBlob,
    Request,
    far_apart,
    make_blob,
)
from typing_extensions import Buffer

from glowplug.chunks.chunk import Chunk, ChunkInvalid, ChunkMissing
from glowplug.chunks.fetch import Fetcher, Outcome, Priority, RemoteBlob
from glowplug.chunks.fetch_plan import READ_BYTES
from glowplug.chunks.fetch_queue import MAX_AHEAD
from glowplug.chunks.ssd_packs import Location
from glowplug.types.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

MakeFetcher = Callable[..., Fetcher]


@pytest.fixture
def make_fetcher() -> Iterator[MakeFetcher]:
    with ExitStack() as stack:

        def make(ssd: FakeSsd, *tiers: FakeTier, **options: float) -> Fetcher:
            fetcher = Fetcher(ssd, tiers, **options)  # type: ignore[arg-type]
            stack.callback(fetcher.close, timeout_s=PATIENCE_S)
            for tier in tiers:
                stack.callback(tier.release)  # before the fetcher waits for what is in flight
            return fetcher

        yield make


def starts_of(blob: MadeBlob, requests: list[Request]) -> list[int]:
    return [blob.is_at(request) for request in requests]


def flip(_request: Request, data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _not_expected(indices: Sequence[int]) -> None:
    raise AssertionError(indices)


# What is asked for comes, once


def test_a_chunk_is_fetched_verified_kept_and_handed_on(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(3), FakeSsd()
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))

    assert fetcher.fetch(blob.remote, 1, PATIENCE_S) == blob.contents[1]
    assert ssd.chunks == {blob.remote.table[1].id: blob.contents[1]}


def test_done_is_called_on_a_thread_of_the_fetcher_after_the_chunk_was_kept(
    make_fetcher: MakeFetcher,
) -> None:
    blob, ssd, asker = far_apart(1), FakeSsd(), Asker()
    kept: list[int] = []
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))

    def done(outcome: Outcome) -> None:
        kept.append(len(ssd.chunks))
        asker.done(0)(outcome)

    fetcher.want(blob.remote, 0, Priority.READ, done)

    assert asker.wait(0) == [blob.contents[0]]
    assert kept == [1]
    assert all(name.startswith("fetch-") for name in asker.threads)


def test_a_chunk_on_the_ssd_is_answered_from_there(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(1), FakeSsd()
    region = FakeTier("region", blob.packs)
    ssd.put(blob.remote.table[0], blob.contents[0])
    fetcher = make_fetcher(ssd, region)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]
    assert region.requests == []
    assert fetcher.stats().on_ssd == 1


def test_many_who_want_one_chunk_cause_one_fetch(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(1), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    for asking in range(50):
        fetcher.want(blob.remote, 0, Priority(asking % 3), asker.done(asking))
    region.wait_for_requests(1)
    fetcher.prefetch(blob.remote, [0])
    region.release()

    assert asker.wait(*range(50)) == [blob.contents[0]] * 50
    assert len(region.requests) == 1
    assert fetcher.stats().joined == 49


def test_a_chunk_of_two_blobs_is_fetched_once(make_fetcher: MakeFetcher) -> None:
    one, asker = far_apart(1), Asker()
    other = RemoteBlob(one.remote.table, one.placement)
    region = FakeTier("region", one.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(one.remote, 0, Priority.READ, asker.done("one"))
    fetcher.want(other, 0, Priority.READ, asker.done("other"))
    region.wait_for_requests(1)
    region.release()

    assert asker.wait("one", "other") == [one.contents[0]] * 2
    assert len(region.requests) == 1


def test_an_index_that_the_blob_does_not_have_is_refused(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(2)
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs))

    for index in (-1, 2):
        with pytest.raises(InvalidInput):
            fetcher.want(blob.remote, index, Priority.READ, print)
        with pytest.raises(InvalidInput):
            fetcher.prefetch(blob.remote, [0, index])


# A read takes its neighbours along


def test_a_read_brings_the_missing_chunks_beside_it(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([4_000] * 20), FakeSsd()
    region = FakeTier("region", blob.packs)
    fetcher = make_fetcher(ssd, region)

    assert fetcher.fetch(blob.remote, 10, PATIENCE_S) == blob.contents[10]
    fetcher.close()

    assert len(region.requests) == 1
    assert len(ssd.chunks) == 20


def test_a_read_takes_little_more_along_than_it_must_wait_for(make_fetcher: MakeFetcher) -> None:
    blob = make_blob([100_000] * 40)
    region = FakeTier("region", blob.packs)
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.fetch(blob.remote, 20, PATIENCE_S)

    assert 100_000 < region.requests[0].size_bytes <= READ_BYTES


def test_the_chunk_that_is_waited_for_is_handed_on_before_its_neighbours(make_fetcher: MakeFetcher) -> None:
    blob, asker = make_blob([10_000] * 5), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(blob.remote, 4, Priority.READ, asker.done(4))
    region.wait_for_requests(1)
    for index in (0, 1, 2, 3):
        fetcher.want(blob.remote, index, Priority.READ, asker.done(index))
    region.release()

    asker.wait(*range(5))
    assert asker.order[0] == 4
    assert len(region.requests) == 1


def test_neighbours_that_are_here_or_in_flight_are_not_fetched_again(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([100_000] * 3), FakeSsd()
    region = FakeTier("region", blob.packs)
    ssd.put(blob.remote.table[1], blob.contents[1])
    fetcher = make_fetcher(ssd, region)

    fetcher.fetch(blob.remote, 0, PATIENCE_S)

    # The third lies behind the gap that the second leaves, and reading over that would not be free.
    assert [request.size_bytes for request in region.requests] == [100_000]


def test_who_wants_a_neighbour_while_it_is_found_to_be_here_is_answered_too(
    make_fetcher: MakeFetcher,
) -> None:
    blob, ssd, asker = make_blob([1000] * 2), FakeSsd(), Asker()
    ssd.put(blob.remote.table[1], blob.contents[1])
    region = FakeTier("region", blob.packs)
    fetcher = make_fetcher(ssd, region)

    def want_it_now() -> None:
        ssd.when_asked = lambda: None
        fetcher.want(blob.remote, 1, Priority.READ, asker.done(1))

    ssd.when_asked = want_it_now
    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))

    assert asker.wait(0, 1) == blob.contents
    assert len(region.requests) == 1


# Who comes first


def test_reads_come_before_read_ahead_before_prefetch(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(7), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    region.wait_for_requests(1)
    handle = fetcher.prefetch(blob.remote, [6])
    fetcher.want(blob.remote, 1, Priority.PREFETCH, asker.done(1))
    fetcher.want(blob.remote, 2, Priority.READ_AHEAD, asker.done(2))
    fetcher.want(blob.remote, 3, Priority.READ, asker.done(3))
    fetcher.want(blob.remote, 4, Priority.READ_AHEAD, asker.done(4))
    fetcher.want(blob.remote, 5, Priority.READ, asker.done(5))
    region.release()

    assert handle.wait(PATIENCE_S)
    assert starts_of(blob, region.requests) == [0, 3, 5, 2, 4, 1, 6]


def test_a_read_raises_what_waits_as_a_prefetch(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(4), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    region.wait_for_requests(1)
    for index in (1, 2, 3):
        fetcher.want(blob.remote, index, Priority.PREFETCH, asker.done(index))
    fetcher.want(blob.remote, 3, Priority.READ, asker.done("read"))
    region.release()

    asker.wait(1, 2, 3, "read")
    assert starts_of(blob, region.requests) == [0, 3, 1, 2]


def test_a_read_overtakes_a_prefetch_that_holds_every_connection_it_may(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(20), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=5, reserved_for_reads=2)

    handle = fetcher.prefetch(blob.remote, range(10))
    assert sorted(starts_of(blob, region.wait_for_requests(3))) == [0, 1, 2]
    fetcher.want(blob.remote, 15, Priority.READ_AHEAD, asker.done(15))
    fetcher.want(blob.remote, 16, Priority.READ, asker.done(16))
    read = region.wait_for_requests(4)[3]
    assert blob.is_at(read) == 16
    region.release(read)
    assert asker.wait(16) == [blob.contents[16]]
    assert len(region.requests) == 4  # the prefetch still holds its three, and nothing else moved

    region.release()
    assert handle.wait(PATIENCE_S)
    asker.wait(15)


def test_the_newest_read_ahead_comes_first_and_before_any_prefetch(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(8), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    region.wait_for_requests(1)
    handle = fetcher.prefetch(blob.remote, [7])
    fetcher.read_ahead(blob.remote, [1, 2], _not_expected)
    fetcher.read_ahead(blob.remote, [3, 4], _not_expected)
    fetcher.want(blob.remote, 5, Priority.READ, asker.done(5))
    region.release()

    assert handle.wait(PATIENCE_S)
    assert starts_of(blob, region.requests) == [0, 5, 3, 4, 1, 2, 7]


def test_too_many_newer_ones_end_a_read_ahead_which_says_what_it_did_not_fetch(
    make_fetcher: MakeFetcher,
) -> None:
    blob, asker = far_apart(MAX_AHEAD + 4), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)
    given_up: list[int] = []

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    region.wait_for_requests(1)
    fetcher.read_ahead(blob.remote, [1, 2], given_up.extend)
    for index in range(3, MAX_AHEAD + 3):
        fetcher.read_ahead(blob.remote, [index], _not_expected)
    assert given_up == [1, 2]
    region.release()
    fetcher.want(blob.remote, 1, Priority.PREFETCH, asker.done(1))
    asker.wait(1)  # is fetched for whoever wants it all the same


def test_read_ahead_leaves_what_is_here_and_leaves_connections_for_reads(make_fetcher: MakeFetcher) -> None:
    blob, ssd, asker = far_apart(10), FakeSsd(), Asker()
    ssd.put(blob.remote.table[1], blob.contents[1])
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(ssd, region, connections=3, reserved_for_reads=1)
    given_up: list[int] = []

    fetcher.read_ahead(blob.remote, [1, 2, 3, 4], given_up.extend)
    assert sorted(starts_of(blob, region.wait_for_requests(2))) == [2, 3]
    fetcher.want(blob.remote, 4, Priority.READ, asker.done(4))
    read = region.wait_for_requests(3)[2]
    assert blob.is_at(read) == 4
    region.release()

    asker.wait(4)
    fetcher.close()
    assert len(region.requests) == 3
    assert given_up in ([], [4])  # whether a worker came to 4, which has been read by then, before the end


def test_whoever_keeps_places_hears_where_each_chunk_was_written(make_fetcher: MakeFetcher) -> None:
    blob, kept = make_blob([1000] * 3), dict[int, Location]()
    blob.remote.kept = kept.__setitem__
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs))
    assert fetcher.prefetch(blob.remote, range(3)).wait(PATIENCE_S)
    assert kept.keys() == {0, 1, 2}


def test_what_finds_no_room_together_is_kept_one_by_one(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([1000] * 3), FakeSsd()
    put_verified, refused = ssd.put_verified, ResourceExhausted("The disk is nearly full.")

    def put_one(bodies: Sequence[tuple[Chunk, Buffer]]) -> list[Location | None]:
        if len(bodies) > 1:
            raise refused
        return put_verified(bodies)

    ssd.put_verified = put_one  # type: ignore[method-assign]
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))
    assert fetcher.prefetch(blob.remote, range(3)).wait(PATIENCE_S)
    assert len(ssd.chunks) == 3
    assert fetcher.stats().unstored == 0


def test_prefetches_take_turns(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(9), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    region.wait_for_requests(1)
    handles = [fetcher.prefetch(blob.remote, order) for order in ([1, 2, 3, 4], [5, 6, 7, 8])]
    region.release()

    assert all(handle.wait(PATIENCE_S) for handle in handles)
    assert starts_of(blob, region.requests) == [0, 1, 5, 2, 6, 3, 7, 4, 8]


# Tiers that fail


def test_the_zone_is_asked_first_and_the_region_when_it_is_down(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(2)
    zone, region = FakeTier("zone", {}), FakeTier("region", blob.packs)
    fetcher = make_fetcher(FakeSsd(), zone, region)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]
    zone.packs = blob.packs
    assert fetcher.fetch(blob.remote, 1, PATIENCE_S) == blob.contents[1]

    tiers = fetcher.stats().tiers
    assert (tiers["zone"].requests, tiers["zone"].errors, tiers["zone"].chunks) == (2, 1, 1)
    assert (tiers["region"].requests, tiers["region"].fallbacks, tiers["region"].chunks) == (1, 1, 1)
    assert tiers["zone"].bytes == tiers["region"].bytes == 1000
    assert blob.remote.counters.read().tiers == tiers


def test_a_corrupt_chunk_from_the_zone_is_fetched_alone_from_the_region(make_fetcher: MakeFetcher) -> None:
    blob, ssd, asker = make_blob([1000] * 5), FakeSsd(), Asker()
    zone, region = FakeTier("zone", blob.packs), FakeTier("region", blob.packs)
    zone.answer = lambda request, data: data[:2500] + flip(request, data[2500:])  # the third of five
    zone.hold()
    fetcher = make_fetcher(ssd, zone, region)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    zone.wait_for_requests(1)
    for index in range(1, 5):
        fetcher.want(blob.remote, index, Priority.READ, asker.done(index))
    zone.release()

    assert asker.wait(*range(5)) == blob.contents
    assert [(request.start, request.size_bytes) for request in region.requests] == [(2000, 1000)]
    assert len(zone.requests) == 1
    counts = fetcher.stats().tiers
    assert (counts["zone"].invalid, counts["zone"].chunks, counts["region"].chunks) == (1, 4, 1)
    assert set(ssd.chunks.values()) == set(blob.contents)


def test_a_chunk_that_every_tier_gives_wrong_is_tried_once_more_and_refused(
    make_fetcher: MakeFetcher,
) -> None:
    blob, ssd = far_apart(1), FakeSsd()
    zone, region = FakeTier("zone", blob.packs), FakeTier("region", blob.packs)
    zone.answer = region.answer = flip
    fetcher = make_fetcher(ssd, zone, region)

    with pytest.raises(ChunkInvalid, match=r"zone.*region.*zone"):
        fetcher.fetch(blob.remote, 0, PATIENCE_S)

    assert (len(zone.requests), len(region.requests)) == (2, 1)
    assert ssd.chunks == {}


def test_a_zone_that_was_wrong_once_may_be_right_the_second_time(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)
    zone, region = FakeTier("zone", blob.packs), FakeTier("region", {})
    zone.answer = lambda request, data: flip(request, data) if len(zone.requests) == 1 else data
    fetcher = make_fetcher(FakeSsd(), zone, region)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]


def test_an_answer_of_the_wrong_length_counts_as_none(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)
    zone, region = FakeTier("zone", blob.packs), FakeTier("region", blob.packs)
    zone.answer = lambda _request, data: data[:-1]
    fetcher = make_fetcher(FakeSsd(), zone, region)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]
    assert fetcher.stats().tiers["zone"].errors == 1


def test_a_bug_in_one_tier_does_not_take_the_next_with_it(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)

    def explode(_request: Request, _data: bytes) -> bytes:
        raise ZeroDivisionError

    zone, region = FakeTier("zone", blob.packs), FakeTier("region", blob.packs)
    zone.answer = explode
    fetcher = make_fetcher(FakeSsd(), zone, region)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]


def test_what_no_tier_has_is_missing_and_says_who_was_asked(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)
    fetcher = make_fetcher(FakeSsd(), FakeTier("zone", {}), FakeTier("region", {}))

    with pytest.raises(ChunkMissing, match=r"zone: .*region: ") as caught:
        fetcher.fetch(blob.remote, 0, PATIENCE_S)

    assert caught.value.details["tiers"] == ["zone", "region"]
    assert fetcher.stats().failed == 1


def test_without_tiers_the_error_says_how_to_set_one(make_fetcher: MakeFetcher) -> None:
    with pytest.raises(Unavailable, match="GLOWPLUG_REGION"):
        make_fetcher(FakeSsd()).fetch(far_apart(1).remote, 0, PATIENCE_S)


def test_a_blob_without_placement_says_to_pull_it(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(2)
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs))
    unplaced = RemoteBlob(blob.remote.table, None)
    misplaced = RemoteBlob(blob.remote.table, far_apart(1).placement)

    for remote in (unplaced, misplaced):
        with pytest.raises(NotFound, match="glowplug image pull"):
            fetcher.fetch(remote, 0, PATIENCE_S)
        handle = fetcher.prefetch(remote, [0, 1])
        assert not handle.wait(PATIENCE_S)
        assert isinstance(handle.error, NotFound)


def test_who_joined_an_attempt_that_failed_gets_one_of_their_own(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(1), Asker()
    region = FakeTier("region", {})
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(blob.remote, 0, Priority.READ_AHEAD, asker.done("first"))
    region.wait_for_requests(1)
    fetcher.want(blob.remote, 0, Priority.READ, asker.done("guest"))
    region.release(region.requests[0])
    assert isinstance(asker.wait("first")[0], ChunkMissing)
    region.wait_for_requests(2)
    region.packs = blob.packs
    region.release()

    assert asker.wait("guest") == [blob.contents[0]]


def test_an_attempt_of_ones_own_is_the_last(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(1), Asker()
    region = FakeTier("region", {})
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done("first"))
    region.wait_for_requests(1)
    for name in ("guest", "other guest"):
        fetcher.want(blob.remote, 0, Priority.READ, asker.done(name))
    region.release()

    assert all(isinstance(outcome, ChunkMissing) for outcome in asker.wait("first", "guest", "other guest"))
    assert len(region.requests) == 2


def test_a_blob_with_a_wrong_placement_does_not_spoil_the_chunk_for_others(
    make_fetcher: MakeFetcher,
) -> None:
    blob, asker = far_apart(2), Asker()
    swapped = make_blob([1000, 1000], seed=0, chunks_per_pack=1)
    table = type(blob.remote.table)(type(blob.remote.table).pack(reversed(list(blob.remote.table))))
    liar = RemoteBlob(table, swapped.placement)  # its chunk 0 is chunk 1 of the other, and is not there
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(liar, 0, Priority.READ, asker.done("liar"))
    region.wait_for_requests(1)
    fetcher.want(blob.remote, 1, Priority.READ, asker.done("honest"))
    region.release()

    assert isinstance(asker.wait("liar")[0], ChunkInvalid)
    assert asker.wait("honest") == [blob.contents[1]]


# Deadlines


def test_a_tier_that_never_answers_costs_its_share_of_the_time_only(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)
    zone, region = FakeTier("zone", blob.packs), FakeTier("region", blob.packs)
    zone.hold()
    fetcher = make_fetcher(FakeSsd(), zone, region, timeout_s=0.5)

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]


def test_whoever_waited_too_long_is_told_even_if_the_tier_breaks_its_promise(
    make_fetcher: MakeFetcher,
) -> None:
    blob, asker = far_apart(2), Asker()
    region = FakeTier("region", blob.packs)
    is_over = threading.Event()

    def never(_request: Request, data: bytes) -> bytes:
        is_over.wait(PATIENCE_S)
        return data

    region.answer = never
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0, timeout_s=0.1)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done("in flight"))
    region.wait_for_requests(1)
    fetcher.want(blob.remote, 1, Priority.READ, asker.done("queued"))

    assert all(isinstance(outcome, DeadlineExceeded) for outcome in asker.wait("in flight", "queued"))
    is_over.set()
    fetcher.close()
    assert len(region.requests) == 1  # nobody waited for the second any more
    assert asker.twice == []


def test_fetch_waits_no_longer_than_its_own_timeout(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1)
    region = FakeTier("region", blob.packs)
    region.hold()

    with pytest.raises(DeadlineExceeded):
        make_fetcher(FakeSsd(), region).fetch(blob.remote, 0, 0.05)


# A disk that fails


def test_a_full_ssd_still_lets_readers_have_their_chunk(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(1), FakeSsd()
    ssd.is_full = True
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))

    assert fetcher.fetch(blob.remote, 0, PATIENCE_S) == blob.contents[0]
    assert fetcher.stats().unstored == 1


def test_a_full_ssd_ends_a_prefetch(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(1000), FakeSsd()
    ssd.is_full = True
    region = FakeTier("region", blob.packs)
    handle = make_fetcher(ssd, region).prefetch(blob.remote, range(1000))

    assert not handle.wait(PATIENCE_S)
    assert isinstance(handle.error, ResourceExhausted)
    assert len(region.requests) < 100


def test_a_broken_ssd_costs_fetches_and_no_answers(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([1000] * 3), FakeSsd()
    ssd.breakdown = OSError(5, "Input/output error")
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))

    assert fetcher.fetch(blob.remote, 1, PATIENCE_S) == blob.contents[1]


# Askers that fail, and the end


def test_a_done_that_fails_is_logged_and_the_others_are_answered(
    make_fetcher: MakeFetcher, caplog: pytest.LogCaptureFixture
) -> None:
    blob, asker = far_apart(2), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    def fail(_outcome: Outcome) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        fetcher.want(blob.remote, 0, Priority.READ, fail)
        fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
        region.release()
        asker.wait(0)

    assert "ZeroDivisionError" in caplog.text
    assert fetcher.fetch(blob.remote, 1, PATIENCE_S) == blob.contents[1]


def test_a_done_may_want_the_next_chunk(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(3), Asker()
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs), connections=1, reserved_for_reads=0)

    def then(index: int) -> Callable[[Outcome], None]:
        def done(outcome: Outcome) -> None:
            if index < 2:
                fetcher.want(blob.remote, index + 1, Priority.READ, then(index + 1))
            asker.done(index)(outcome)

        return done

    fetcher.want(blob.remote, 0, Priority.READ, then(0))

    assert asker.wait(0, 1, 2) == blob.contents


def test_closing_gives_up_what_is_queued_and_awaits_what_is_in_flight(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(3), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done("in flight"))
    region.wait_for_requests(1)
    fetcher.want(blob.remote, 1, Priority.READ, asker.done("queued"))
    handle = fetcher.prefetch(blob.remote, [2])
    closing = threading.Thread(target=fetcher.close, args=(PATIENCE_S,))
    closing.start()
    assert isinstance(asker.wait("queued")[0], Unavailable)
    assert not handle.wait(PATIENCE_S)
    region.release()
    closing.join(PATIENCE_S)

    assert asker.wait("in flight") == [blob.contents[0]]
    assert not any(worker.is_alive() for worker in fetcher._workers)


def test_closing_does_not_wait_for_ever_for_what_is_in_flight(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(2), Asker()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region)

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))
    handle = fetcher.prefetch(blob.remote, [1])
    region.wait_for_requests(2)
    fetcher.close(timeout_s=0.05)

    assert isinstance(asker.outcomes[0], Unavailable)
    assert not handle.wait(0)
    region.release()


def test_after_closing_everything_is_refused(make_fetcher: MakeFetcher) -> None:
    blob, asker = far_apart(1), Asker()
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs))
    fetcher.close()
    fetcher.close()

    fetcher.want(blob.remote, 0, Priority.READ, asker.done(0))

    assert isinstance(asker.outcomes[0], Unavailable)
    assert isinstance(fetcher.prefetch(blob.remote, [0]).error, Unavailable)


# Prefetch


def test_a_prefetch_brings_everything_and_nothing_twice(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([i % 3000 + 1 for i in range(10_000)]), FakeSsd()
    region = FakeTier("region", blob.packs)
    fetcher = make_fetcher(ssd, region)

    handle = fetcher.prefetch(blob.remote, [*range(9_999, -1, -1), 5, 5])

    assert handle.wait(60)
    total_bytes = sum(map(len, blob.contents))
    assert handle.progress() == (total_bytes, total_bytes)
    assert len(ssd.chunks) == len(set(blob.contents))
    assert fetcher.stats().tiers["region"].chunks == len(set(blob.contents))
    assert len(region.requests) < 50


def test_a_prefetch_is_planned_no_further_than_it_has_come(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(3000)
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(FakeSsd(), region, connections=3, reserved_for_reads=1)

    handle = fetcher.prefetch(blob.remote, range(3000))
    region.wait_for_requests(2)

    assert len(handle.ranges) < 1100
    assert fetcher.stats().in_flight == 2
    handle.cancel()


def test_a_prefetch_follows_the_order_it_was_given(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(50)
    region = FakeTier("region", blob.packs)
    order = [i * 37 % 50 for i in range(50)]
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0)

    assert fetcher.prefetch(blob.remote, order).wait(PATIENCE_S)
    assert starts_of(blob, region.requests) == order


def test_a_prefetch_passes_over_what_is_here_or_being_read(make_fetcher: MakeFetcher) -> None:
    blob, ssd, asker = far_apart(4), FakeSsd(), Asker()
    region = FakeTier("region", blob.packs)
    ssd.put(blob.remote.table[0], blob.contents[0])
    region.hold()
    fetcher = make_fetcher(ssd, region)

    fetcher.want(blob.remote, 1, Priority.READ, asker.done(1))
    read = region.wait_for_requests(1)[0]
    handle = fetcher.prefetch(blob.remote, [0, 1, 2, 3])
    rest = region.wait_for_requests(3)[1:]
    region.release(*rest)
    assert not handle.wait(0)  # it is complete only when the read is
    region.release(read)

    assert handle.wait(PATIENCE_S)
    assert sorted(starts_of(blob, region.requests)) == [1, 2, 3]


def test_a_cancelled_prefetch_fetches_no_more(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(100), FakeSsd()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(ssd, region, connections=2, reserved_for_reads=0)

    handle = fetcher.prefetch(blob.remote, range(100))
    region.wait_for_requests(2)
    handle.cancel()
    assert not handle.wait(PATIENCE_S)
    assert isinstance(handle.error, Conflict)
    region.release()
    fetcher.close()

    assert len(region.requests) == 2
    assert len(ssd.chunks) == 2  # what was in flight is kept


def test_a_prefetch_gives_up_when_the_tiers_are_gone(make_fetcher: MakeFetcher) -> None:
    blob = far_apart(1000)
    region = FakeTier("region", {})
    fetcher = make_fetcher(FakeSsd(), region)

    handle = fetcher.prefetch(blob.remote, range(1000))

    assert not handle.wait(PATIENCE_S)
    assert isinstance(handle.error, ChunkMissing)
    assert len(region.requests) < 100


def test_a_prefetch_that_lacks_one_chunk_says_so_and_brings_the_rest(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(30), FakeSsd()
    region = FakeTier(
        "region", {key: pack for number, (key, pack) in enumerate(blob.packs.items()) if number}
    )
    fetcher = make_fetcher(ssd, region)

    handle = fetcher.prefetch(blob.remote, range(30))

    assert not handle.wait(PATIENCE_S)
    assert handle.is_over
    assert handle.failed_chunks == 1
    assert len(ssd.chunks) == 29


def test_a_prefetch_goes_on_while_some_of_it_succeeds(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(80), FakeSsd()
    every_other = {key: pack for number, (key, pack) in enumerate(blob.packs.items()) if number % 2}
    fetcher = make_fetcher(ssd, FakeTier("region", every_other), connections=1, reserved_for_reads=0)

    handle = fetcher.prefetch(blob.remote, range(80))

    assert not handle.wait(PATIENCE_S)
    assert handle.error is None
    assert (handle.failed_chunks, len(ssd.chunks)) == (40, 40)


def test_an_empty_prefetch_is_complete(make_fetcher: MakeFetcher) -> None:
    assert make_fetcher(FakeSsd()).prefetch(far_apart(1).remote, []).wait(0)
