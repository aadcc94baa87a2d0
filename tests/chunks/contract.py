"""What every tier must do, whatever it is made of.

A tier gets these tests by subclassing the rung of the ladder it stands on, in a test module with the fixtures
that the class names. Deliberately free of anything that only one tier does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.chunks.content import SIZES, TIMEOUT_S, chunks_of, contents

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, ChunkInvalid, ChunkMissing
from glowplug.chunks.store import PruneStore, Store, WriteStore
from glowplug.types.clock import ManualClock

Holding = Callable[[Sequence[bytes]], Store]
Pin = Callable[[str, Sequence[Chunk]], None]

HOUR_S = 3600.0
"""Long enough for every tier to note that one chunk was used after another."""


class StoreContract:
    """Reads. Fixture ``holding``: gives a store that holds exactly these contents."""

    def test_it_says_which_tier_it_is(self, holding: Holding) -> None:
        assert holding([]).tier in ("ssd", "zone", "region", "memory")

    @pytest.mark.parametrize("size", SIZES)
    def test_a_chunk_reads_back_as_it_was(self, holding: Holding, size: int) -> None:
        (body,) = contents([size])
        assert bytes(holding([body]).get(Chunk.of(body), TIMEOUT_S)) == body

    def test_each_of_many_chunks_reads_back(self, holding: Holding) -> None:
        bodies = contents(range(1, 20_000, 171))
        store = holding(bodies)
        assert [bytes(store.get(chunk, TIMEOUT_S)) for chunk in chunks_of(bodies)] == bodies

    def test_a_chunk_that_it_lacks_is_missing_and_named(self, holding: Holding) -> None:
        here, absent = contents([100, 100])
        store = holding([here])
        with pytest.raises(ChunkMissing) as caught:
            store.get(Chunk.of(absent), TIMEOUT_S)
        assert caught.value.details["chunk"] == Chunk.of(absent).id.hex()
        assert caught.value.details["tier"] == store.tier
        assert caught.value.remedy

    @pytest.mark.parametrize("size", [99, 101])
    def test_a_chunk_is_not_given_out_under_another_length(self, holding: Holding, size: int) -> None:
        (body,) = contents([100])
        store = holding([body])
        with pytest.raises((ChunkMissing, ChunkInvalid)):
            store.get(Chunk(Chunk.of(body).id, size), TIMEOUT_S)

    def test_missing_lists_what_it_lacks_in_order_and_once(self, holding: Holding) -> None:
        bodies = contents([10, 20, 30, 40])
        a, b, c, d = chunks_of(bodies)
        store = holding([bodies[0], bodies[2]])
        assert store.missing([d, a, b, c, d, b]) == [d, b]
        assert store.missing([a, c]) == []
        assert store.missing([]) == []

    def test_many_threads_read_at_once(self, holding: Holding) -> None:
        bodies = contents([5000] * 20)
        store = holding(bodies)
        wanted = list(zip(chunks_of(bodies), bodies, strict=True)) * 8
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda one: bytes(store.get(one[0], TIMEOUT_S)) == one[1], wanted))


class WriteStoreContract(StoreContract):
    """Keeps. Fixture ``store``: an empty store."""

    @pytest.fixture
    def holding(self, store: WriteStore) -> Holding:
        def hold(bodies: Sequence[bytes]) -> Store:
            for body in bodies:
                store.put(Chunk.of(body), body)
            return store

        return hold

    def test_putting_twice_is_putting_once(self, store: WriteStore) -> None:
        (body,) = contents([5000])
        for _ in range(2):
            store.put(Chunk.of(body), body)
        store.flush()
        store.put(Chunk.of(body), body)
        store.flush()
        assert store.get(Chunk.of(body), TIMEOUT_S) == body

    @pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
    def test_bytes_that_are_not_the_chunk_are_refused_and_not_kept(
        self, store: WriteStore, damage: str
    ) -> None:
        (body,) = contents([5000])
        chunk = Chunk.of(body)
        wrong = {
            "flipped": bytes([body[0] ^ 1]) + body[1:],
            "short": body[:-1],
            "long": body + b"\0",
            "empty": b"",
        }
        with pytest.raises(ChunkInvalid):
            store.put(chunk, wrong[damage])
        assert store.missing([chunk]) == [chunk]
        store.put(chunk, body)
        assert store.get(chunk, TIMEOUT_S) == body

    @pytest.mark.parametrize("size", [0, CHUNK_BYTES + 1])
    def test_a_chunk_of_an_impossible_size_is_refused(self, store: WriteStore, size: int) -> None:
        with pytest.raises(ChunkInvalid):
            store.put(Chunk.of(bytes(size)), bytes(size))

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    def test_any_buffer_can_be_put_and_then_used_for_something_else(
        self, store: WriteStore, kind: type
    ) -> None:
        (body,) = contents([9000])
        buffer = bytearray(body)
        store.put(Chunk.of(body), kind(buffer))
        buffer[:] = bytes(len(buffer))
        assert store.get(Chunk.of(body), TIMEOUT_S) == body

    def test_flushing_with_nothing_to_flush_is_fine(self, store: WriteStore) -> None:
        store.flush()
        store.flush()

    def test_many_threads_put_the_same_and_different_chunks_at_once(self, store: WriteStore) -> None:
        bodies = contents([3000] * 40)
        chunks = chunks_of(bodies)
        start = threading.Barrier(8)

        def fill(worker: int) -> None:
            start.wait(TIMEOUT_S)
            for index in range(len(bodies)):
                chosen = (index + worker * 5) % len(bodies)
                store.put(chunks[chosen], bodies[chosen])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fill, range(8)))
        store.flush()
        assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


class PruneStoreContract(WriteStoreContract):
    """Forgets. Fixtures ``store``, ``clock`` that it goes by, and ``pin``: ``pin(owner, chunks)``."""

    def test_chunks_take_room_and_give_it_back(self, store: PruneStore) -> None:
        bodies = contents([100, 5000, 20_000])
        assert store.used_bytes() == 0
        for body in bodies:
            before = store.used_bytes()
            store.put(Chunk.of(body), body)
            assert store.used_bytes() >= before + len(body)
        assert store.remove(chunks_of(bodies)) == 3
        assert store.used_bytes() == 0

    def test_the_same_chunk_takes_room_once(self, store: PruneStore) -> None:
        (body,) = contents([5000])
        store.put(Chunk.of(body), body)
        used = store.used_bytes()
        store.put(Chunk.of(body), body)
        assert store.used_bytes() == used

    def test_a_removed_chunk_is_missing_and_can_be_put_again(self, store: PruneStore) -> None:
        kept, removed = contents([100, 200])
        for body in (kept, removed):
            store.put(Chunk.of(body), body)
        assert store.remove([Chunk.of(removed)]) == 1
        with pytest.raises(ChunkMissing):
            store.get(Chunk.of(removed), TIMEOUT_S)
        assert store.get(Chunk.of(kept), TIMEOUT_S) == kept
        store.put(Chunk.of(removed), removed)
        assert store.get(Chunk.of(removed), TIMEOUT_S) == removed

    def test_removing_what_is_not_there_is_no_error(self, store: PruneStore) -> None:
        here, absent = contents([100, 200])
        store.put(Chunk.of(here), here)
        assert store.remove([Chunk.of(absent)]) == 0
        assert store.remove([]) == 0
        assert store.missing([Chunk.of(here)]) == []

    def test_pruning_to_what_is_used_removes_nothing(self, store: PruneStore) -> None:
        for body in contents([5000] * 3):
            store.put(Chunk.of(body), body)
        used = store.used_bytes()
        pruned = store.prune(used)
        assert (pruned.removed_chunks, pruned.freed_bytes, pruned.used_bytes) == (0, 0, used)

    def test_pruning_removes_the_least_recently_used_and_no_more_than_needed(
        self, store: PruneStore, clock: ManualClock
    ) -> None:
        bodies = contents([4096] * 4)
        a, b, c, d = chunks_of(bodies)
        for chunk, body in zip((a, b, c, d), bodies, strict=True):
            store.put(chunk, body)
            store.flush()
            clock.advance(HOUR_S)
        store.get(a, TIMEOUT_S)
        store.flush()
        used = store.used_bytes()
        pruned = store.prune(used // 2)
        assert pruned.removed_chunks == 2
        assert pruned.freed_bytes == used - pruned.used_bytes
        assert pruned.used_bytes == store.used_bytes() == used // 2
        assert store.missing([a, b, c, d]) == [b, c]

    def test_pruning_to_nothing_leaves_nothing(self, store: PruneStore) -> None:
        bodies = contents([5000] * 5)
        for body in bodies:
            store.put(Chunk.of(body), body)
        assert store.prune(0).removed_chunks == 5
        assert store.used_bytes() == 0
        assert store.missing(chunks_of(bodies)) == chunks_of(bodies)

    def test_a_pinned_chunk_is_neither_pruned_nor_removed(self, store: PruneStore, pin: Pin) -> None:
        pinned, loose = contents([5000, 6000])
        for body in (pinned, loose):
            store.put(Chunk.of(body), body)
        pin("mount", [Chunk.of(pinned)])
        assert store.remove(chunks_of([pinned, loose])) == 1
        store.put(Chunk.of(loose), loose)
        assert store.prune(0).removed_chunks == 1
        assert store.get(Chunk.of(pinned), TIMEOUT_S) == pinned

    def test_a_chunk_pinned_before_it_came_stays_too(self, store: PruneStore, pin: Pin) -> None:
        (body,) = contents([5000])
        pin("mount", [Chunk.of(body)])
        store.put(Chunk.of(body), body)
        assert store.prune(0).removed_chunks == 0
        assert store.get(Chunk.of(body), TIMEOUT_S) == body
