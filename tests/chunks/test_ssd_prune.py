"""Making room on the SSD tier: rows before bytes, whole packs where possible, and nothing twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.chunks.conftest import OpenSsd
from tests.chunks.content import TIMEOUT_S, chunks_of, contents
from tests.chunks.test_ssd_pins import fill, location_of

from glowplug.chunks import ssd_prune, ssd_rows
from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, ChunkMissing
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.ssd_packs import Location, PackFolder
from glowplug.types.errors import Unavailable

Table = Callable[[Sequence[Chunk]], Path]


def taken_bytes(root: Path) -> int:
    return sum(pack.stat().st_blocks * 512 for pack in (root / "packs").iterdir())


def test_the_filesystem_gets_the_room_back(ssd: SsdStore, ssd_root: Path) -> None:
    chunks = fill(ssd, contents([40_000] * 50))
    ssd.flush()
    before = taken_bytes(ssd_root)
    ssd.remove(chunks[::2])
    assert taken_bytes(ssd_root) <= before * 0.55
    assert [ssd.get(chunk, TIMEOUT_S) for chunk in chunks[1::2]]
    ssd.prune(0)
    assert taken_bytes(ssd_root) == 0


def test_ranges_side_by_side_are_given_back_as_one(ssd: SsdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    punched: list[tuple[int, int]] = []
    original = PackFolder.punch

    def punch(self: PackFolder, number: int, ranges: Sequence[tuple[int, int]]) -> None:
        listed = list(ranges)
        punched.extend(listed)
        original(self, number, listed)

    chunks = fill(ssd, contents([5000] * 6))
    ssd.flush()
    places = [location_of(ssd, chunk).offset for chunk in chunks]
    monkeypatch.setattr(PackFolder, "punch", punch)
    ssd.remove([chunks[0], chunks[1], chunks[3], chunks[5], chunks[4]])
    assert punched == [(places[0], places[2]), (places[3], places[5] + 8192)]


def test_a_pack_without_chunks_is_deleted_and_its_number_is_not_used_again(
    open_ssd: OpenSsd, ssd_root: Path
) -> None:
    first = open_ssd(pack_bytes=CHUNK_BYTES)
    fill(first, contents([CHUNK_BYTES] * 4))
    first.flush()
    numbers = {int(path.stem) for path in (ssd_root / "packs").iterdir()}
    first.close()
    store = open_ssd(pack_bytes=CHUNK_BYTES)
    store.prune(0)
    assert {int(path.stem) for path in (ssd_root / "packs").iterdir()} == {max(numbers)}
    chunks = fill(store, contents([CHUNK_BYTES] * 2, seed=2))
    assert not {location_of(store, chunk).pack for chunk in chunks} & (numbers - {max(numbers)})


def test_room_that_was_given_up_is_never_written_again(open_ssd: OpenSsd) -> None:
    """So that who has a place in mind that he found before finds his chunk there, or zeros."""
    seen: set[Location] = set()
    for seed in range(6):
        store = open_ssd()
        chunks = fill(store, contents([5000] * 4, seed))
        store.flush()
        places = {location_of(store, chunk) for chunk in chunks}
        assert not places & seen
        seen |= places
        store.prune(0)
        if seed % 2:
            store.close()
    assert len({place.pack for place in seen}) < 6, "packs were gone on with"


def test_bytes_on_disk_come_before_rows(ssd: SsdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, insert, delete, punch = os.fdatasync, ssd_rows.insert, ssd_rows.delete, PackFolder.punch
    monkeypatch.setattr(os, "fdatasync", lambda fd: (order.append("sync"), sync(fd)))
    monkeypatch.setattr(ssd_rows, "insert", lambda *args: (order.append("insert"), insert(*args)))
    monkeypatch.setattr(ssd_rows, "delete", lambda *args: (order.append("delete"), delete(*args)))
    monkeypatch.setattr(PackFolder, "punch", lambda *args: (order.append("punch"), punch(*args)))
    fill(ssd, contents([5000]))
    ssd.flush()
    ssd.prune(0)
    assert [one for one in order if one != "punch"] == ["sync", "insert", "delete"]
    assert order[-1] == "punch"


def test_room_that_could_not_be_given_back_is_given_back_the_next_time(
    ssd: SsdStore, ssd_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = fill(ssd, contents([40_000] * 5))
    ssd.flush()

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(PackFolder, "punch", broken)
    with pytest.raises(Unavailable, match="injected"):
        ssd.prune(0)
    monkeypatch.undo()
    assert ssd.missing(chunks) == chunks
    assert taken_bytes(ssd_root) > 0
    ssd.prune(0)
    assert taken_bytes(ssd_root) == 0


def test_a_filesystem_that_cannot_punch_is_told_of_and_pruned(
    open_ssd: OpenSsd, ssd_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_ssd()
    chunks = fill(first, contents([5000] * 3))
    first.flush()
    monkeypatch.setattr(first._packs, "_fallocate", lambda *_: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EOPNOTSUPP)
    assert first.prune(0).removed_chunks == 3
    assert first.missing(chunks) == chunks
    assert "cannot give back" in caplog.text


def test_who_found_a_place_before_the_chunk_was_pruned_is_told_that_it_is_missing(ssd: SsdStore) -> None:
    chunks = fill(ssd, contents([5000]))
    ssd.flush()
    place = location_of(ssd, chunks[0])
    ssd.prune(0)
    assert ssd.read_at(place, 5000) == bytes(5000)
    assert not ssd.forget_corrupt(chunks[0])
    with pytest.raises(ChunkMissing):
        ssd.get(chunks[0], TIMEOUT_S)
    assert ssd.stats().corrupt_chunks == 0


@pytest.mark.parametrize(("batch", "look_at"), [(1, 1), (2, 3), (3, 2)])
def test_pruning_goes_on_past_what_is_pinned(
    ssd: SsdStore, table: Table, monkeypatch: pytest.MonkeyPatch, batch: int, look_at: int
) -> None:
    monkeypatch.setattr(ssd_prune, "_BATCH", batch)
    monkeypatch.setattr(ssd_prune, "_LOOK_AT", look_at)
    bodies = contents([4096] * 20)
    chunks = fill(ssd, bodies)
    pinned = chunks[2:9] + chunks[12:13]
    ssd.pin("mount", table(pinned))
    pruned = ssd.prune(9 * 4096)
    assert (pruned.removed_chunks, pruned.used_bytes) == (11, 9 * 4096)
    assert ssd.prune(0).used_bytes == len(pinned) * 4096
    assert [chunk for chunk in chunks if ssd.locate(chunk)] == pinned


def test_leftovers_of_a_killed_writer_are_given_back_by_the_next_one(
    open_ssd: OpenSsd, ssd_root: Path
) -> None:
    (ssd_root / "packs").mkdir(parents=True)
    first = open_ssd()
    (kept,) = fill(first, contents([5000]))
    pack = first.pack_path(location_of(first, kept).pack)
    first.close()
    with pack.open("ab") as file:
        file.write(os.urandom(1_000_000))
    store = open_ssd()
    (new,) = fill(store, contents([6000], seed=2))
    store.flush()
    assert location_of(store, new).pack == location_of(store, kept).pack
    assert taken_bytes(ssd_root) < 100_000
    assert len(store.get(kept, TIMEOUT_S)) == 5000


def test_gc_gives_back_what_nobody_speaks_of(open_ssd: OpenSsd, ssd_root: Path) -> None:
    first = open_ssd()
    bodies = contents([5000])
    (kept,) = fill(first, bodies)
    pack = first.pack_path(location_of(first, kept).pack)
    first.close()
    with pack.open("ab") as file:
        file.write(os.urandom(1 << 20))
    store = open_ssd()
    assert store.gc() == 1 << 20
    assert store.gc() == 0
    assert store.get(kept, TIMEOUT_S) == bodies[0]


def test_gc_leaves_a_pack_alone_that_is_being_written(open_ssd: OpenSsd) -> None:
    writer, cleaner = open_ssd(commit_interval_s=600.0), open_ssd()
    bodies = contents([5000] * 3)
    chunks = fill(writer, bodies)
    cleaner.gc()
    cleaner.prune(0)
    assert [writer.get(chunk, TIMEOUT_S) for chunk in chunks_of(bodies)] == bodies
    writer.flush()
    assert [cleaner.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies
