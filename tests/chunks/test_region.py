"""Content in a region: sent once, found again, never removed while somebody needs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.chunks.blobs import Held, held
from tests.chunks.contract import Holding, StoreContract
from typing_extensions import Buffer

from glowplug.chunks.chunk import ChunkMissing
from glowplug.chunks.compression import compress
from glowplug.chunks.objects import ObjectInfo
from glowplug.chunks.pack import Encoding, index_key, pack_key, pack_of_index_key, pack_of_key
from glowplug.chunks.pack_upload import PACKS_AT_ONCE
from glowplug.chunks.packed_store import PackedStore
from glowplug.chunks.placement import Placement
from glowplug.chunks.region import GRACE_S, Pushed, Region
from glowplug.chunks.region_leases import DEAD_AFTER_S, RENEWED_AFTER_S
from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Conflict, InvalidInput, Unavailable

TIMEOUT_S = 20.0
PACK_BYTES = 100_000


class Watched:
    """A folder as a region, that counts what is written and can be made to fail or to wait."""

    def __init__(self, folder: Path) -> None:
        self.inner = ObstoreObjects(str(folder))
        self.folder = folder
        self.tier = "region"
        self.written: list[str] = []
        self.read_keys: list[str] = []
        self.before_write = lambda key: None
        self._lock = threading.Lock()

    def read(self, key: str, start: int, size_bytes: int, timeout_s: float) -> bytes:
        self.read_keys.append(key)
        return self.inner.read(key, start, size_bytes, timeout_s)

    def read_all(self, key: str, limit_bytes: int, timeout_s: float) -> bytes:
        self.read_keys.append(key)
        return self.inner.read_all(key, limit_bytes, timeout_s)

    def write(self, key: str, data: Buffer | Path, timeout_s: float) -> None:
        self.before_write(key)
        self.inner.write(key, data, timeout_s)
        with self._lock:
            self.written.append(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def delete(self, keys: Collection[str]) -> None:
        self.inner.delete(keys)

    def listed(self, prefix: str = "packs/") -> list[str]:
        return [info.key for info in self.inner.list(prefix)]


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path / "region")
    yield made
    made.inner.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def region(objects: Watched, tmp_path: Path, clock: ManualClock) -> Region:
    return Region(objects, tmp_path / "kept", clock=clock, pause=clock.advance, pack_bytes=PACK_BYTES)


def pushed(region: Region, source: Held, **options: Any) -> Pushed:
    with region.pushing() as lease:
        return region.push_chunks(source.table, source, lease, **options)


def reads_back(objects: Watched, source: Held, placement: Placement) -> bool:
    store = PackedStore(objects, source.table, placement)
    return all(store.get(chunk, TIMEOUT_S) == body for chunk, body in source.content.items())


class TestPackedStore(StoreContract):
    @pytest.fixture(params=[False, True], ids=["raw", "zstd"])
    def holding(self, objects: Watched, region: Region, request: pytest.FixtureRequest) -> Holding:
        def hold(bodies: Sequence[bytes]) -> PackedStore:
            source = Held(bodies)
            placement = pushed(region, source, is_compressing=request.param).placement
            return PackedStore(objects, source.table, placement)

        return hold


def test_a_placement_of_another_image_is_refused(objects: Watched, region: Region) -> None:
    source = held([10, 20])
    placement = pushed(region, source).placement
    with pytest.raises(InvalidInput):
        PackedStore(objects, held([10]).table, placement)


def test_a_pack_that_vanished_makes_its_chunks_missing(objects: Watched, region: Region) -> None:
    source = held([10, 20])
    placement = pushed(region, source).placement
    objects.delete([pack_key(placement.pack_id(0))])
    with pytest.raises(ChunkMissing):
        PackedStore(objects, source.table, placement).get(source.table[0], TIMEOUT_S)


# --- pushing


def test_chunks_go_there_in_packs_in_the_order_of_the_table(objects: Watched, region: Region) -> None:
    source = held([30_000] * 10)
    result = pushed(region, source)
    assert result.packs == len({place.pack_id for place in places(result.placement)}) == 3
    assert [place.offset for place in places(result.placement)[:5]] == [0, 30_000, 60_000, 90_000, 0]
    assert result.sent_bytes == 300_000
    assert result.skipped_bytes == 0
    assert reads_back(objects, source, result.placement)


def places(placement: Placement) -> list[Any]:
    return [placement.place(index) for index in range(len(placement))]


def test_an_empty_image_can_be_pushed(region: Region) -> None:
    assert len(pushed(region, Held([])).placement) == 0


def test_what_is_there_is_not_sent_again(objects: Watched, region: Region) -> None:
    source = held([30_000] * 10)
    first = pushed(region, source)
    objects.written.clear()
    second = pushed(region, source)
    assert (second.sent_bytes, second.packs, second.skipped_bytes) == (0, 0, 300_000)
    assert second.placement.data == first.placement.data
    assert not [key for key in objects.written if key.startswith("packs/")]


def test_another_image_sends_only_what_differs(objects: Watched, region: Region) -> None:
    source = held([20_000] * 10)
    pushed(region, source)
    other = Held([*list(source.content.values())[3:], b"something new" * 100])
    result = pushed(region, other)
    assert result.sent_bytes == 1300
    assert other.asked == [list(other.content)[-1]]
    assert reads_back(objects, other, result.placement)


def test_a_pusher_need_not_hold_what_is_there(objects: Watched, region: Region) -> None:
    source = held([20_000] * 10)
    pushed(region, source)
    empty_handed = Held([])
    with region.pushing() as lease:
        result = region.push_chunks(source.table, empty_handed, lease)
    assert reads_back(objects, source, result.placement)


def test_a_chunk_that_nobody_holds_is_named(region: Region) -> None:
    with region.pushing() as lease, pytest.raises(ChunkMissing):
        region.push_chunks(held([10]).table, Held([]), lease)


def test_indexes_of_packs_are_fetched_once_per_machine(
    objects: Watched, region: Region, tmp_path: Path, clock: ManualClock
) -> None:
    pushed(region, held([30_000] * 10))
    elsewhere = Region(objects, tmp_path / "kept elsewhere", clock=clock, pack_bytes=PACK_BYTES)
    for seed, fetched in ((1, 3), (2, 1)):  # the second time, that of its own first push
        objects.read_keys.clear()
        pushed(elsewhere, held([10_000], seed=seed))
        assert len([key for key in objects.read_keys if key.endswith(".index")]) == fetched
    assert len(list((tmp_path / "kept elsewhere").glob("*.index"))) == 4


def test_a_region_without_a_folder_for_indexes_works(objects: Watched, clock: ManualClock) -> None:
    region = Region(objects, None, clock=clock, pack_bytes=PACK_BYTES)
    source = held([30_000] * 4)
    pushed(region, source)
    assert pushed(region, source).sent_bytes == 0


def test_a_push_that_was_interrupted_goes_on_where_it_stopped(objects: Watched, region: Region) -> None:
    source = held([30_000] * 40)

    def fail_late(key: str) -> None:
        whole = len([done for done in objects.written if pack_of_index_key(done)])  # its index comes last
        if pack_of_key(key) and whole >= 5:
            raise Unavailable("The region is down.", remedy="Wait.")

    objects.before_write = fail_late
    with pytest.raises(Unavailable):
        pushed(region, source)
    objects.before_write = lambda key: None
    there = len([key for key in objects.listed() if pack_of_index_key(key)])
    assert there >= 5
    result = pushed(region, source)
    assert result.skipped_bytes == there * 120_000
    assert reads_back(objects, source, result.placement)


def test_a_push_stops_when_nobody_wants_it_any_more(objects: Watched, region: Region) -> None:
    source = held([30_000] * 40)

    def check() -> None:
        if len(source.asked) >= 10:
            raise Unavailable("It was cancelled.", remedy="Ask again.")

    with pytest.raises(Unavailable, match="cancelled"):
        pushed(region, source, check=check)
    assert len(source.asked) == 10


def test_few_packs_are_in_memory_at_once(objects: Watched, region: Region) -> None:
    source = held([50_000] * 60)
    has_come, let_go = threading.Semaphore(0), threading.Event()

    def stall(key: str) -> None:
        has_come.release()
        let_go.wait(TIMEOUT_S)

    with region.pushing() as lease:
        objects.before_write = stall
        pushing = threading.Thread(target=region.push_chunks, args=(source.table, source, lease))
        pushing.start()
        assert all(has_come.acquire(timeout=TIMEOUT_S) for _ in range(PACKS_AT_ONCE))
        # Four under way, and the next one being made: two chunks each.
        assert len(source.asked) <= 2 * (PACKS_AT_ONCE + 1)
        let_go.set()
        pushing.join(TIMEOUT_S)
    assert len(source.asked) == 60


def test_progress_ends_at_the_whole(region: Region) -> None:
    seen: list[tuple[int, int]] = []
    pushed(region, held([30_000] * 5), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 150_000)
    assert seen[-1] == (150_000, 150_000)
    assert seen == sorted(seen)


def test_zstd_is_used_only_where_it_shrinks(objects: Watched, region: Region) -> None:
    source = Held([b"words and words " * 2000, *held([20_000]).content.values()])
    result = pushed(region, source, is_compressing=True)
    assert [place.encoding for place in places(result.placement)] == [Encoding.ZSTD, Encoding.RAW]
    assert result.sent_bytes < 21_000
    assert reads_back(objects, source, result.placement)


# --- an earlier placement


def test_an_earlier_placement_is_kept_where_it_holds(objects: Watched, region: Region) -> None:
    source = held([30_000] * 10)
    first = pushed(region, source).placement
    pushed(region, Held([*source.content.values(), b"more"]))
    assert pushed(region, source, known=first).placement.data == first.data


def test_an_earlier_placement_whose_packs_are_gone_does_no_harm(objects: Watched, region: Region) -> None:
    source = held([30_000] * 10)
    first = pushed(region, source).placement
    gone = first.pack_id(1)
    objects.delete([pack_key(gone), index_key(gone)])
    result = pushed(region, source, known=first)
    assert result.sent_bytes == 120_000
    assert reads_back(objects, source, result.placement)


def test_a_placement_of_another_table_is_not_believed(objects: Watched, region: Region) -> None:
    other = pushed(region, held([10])).placement
    source = held([30_000] * 3, seed=1)
    assert reads_back(objects, source, pushed(region, source, known=other).placement)


# --- indexes that are not what they should be


def damage(objects: Watched, what: str) -> None:
    keys = [key for key in objects.listed() if pack_of_index_key(key)]
    index, pack = keys[0], keys[0].removesuffix(".index")
    content = objects.inner.read_all(index, 1 << 20, TIMEOUT_S)
    if what == "an index is garbage":
        objects.inner.write(index, b"garbage", TIMEOUT_S)
    elif what == "an index is cut off":
        objects.inner.write(index, content[:-5], TIMEOUT_S)
    elif what == "an index is gone":
        objects.delete([index])
    elif what == "a pack is gone":
        objects.delete([pack])
    elif what == "a pack is cut off":
        objects.inner.write(pack, b"short", TIMEOUT_S)
    elif what == "strange objects":
        objects.inner.write("packs/zz/strange", b"x", TIMEOUT_S)
        objects.inner.write(f"packs/00/{'0' * 64}.index", b"x", TIMEOUT_S)


@pytest.mark.parametrize(
    "what",
    ["an index is garbage", "an index is cut off", "an index is gone", "a pack is gone", "a pack is cut off",
     "strange objects"],
)  # fmt: skip
def test_a_pack_that_cannot_be_relied_on_is_sent_anew(
    objects: Watched, region: Region, tmp_path: Path, clock: ManualClock, what: str
) -> None:
    source = held([30_000] * 10)
    pushed(region, source)
    damage(objects, what)
    fresh = Region(objects, tmp_path / "other", clock=clock, pack_bytes=PACK_BYTES)
    assert reads_back(objects, source, pushed(fresh, source).placement)


def test_a_kept_index_that_was_damaged_is_fetched_again(
    objects: Watched, region: Region, tmp_path: Path
) -> None:
    source = held([30_000] * 10)
    pushed(region, source)
    pushed(region, held([5], seed=3))
    for kept in (tmp_path / "kept").glob("*.index"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert pushed(region, source).sent_bytes == 0


# --- garbage


def publish(objects: Watched, name: str, placement: Placement) -> None:
    data = compress(bytes(memoryview(placement.data)))
    objects.inner.write(f"images/{name}/placement.bin.zst", data, TIMEOUT_S)


def test_only_packs_that_no_image_needs_are_removed(objects: Watched, region: Region) -> None:
    kept, dropped = held([30_000] * 10), held([30_000] * 10, seed=1)
    placement = pushed(region, kept).placement
    publish(objects, "kept", placement)
    pushed(region, dropped)
    collected = region.gc(grace_s=0)
    assert collected.removed_packs == 3
    assert collected.removed_chunks == 10
    assert collected.freed_bytes == 300_000
    assert len(objects.listed()) == 6
    assert reads_back(objects, kept, placement)


def test_what_became_unneeded_lately_stays_for_a_while(
    objects: Watched, region: Region, clock: ManualClock
) -> None:
    pushed(region, held([30_000] * 10))
    assert region.gc().waiting_packs == 3
    clock.advance(GRACE_S - 1)
    assert region.gc().removed_packs == 0
    clock.advance(1)
    assert region.gc().removed_packs == 3
    assert objects.listed() == []


def test_the_grace_period_begins_anew_once_a_pack_was_needed_again(
    objects: Watched, region: Region, clock: ManualClock
) -> None:
    source = held([30_000] * 3)
    placement = pushed(region, source).placement
    region.gc()
    clock.advance(GRACE_S)
    publish(objects, "again", placement)
    assert region.gc().waiting_packs == 0
    objects.delete(["images/again/placement.bin.zst"])
    assert region.gc().removed_packs == 0
    assert reads_back(objects, source, placement)


def test_snapshots_keep_packs_too(objects: Watched, region: Region) -> None:
    placement = pushed(region, held([30_000] * 3)).placement
    data = compress(bytes(memoryview(placement.data)))
    objects.inner.write("snapshots/some/placement.bin.zst", data, TIMEOUT_S)
    assert region.gc(grace_s=0).removed_packs == 0


def test_nothing_is_removed_in_doubt(objects: Watched, region: Region) -> None:
    pushed(region, held([30_000] * 3))
    objects.inner.write("images/damaged/placement.bin.zst", b"garbage", TIMEOUT_S)
    with pytest.raises(InvalidInput):
        region.gc(grace_s=0)
    assert len(objects.listed()) == 2


@pytest.mark.parametrize(
    "content", [b"garbage", b"[]", b'{"packs": {"xyz": 1}}', b'{"packs": []}', b"[" * 5000]
)
def test_a_damaged_list_of_the_condemned_starts_over(
    objects: Watched, region: Region, content: bytes
) -> None:
    pushed(region, held([30_000] * 3))
    objects.inner.write("gc/condemned.json", content, TIMEOUT_S)
    assert region.gc().waiting_packs == 1


@pytest.mark.parametrize("time", ["NaN", "-Infinity", "1" + 400 * "0"])
def test_an_impossible_time_of_the_condemned_is_none(
    objects: Watched, region: Region, clock: ManualClock, time: str
) -> None:
    name = pushed(region, held([30_000] * 3)).placement.pack_id(0).hex()
    objects.inner.write("gc/condemned.json", f'{{"packs": {{"{name}": {time}}}}}'.encode(), TIMEOUT_S)
    assert region.gc().waiting_packs == 1
    clock.advance(GRACE_S + 1)
    assert region.gc().removed_packs == 1


def test_an_index_without_a_pack_is_garbage(objects: Watched, region: Region) -> None:
    placement = pushed(region, held([30_000] * 3)).placement
    objects.delete([pack_key(placement.pack_id(0))])
    assert region.gc(grace_s=0).removed_packs == 1
    assert objects.listed() == []


# --- leases


def test_garbage_is_not_collected_while_somebody_pushes(objects: Watched, region: Region) -> None:
    source = held([30_000] * 3)
    with region.pushing() as lease:
        placement = region.push_chunks(source.table, source, lease).placement
        with pytest.raises(Conflict, match="push by"):
            region.gc(grace_s=0)
        publish(objects, "mine", placement)
    region.gc(grace_s=0)
    assert reads_back(objects, source, placement)


def test_several_push_at_once(region: Region) -> None:
    with region.pushing(), region.pushing():
        pass


def test_a_push_waits_for_a_collection_and_then_says_so(region: Region, clock: ManualClock) -> None:
    started_s = clock.monotonic()
    with region.collecting(), pytest.raises(Conflict, match="Garbage"), region.pushing():
        pass
    assert clock.monotonic() - started_s >= 60
    with region.pushing():
        pass


def test_two_collections_keep_apart(region: Region) -> None:
    with region.collecting(), pytest.raises(Conflict):
        region.gc()


def test_the_leases_of_the_dead_do_not_count(objects: Watched, region: Region, clock: ManualClock) -> None:
    with region.pushing() as lease:
        content = objects.inner.read_all(lease.key, 4096, TIMEOUT_S)
        key = lease.key
    objects.inner.write(key, content, TIMEOUT_S)  # as if it had been killed
    with pytest.raises(Conflict):
        region.gc()
    clock.advance(DEAD_AFTER_S + 1)
    region.gc()
    assert objects.listed("leases/") == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b'{"renewed_s": "x", "holder": 1}',
        b'{"renewed_s": 1%s, "holder": "x"}' % (400 * b"0"),
        b"x" * 10_000,
    ],
)
def test_a_damaged_lease_stops_nobody(objects: Watched, region: Region, content: bytes) -> None:
    objects.inner.write("leases/push-0.json", content, TIMEOUT_S)
    region.gc()


def test_a_lease_from_the_far_future_stops_nobody(
    objects: Watched, region: Region, clock: ManualClock
) -> None:
    content = {"version": 1, "renewed_s": clock.wall() + 10 * DEAD_AFTER_S, "holder": "liar"}
    objects.inner.write("leases/push-0.json", json.dumps(content).encode(), TIMEOUT_S)
    region.gc()


def test_a_lease_is_renewed_while_there_is_progress(
    objects: Watched, region: Region, clock: ManualClock
) -> None:
    with region.pushing() as lease:
        for _ in range(30):
            clock.advance(RENEWED_AFTER_S + 1)
            lease.renew()
        with pytest.raises(Conflict):
            region.gc()


def test_a_pusher_that_slept_too_long_stops_before_it_relies_on_what_may_be_gone(
    region: Region, clock: ManualClock
) -> None:
    source = held([30_000] * 3)
    with region.pushing() as lease:
        clock.advance(DEAD_AFTER_S)
        with pytest.raises(Conflict, match="thought it dead"):
            region.push_chunks(source.table, source, lease)
