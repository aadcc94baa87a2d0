"""Fetching chunks: each once, with its neighbours, and everybody answered once with the right bytes."""

from __future__ import annotations

import pytest
from tests.chunks.fetch_fakes import (
    PATIENCE_S,
    Asker,
    FakeSsd,
    FakeTier,
    MakeFetcher,
    far_apart,
    make_blob,
)

from glowplug.chunks.fetch import Outcome, Priority, RemoteBlob
from glowplug.chunks.fetch_plan import READ_BYTES
from glowplug.chunks.ssd_packs import place_of
from glowplug.types.errors import InvalidInput

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


def test_whoever_keeps_places_hears_where_each_chunk_was_written(make_fetcher: MakeFetcher) -> None:
    blob, kept = make_blob([1000] * 3), dict[int, int | None]()
    blob.remote.kept = lambda indices, places: kept.update(zip(indices, places, strict=True))
    fetcher = make_fetcher(FakeSsd(), FakeTier("region", blob.packs))
    assert fetcher.prefetch(blob.remote, range(3)).wait(PATIENCE_S)
    assert kept == {index: place_of(1, 4096 * index) for index in range(3)}


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
