"""Who comes first: readers, then what is read ahead, then prefetches, which are advice."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chunks.fetch_fakes import (
    PATIENCE_S,
    Asker,
    FakeSsd,
    FakeTier,
    MakeFetcher,
    far_apart,
    make_blob,
    starts_of,
)

from glowplug.chunks.chunk import ChunkMissing
from glowplug.chunks.fetch import Priority
from glowplug.chunks.fetch_queue import MAX_AHEAD
from glowplug.types.errors import Conflict


def _not_expected(indices: Sequence[int]) -> None:
    raise AssertionError(indices)


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


def test_what_came_since_a_prefetch_was_planned_is_not_fetched_again(make_fetcher: MakeFetcher) -> None:
    blob, ssd = far_apart(4), FakeSsd()
    region = FakeTier("region", blob.packs)
    region.hold()
    fetcher = make_fetcher(ssd, region, connections=2, reserved_for_reads=1)

    handle = fetcher.prefetch(blob.remote, range(4))
    region.wait_for_requests(1)
    reader = Asker()
    fetcher.want(blob.remote, 2, Priority.READ, reader.done(2))
    region.release(region.wait_for_requests(2)[1])
    reader.wait(2)
    region.release()
    assert handle.wait(PATIENCE_S)
    assert sorted(starts_of(blob, region.requests)) == [0, 1, 2, 3]
    assert handle.progress() == (4000, 4000)


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
