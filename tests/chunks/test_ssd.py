"""The SSD tier as a store: the contract, where things lie, and what it tells about itself."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.chunks.conftest import OpenSsd
from tests.chunks.content import SIZES, TIMEOUT_S, chunks_of, contents, run_of
from tests.chunks.contract import HOUR_S, Pin, PruneStoreContract

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES, Chunk, ChunkMissing, aligned
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.ssd_packs import location_of
from glowplug.chunks.store import PruneStore
from glowplug.chunks.table import ChunkTable
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Unavailable


class TestSsdStore(PruneStoreContract):
    @pytest.fixture
    def store(self, ssd: SsdStore) -> PruneStore:
        return ssd

    @pytest.fixture
    def pin(self, pin_ssd: Pin) -> Pin:
        return pin_ssd


class TestSsdStoreWithManySmallPacks(TestSsdStore):
    """The same with packs that are full all the time."""

    @pytest.fixture
    def store(self, ssd: SsdStore, ssd_root: Path, open_ssd: OpenSsd) -> PruneStore:
        return open_ssd(pack_bytes=CHUNK_BYTES)


def fill(store: SsdStore, bodies: list[bytes]) -> list[Chunk]:
    for body in bodies:
        store.put(Chunk.of(body), body)
    return chunks_of(bodies)


def test_what_was_flushed_is_there_when_it_is_opened_again(open_ssd: OpenSsd) -> None:
    bodies = contents(SIZES)
    first = open_ssd()
    chunks = fill(first, bodies)
    first.close()
    again = open_ssd()
    assert again.missing(chunks) == []
    assert [again.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies
    assert again.used_bytes() == sum(aligned(size) for size in SIZES)


def test_another_process_sees_a_chunk_after_a_flush_at_the_latest(open_ssd: OpenSsd) -> None:
    writer, reader = open_ssd(commit_interval_s=600.0), open_ssd()
    (chunk,) = fill(writer, contents([5000]))
    assert writer.locate(chunk) is not None
    writer.flush()
    assert reader.locate(chunk) == writer.locate(chunk)
    assert reader.get(chunk, TIMEOUT_S)


def test_another_process_sees_a_chunk_without_a_flush_soon(open_ssd: OpenSsd) -> None:
    writer, reader = open_ssd(), open_ssd()
    (chunk,) = fill(writer, contents([5000]))
    for _ in range(6000):
        if reader.locate(chunk) is not None:
            return
        threading.Event().wait(0.01)
    pytest.fail("the row was never committed")


def test_bodies_start_at_blocks_and_are_padded_with_zeros(ssd: SsdStore) -> None:
    bodies = contents([1, 4095, 4096, 4097, 10_000])
    for chunk, body in zip(fill(ssd, bodies), bodies, strict=True):
        location = ssd.locate(chunk)
        assert location is not None
        assert location.offset % ALIGN_BYTES == 0
        padded = ssd.read_at(location, aligned(len(body)))
        assert padded == body.ljust(aligned(len(body)), b"\0")


def test_a_pack_is_whole_blocks_so_that_the_kernel_can_mount_it(ssd: SsdStore) -> None:
    (chunk,) = fill(ssd, contents([5001]))
    location = ssd.locate(chunk)
    assert location is not None
    assert ssd.pack_path(location.pack).stat().st_size % ALIGN_BYTES == 0


def test_packs_are_rolled_at_their_limit_and_never_exceed_it(open_ssd: OpenSsd, ssd_root: Path) -> None:
    limit_bytes = 2 * CHUNK_BYTES
    store = open_ssd(pack_bytes=limit_bytes)
    bodies = contents([700_000] * 6)
    chunks = fill(store, bodies)
    store.flush()
    packs = sorted((ssd_root / "packs").iterdir())
    assert len(packs) == 3
    assert all(pack.stat().st_size <= limit_bytes for pack in packs)
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_a_pack_that_was_begun_is_gone_on_with(open_ssd: OpenSsd, ssd_root: Path) -> None:
    for seed in range(5):
        store = open_ssd()
        fill(store, contents([5000] * 3, seed))
        store.close()
    assert len(list((ssd_root / "packs").iterdir())) == 1


def test_two_writers_never_share_a_pack(open_ssd: OpenSsd) -> None:
    first, second = open_ssd(), open_ssd()
    (a,) = fill(first, contents([5000], seed=1))
    (b,) = fill(second, contents([5000], seed=2))
    place_a, place_b = first.locate(a), second.locate(b)
    assert place_a is not None
    assert place_b is not None
    assert place_a.pack != place_b.pack


def test_locate_all_answers_in_order_also_for_what_is_not_committed(open_ssd: OpenSsd) -> None:
    store = open_ssd(commit_interval_s=600.0)
    committed = fill(store, contents([100] * 600, seed=1))
    store.flush()
    pending = fill(store, contents([100] * 3, seed=2))
    absent = chunks_of(contents([100], seed=3))
    found = store.locate_all(pending + absent + committed)
    assert found == [store.locate(chunk) for chunk in pending + absent + committed]
    assert found.count(None) == 1
    assert len(set(found)) == 604


def test_an_open_pack_outlives_the_cache_of_descriptors(open_ssd: OpenSsd) -> None:
    store = open_ssd(pack_bytes=CHUNK_BYTES)
    bodies = contents([CHUNK_BYTES] * 3)
    locations = [location for location in store.locate_all(fill(store, bodies)) if location is not None]
    held = store.open_pack(locations[0].pack)
    store.close()
    assert os.pread(held, 100, locations[0].offset) == bodies[0][:100]


def test_a_pack_that_is_gone_cannot_be_opened_and_reads_as_nothing(ssd: SsdStore) -> None:
    (chunk,) = fill(ssd, contents([5000]))
    location = ssd.locate(chunk)
    assert location is not None
    ssd.pack_path(location.pack).unlink()
    assert ssd.read_at(location, 5000) == b""
    with pytest.raises(Unavailable):
        ssd.open_pack(location.pack)


def test_touched_chunks_are_pruned_last(ssd: SsdStore, clock: ManualClock) -> None:
    a, b, c = fill(ssd, contents([4096] * 3))
    ssd.flush()
    clock.advance(HOUR_S)
    ssd.touch([a.id, c.id, bytes(32)])
    assert ssd.prune(2 * 4096).removed_chunks == 1
    assert ssd.missing([a, b, c]) == [b]


def test_putting_what_is_there_counts_as_a_use(ssd: SsdStore, clock: ManualClock) -> None:
    bodies = contents([4096] * 2)
    a, b = fill(ssd, bodies)
    ssd.flush()
    clock.advance(HOUR_S)
    ssd.put(a, bodies[0])
    ssd.prune(4096)
    assert ssd.missing([a, b]) == [b]


def test_removals_tell_readers_whether_anything_was_removed(ssd: SsdStore) -> None:
    a, _ = fill(ssd, contents([100, 200]))
    ssd.flush()
    before = ssd.removals()
    fill(ssd, contents([300]))
    ssd.flush()
    assert ssd.removals() == before
    ssd.remove([a])
    assert ssd.removals() != before


def test_unneeded_are_all_but_those_named_and_those_just_used(ssd: SsdStore, clock: ManualClock) -> None:
    a, b = fill(ssd, contents([100, 200], seed=1))
    ssd.flush()
    clock.advance(HOUR_S)
    (c,) = fill(ssd, contents([300], seed=2))
    ssd.flush()
    assert set(ssd.unneeded({a.id})) == {b, c}
    assert ssd.unneeded({a.id}, idle_s=60.0) == [b]


def test_usage_tells_how_much_of_a_table_is_here(ssd: SsdStore) -> None:
    here = fill(ssd, contents([100, 5000], seed=1))
    absent = chunks_of(contents([70], seed=2))
    usage = ssd.usage(ChunkTable(ChunkTable.pack(here + absent)))
    assert (usage.chunks, usage.bytes, usage.total_chunks, usage.total_bytes) == (2, 5100, 3, 5170)
    assert not usage.is_complete
    assert ssd.usage(ChunkTable(ChunkTable.pack(here))).is_complete


def test_stats_count_hits_and_misses_and_what_is_here(ssd: SsdStore) -> None:
    a, b = fill(ssd, contents([100, 5000]))
    ssd.get(a, TIMEOUT_S)
    ssd.get(b, TIMEOUT_S)
    with pytest.raises(ChunkMissing):
        ssd.get(Chunk.of(b"absent"), TIMEOUT_S)
    stats = ssd.stats()
    assert (stats.chunks, stats.used_bytes, stats.hits, stats.misses) == (2, 3 * 4096, 2, 1)
    assert (stats.corrupt_chunks, stats.full_errors, stats.index_resets) == (0, 0, 0)
    ssd.flush()
    assert (ssd.stats().chunks, ssd.stats().used_bytes) == (2, 3 * 4096)


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "get", "remove", "prune", "flush", "reopen", "gc"]), st.integers(0, 9)),
    max_size=25,
)
BODIES = contents([1, 100, 4096, 4097, 9000, 20_000, 50_000, 70_000, 100_000, CHUNK_BYTES], seed=7)
CHUNKS = chunks_of(BODIES)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS, pinned=st.sets(st.integers(0, 9), max_size=3))
def test_any_order_of_calls_gives_right_bytes_and_right_sums(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], pinned: set[int]
) -> None:
    root = tmp_path_factory.mktemp("ssd")
    table = root / "chunks.bin"
    table.write_bytes(ChunkTable.pack([CHUNKS[index] for index in sorted(pinned)]))
    store = SsdStore(root / "store", pack_bytes=2 * CHUNK_BYTES, commit_interval_s=600.0)
    store.pin("test", table)
    held: set[int] = set()
    for name, number in steps:
        if name == "put":
            store.put(CHUNKS[number], BODIES[number])
            held.add(number)
        elif name == "get" and number in held:
            assert store.get(CHUNKS[number], TIMEOUT_S) == BODIES[number]
        elif name == "remove":
            store.remove([CHUNKS[number]])
            held -= {number} - pinned
        elif name == "prune":
            store.prune(0)
            held &= pinned
        elif name == "flush":
            store.flush()
        elif name == "gc":
            store.gc()
        elif name == "reopen":
            store.close()
            store = SsdStore(root / "store", pack_bytes=2 * CHUNK_BYTES, commit_interval_s=600.0)
        assert store.used_bytes() == sum(aligned(len(BODIES[index])) for index in held)
    assert {index for index in range(10) if store.locate(CHUNKS[index])} == held
    assert all(store.get(CHUNKS[index], TIMEOUT_S) == BODIES[index] for index in held)
    store.close()


def test_many_that_were_verified_are_kept_at_once_and_found_where_it_says(ssd: SsdStore) -> None:
    bodies = contents([1, 4096, 5000, CHUNK_BYTES, 70_000, CHUNK_BYTES, 3])
    ssd.put(Chunk.of(bodies[2]), bodies[2])
    places = ssd.put_verified(run_of(bodies))
    assert [index for index, place in enumerate(places) if place is None] == [2]
    for body, place in zip(bodies, places, strict=True):
        assert ssd.get(Chunk.of(body), TIMEOUT_S) == body
        assert place is None or location_of(place) == ssd.locate(Chunk.of(body))
    used_bytes = ssd.used_bytes()
    assert ssd.put_verified(run_of(bodies)) == [None] * len(bodies)
    ssd.flush()
    assert ssd.used_bytes() == used_bytes == sum(aligned(len(body)) for body in bodies)
    assert ssd.verify().damaged == 0


def test_more_than_one_statement_takes_are_committed_together(ssd: SsdStore, open_ssd: OpenSsd) -> None:
    bodies = contents([10] * 200)
    other = open_ssd()
    ssd.put_verified(run_of(bodies))
    other.put_verified(run_of(bodies[::3]))
    ssd.flush()
    other.flush()
    for store in (ssd, other):
        assert store.missing(chunks_of(bodies)) == []
        assert store.used_bytes() == len(bodies) * ALIGN_BYTES
        assert store.verify().damaged == 0
