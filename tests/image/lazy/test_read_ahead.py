"""Read-ahead: around what was missed, of its kind, as far as pays, nothing twice."""

from __future__ import annotations

from collections.abc import Sequence

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch import PrefetchHandle, RemoteBlob
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy.read_ahead import LARGEST_BYTES, SMALLEST_BYTES, ReadAhead

MIB = 1 << 20
SMALL = MIB - 1
"""A chunk that takes as much room as one of a long file, but is a file by itself."""
FAR_S = 0.05


def blob_of(count: int, size_bytes: int = SMALL) -> RemoteBlob:
    return blob_of_sizes([size_bytes] * count)


def blob_of_sizes(sizes: Sequence[int]) -> RemoteBlob:
    chunks = (Chunk(index.to_bytes(32, "big"), size_bytes) for index, size_bytes in enumerate(sizes))
    return RemoteBlob(ChunkTable(ChunkTable.pack(chunks)))


def ahead_of(blob: RemoteBlob, *, waits_s: float = FAR_S) -> ReadAhead:
    ahead = ReadAhead(blob.table)
    ahead.waited(waits_s)
    return ahead


def miss_often(ahead: ReadAhead, blob: RemoteBlob, times: int = 10) -> None:
    for index in range(times):
        ahead.missed(blob, index, index, 0.0)


def test_the_first_miss_brings_little_and_those_that_follow_it_more_and_more() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob)
    windows = [len(ahead.missed(blob, index, index, index / 1000)) for index in range(100, 700, 100)]
    assert windows == [1, 3, 6, 12, 18, 18]
    assert (SMALLEST_BYTES, LARGEST_BYTES) == (MIB, 12 * MIB)


def test_it_goes_forward_first_and_stops_at_the_ends() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    assert ahead.missed(blob, 500, 500, 0.0) == [*range(501, 513), *range(494, 500)]
    assert ahead.missed(blob, 999, 999, 0.0) == [*range(993, 999)]


def test_nothing_is_asked_for_twice_unless_it_was_given_up() -> None:
    blob = blob_of(100)
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    first = ahead.missed(blob, 50, 50, 0.0)
    assert set(ahead.missed(blob, 52, 52, 0.0)).isdisjoint(first)
    ahead.forget(first[:2])
    assert ahead.missed(blob, 50, 50, 0.0) == first[:2]


def test_a_miss_after_a_pause_begins_anew() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    assert len(ahead.missed(blob, 500, 500, 60.0)) == 1


def test_tiers_that_are_near_need_less_of_it() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob, waits_s=0.006)
    miss_often(ahead, blob)
    assert ahead.missed(blob, 500, 500, 0.0) == [501, 502, 503, 499]


def test_while_a_trace_is_followed_there_is_little_of_it() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob)
    blob.prefetch = PrefetchHandle(blob, [1])
    miss_often(ahead, blob)
    assert len(ahead.missed(blob, 500, 500, 0.0)) == 1
    blob.prefetch.cancel()
    miss_often(ahead, blob)
    assert len(ahead.missed(blob, 700, 700, 0.0)) == 18


def test_a_reader_in_order_has_the_next_window_fetched_before_the_end_of_this_one() -> None:
    blob = blob_of(1000)
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    window = ahead.missed(blob, 500, 500, 0.0)
    assert window[:12] == [*range(501, 513)]
    asked = [index for read in range(501, 513) for index in ahead.reached(read, read)]
    assert asked == [*range(513, 520)]
    assert ahead.reached(507, 507) == []  # once


def test_what_comes_along_with_the_read_itself_is_not_asked_for() -> None:
    blob = blob_of(1000, size_bytes=4096)
    ahead = ahead_of(blob)
    window = ahead.missed(blob, 500, 500, 0.0)
    assert 564 in window
    assert set(window).isdisjoint(range(490, 548))


def test_around_small_files_long_ones_are_passed_over_to_their_last_chunk() -> None:
    blob = blob_of_sizes([*[SMALL] * 498, MIB, 5000, SMALL, SMALL, MIB, MIB, 5000, *[SMALL] * 100])
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    assert ahead.missed(blob, 500, 500, 0.0) == [501, *range(505, 514), *range(494, 498)]


def test_around_a_long_file_small_ones_are_passed_over() -> None:
    blob = blob_of_sizes([*[SMALL] * 500, *[MIB] * 4, 5000, *[SMALL] * 100])
    ahead = ahead_of(blob)
    miss_often(ahead, blob)
    assert ahead.missed(blob, 501, 501, 0.0) == [502, 503, 504, 500]
