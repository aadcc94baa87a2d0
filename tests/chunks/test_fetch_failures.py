"""Tiers, disks and askers that fail: it costs time, and never gives wrong bytes or no answer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
from tests.chunks.fetch_fakes import (
    PATIENCE_S,
    Asker,
    FakeSsd,
    FakeTier,
    MakeFetcher,
    Request,
    far_apart,
    make_blob,
)

from glowplug.chunks.chunk import ChunkInvalid, ChunkMissing
from glowplug.chunks.fetch import Outcome, Priority, RemoteBlob
from glowplug.chunks.run import Run
from glowplug.types.errors import (
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


def flip(_request: Request, data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


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
    fetcher = make_fetcher(FakeSsd(), zone, region, timeout_s=4.0)

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
    fetcher = make_fetcher(FakeSsd(), region, connections=1, reserved_for_reads=0, timeout_s=1.0)

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


def test_what_finds_no_room_together_is_kept_one_by_one(make_fetcher: MakeFetcher) -> None:
    blob, ssd = make_blob([1000] * 3), FakeSsd()
    put_verified, refused = ssd.put_verified, ResourceExhausted("The disk is nearly full.")

    def put_one(run: Run) -> list[int | None]:
        if len(run.chunks) > 1:
            raise refused
        return put_verified(run)

    ssd.put_verified = put_one  # type: ignore[method-assign]
    fetcher = make_fetcher(ssd, FakeTier("region", blob.packs))
    assert fetcher.prefetch(blob.remote, range(3)).wait(PATIENCE_S)
    assert len(ssd.chunks) == 3
    assert fetcher.stats().unstored == 0


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
