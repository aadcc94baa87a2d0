"""What the disk loses is noticed, forgotten and counted; nothing wrong is ever given out."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.chunks.conftest import OpenSsd
from tests.chunks.content import TIMEOUT_S, chunks_of, contents
from tests.chunks.test_ssd_pins import damage, fill, location_of

from glowplug.chunks.chunk import Chunk, ChunkMissing
from glowplug.chunks.ssd import SsdStore

Table = Callable[[Sequence[Chunk]], Path]


def refuse_and_fetch_again(store: SsdStore, chunk: Chunk, body: bytes) -> None:
    with pytest.raises(ChunkMissing):
        store.get(chunk, TIMEOUT_S)
    assert store.locate(chunk) is None
    store.put(chunk, body)
    assert store.get(chunk, TIMEOUT_S) == body


@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_corrupt_chunk_is_forgotten_and_can_be_fetched_again(open_ssd: OpenSsd, is_flushed: bool) -> None:
    store = open_ssd(commit_interval_s=600.0)
    bodies = contents([5000, 6000])
    chunks = fill(store, bodies)
    if is_flushed:
        store.flush()
    damage(store, chunks[0])
    refuse_and_fetch_again(store, chunks[0], bodies[0])
    assert store.get(chunks[1], TIMEOUT_S) == bodies[1]
    assert store.stats().corrupt_chunks == 1
    assert store.stats().chunks == 2


def test_a_chunk_that_was_zeroed_is_forgotten(ssd: SsdStore) -> None:
    bodies = contents([5000])
    chunks = fill(ssd, bodies)
    ssd.flush()
    location = location_of(ssd, chunks[0])
    with ssd.pack_path(location.pack).open("r+b") as pack:
        pack.seek(location.offset)
        pack.write(bytes(5000))
    refuse_and_fetch_again(ssd, chunks[0], bodies[0])


def test_a_truncated_pack_loses_only_what_was_cut_off(ssd: SsdStore) -> None:
    bodies = contents([5000, 6000, 7000])
    chunks = fill(ssd, bodies)
    ssd.flush()
    location = location_of(ssd, chunks[1])
    os.truncate(ssd.pack_path(location.pack), location.offset + 100)
    assert ssd.get(chunks[0], TIMEOUT_S) == bodies[0]
    for chunk, body in list(zip(chunks, bodies, strict=True))[1:]:
        refuse_and_fetch_again(ssd, chunk, body)
    assert ssd.stats().corrupt_chunks == 2


def test_a_pack_that_was_truncated_while_nobody_looked_is_noticed_at_the_start(
    open_ssd: OpenSsd, table: Table
) -> None:
    first = open_ssd()
    bodies = contents([5000, 6000])
    chunks = fill(first, bodies)
    first.mark_complete("image", table(chunks))
    location = location_of(first, chunks[1])
    path = first.pack_path(location.pack)
    first.close()
    os.truncate(path, location.offset)
    store = open_ssd()
    assert store.missing(chunks) == [chunks[1]]
    assert not store.is_complete("image")
    fill(store, bodies)
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_a_deleted_pack_is_noticed_at_the_start(open_ssd: OpenSsd) -> None:
    first = open_ssd()
    chunks = fill(first, contents([5000, 6000]))
    path = first.pack_path(location_of(first, chunks[0]).pack)
    first.close()
    path.unlink()
    store = open_ssd()
    assert store.missing(chunks) == chunks
    assert store.used_bytes() == 0


def test_one_read_from_a_deleted_pack_forgets_all_of_it(ssd: SsdStore) -> None:
    bodies = contents([5000] * 5)
    chunks = fill(ssd, bodies)
    ssd.flush()
    ssd.pack_path(location_of(ssd, chunks[0]).pack).unlink()
    with pytest.raises(ChunkMissing):
        ssd.get(chunks[0], TIMEOUT_S)
    assert ssd.missing(chunks) == chunks
    assert ssd.stats().corrupt_chunks == 5
    fill(ssd, bodies)
    ssd.flush()
    assert [ssd.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_deleted_packs_do_not_come_back_under_their_number(open_ssd: OpenSsd) -> None:
    first, other = open_ssd(), open_ssd()
    bodies = contents([5000] * 2)
    (old,) = fill(first, bodies[:1])
    first.flush()
    place = location_of(first, old)
    other.open_pack(place.pack)  # remembered
    first.pack_path(place.pack).unlink()
    first.close()
    second = open_ssd()
    (new,) = fill(second, bodies[1:])
    second.flush()
    assert other.get(new, TIMEOUT_S) == bodies[1]
    assert other.stats().corrupt_chunks == 0


def test_a_directory_in_place_of_a_pack_is_a_lost_pack(ssd: SsdStore) -> None:
    bodies = contents([5000])
    chunks = fill(ssd, bodies)
    ssd.flush()
    path = ssd.pack_path(location_of(ssd, chunks[0]).pack)
    path.unlink()
    path.mkdir()
    refuse_and_fetch_again(ssd, chunks[0], bodies[0])


def test_forget_corrupt_believes_only_what_it_sees(ssd: SsdStore) -> None:
    bodies = contents([5000])
    chunks = fill(ssd, bodies)
    assert not ssd.forget_corrupt(chunks[0])
    assert not ssd.forget_corrupt(Chunk.of(b"absent"))
    assert ssd.get(chunks[0], TIMEOUT_S) == bodies[0]
    damage(ssd, chunks[0])
    assert ssd.forget_corrupt(chunks[0])
    assert ssd.locate(chunks[0]) is None


def test_a_row_of_a_wrong_length_does_not_keep_the_chunk_out(ssd: SsdStore) -> None:
    (body,) = contents([5000])
    chunk = Chunk.of(body)
    ssd.put(chunk, body)
    ssd.flush()
    ssd._index.write(lambda connection: connection.execute("UPDATE chunk SET size = 4999").fetchall())
    assert ssd.missing([chunk]) == [chunk]
    ssd.put(chunk, body)
    assert ssd.get(chunk, TIMEOUT_S) == body


def test_verify_finds_and_drops_every_damaged_chunk(open_ssd: OpenSsd) -> None:
    store = open_ssd()
    bodies = contents([3000] * 200)
    chunks = fill(store, bodies)
    store.flush()
    bad = random.Random(1).sample(chunks, 9)
    for chunk in bad:
        damage(store, chunk)
    said: list[float] = []
    report = store.verify(lambda _text, fraction: said.append(fraction))
    assert (report.chunks, report.bytes, report.damaged) == (200, 600_000, 9)
    assert set(store.missing(chunks)) == set(bad)
    assert said == sorted(said)
    assert 0 < said[-1] <= 1
    assert store.verify().damaged == 0


def test_verify_can_be_asked_about_some_chunks_only(ssd: SsdStore) -> None:
    a, b = fill(ssd, contents([3000, 4000]))
    ssd.flush()
    damage(ssd, b)
    absent = Chunk.of(b"absent")
    assert ssd.verify(only=[a, absent]).damaged == 0
    report = ssd.verify(only=[a, b, absent])
    assert (report.chunks, report.damaged) == (2, 1)


def test_verify_stops_when_it_is_cancelled(ssd: SsdStore) -> None:
    fill(ssd, contents([100] * 3))
    cancelled = threading.Event()
    cancelled.set()
    report = ssd.verify(cancelled=cancelled)
    assert report.was_cancelled
    assert report.chunks == 0


# The index itself


def database_of(root: Path) -> Path:
    return (root / "index.db").resolve()


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(5).randbytes(50_000))


def torn(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def holed(path: Path) -> None:
    """Keep the header, so that it opens, and lose the pages."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(6).randbytes(size - 4096))


def other_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def other_tables(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE something (x)")
    connection.close()


@pytest.mark.parametrize("how", [garbage, torn, holed, other_version, other_tables])
def test_a_damaged_index_is_moved_aside_and_the_store_starts_empty(
    open_ssd: OpenSsd,
    ssd_root: Path,
    table: Table,
    how: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = open_ssd()
    bodies = contents([3000] * 300)
    chunks = fill(first, bodies)
    first.mark_complete("image", table(chunks))
    first.close()
    how(database_of(ssd_root))
    store = open_ssd()
    assert store.missing(chunks) == chunks  # `holed` shows at the first look only
    assert store.stats().index_resets == 1
    assert store.used_bytes() == 0
    assert not store.is_complete("image")
    assert "damaged" in caplog.text
    assert (ssd_root / "index.damaged").exists()
    assert sum(pack.stat().st_size for pack in (ssd_root / "packs").iterdir()) == 0
    fill(store, bodies)
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_an_index_that_is_replaced_by_a_file_is_moved_aside(open_ssd: OpenSsd, ssd_root: Path) -> None:
    first = open_ssd()
    chunks = fill(first, contents([3000]))
    first.close()
    (ssd_root / "index.db").unlink()
    (ssd_root / "index.db").write_bytes(b"what?")
    store = open_ssd()
    assert store.missing(chunks) == chunks
    assert (ssd_root / "index.damaged").read_bytes() == b"what?"


@pytest.mark.parametrize("gone", ["index.db", "packs", "pins", "complete"])
def test_a_part_that_was_deleted_is_made_again(
    open_ssd: OpenSsd, ssd_root: Path, table: Table, gone: str
) -> None:
    first = open_ssd()
    bodies = contents([3000] * 3)
    fill(first, bodies)
    first.close()
    target = ssd_root / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    store = open_ssd()
    chunks = fill(store, bodies)
    assert store.mark_complete("image", table(chunks))
    store.pin("mount", table(chunks))
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_pins_outlive_the_index(open_ssd: OpenSsd, ssd_root: Path, table: Table) -> None:
    first = open_ssd()
    bodies = contents([3000])
    first.pin("mount/ü", table(chunks_of(bodies)))
    first.close()
    garbage(database_of(ssd_root))
    store = open_ssd()
    assert store.pins() == ["mount/ü"]
    fill(store, bodies)
    assert store.prune(0).removed_chunks == 0


def test_pack_numbers_go_on_after_the_index_was_lost(open_ssd: OpenSsd, ssd_root: Path) -> None:
    numbers: set[int] = set()
    for seed in range(3):
        store = open_ssd()
        (chunk,) = fill(store, contents([3000], seed))
        number = location_of(store, chunk).pack
        assert number not in numbers
        numbers.add(number)
        store.close()
        garbage(database_of(ssd_root))


def test_a_process_that_still_has_the_old_index_goes_on_with_the_new_one(
    open_ssd: OpenSsd, ssd_root: Path, table: Table
) -> None:
    """Its chunks are gone; what it puts, pins and marks from now on is known to the others."""
    stale = open_ssd(commit_interval_s=600.0)
    bodies = contents([3000] * 4)
    old = fill(stale, bodies[:2])
    stale.flush()
    pending = fill(stale, bodies[2:3])
    stale._index._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    garbage(database_of(ssd_root))
    fresh = open_ssd()
    assert fresh.missing(old) == old
    stale.pin("mount", table(chunks_of(bodies)))
    new = fill(stale, bodies[3:])
    stale.flush()
    assert stale.missing(old + pending) == old + pending
    stale.flush()
    fill(stale, bodies)
    stale.flush()
    assert fresh.pins() == ["mount"]
    assert [fresh.get(chunk, TIMEOUT_S) for chunk in chunks_of(bodies)] == bodies
    assert fresh.prune(0).removed_chunks == 0
    stale.close()
    assert fresh.get(new[0], TIMEOUT_S) == bodies[3]
    fill(fresh, contents([50], seed=9))
    fresh.flush()


def test_an_index_that_breaks_while_it_is_open_is_replaced(
    open_ssd: OpenSsd, ssd_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = open_ssd()
    bodies = contents([3000] * 300)
    fill(store, bodies)
    store.flush()
    store._index._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    holed(database_of(ssd_root))
    other = open_ssd()  # has nothing of it in memory yet
    chunks = chunks_of(bodies)
    assert other.missing(chunks) == chunks
    fill(other, bodies)
    other.flush()
    assert [other.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies
    fill(store, contents([10], seed=4))
    store.flush()
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies
