"""Pins and complete sets: what keeps a filesystem that is mounted right on the packs from reading zeros."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.chunks.conftest import OpenSsd
from tests.chunks.content import TIMEOUT_S, chunks_of, contents

from glowplug.chunks.chunk import Chunk, ChunkMissing
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.ssd_packs import Location
from glowplug.types.errors import InvalidInput

Table = Callable[[Sequence[Chunk]], Path]


def fill(store: SsdStore, bodies: Sequence[bytes]) -> list[Chunk]:
    for body in bodies:
        store.put(Chunk.of(body), body)
    return chunks_of(bodies)


def location_of(store: SsdStore, chunk: Chunk) -> Location:
    location = store.locate(chunk)
    assert location is not None
    return location


def damage(store: SsdStore, chunk: Chunk) -> Location:
    """Overwrite its first byte on disk."""
    location = location_of(store, chunk)
    with store.pack_path(location.pack).open("r+b") as pack:
        pack.seek(location.offset)
        byte = pack.read(1)
        pack.seek(location.offset)
        pack.write(bytes([byte[0] ^ 1]))
    return location


# Pins


def test_a_pin_outlives_the_process_and_holds_for_all(open_ssd: OpenSsd, table: Table) -> None:
    first = open_ssd()
    chunks = fill(first, contents([5000] * 3))
    first.pin("mount:a", table(chunks))
    first.close()
    second, third = open_ssd(), open_ssd()
    assert second.pins() == third.pins() == ["mount:a"]
    assert second.prune(0).removed_chunks == 0
    third.unpin("mount:a")
    assert second.prune(0).removed_chunks == 3


def test_a_chunk_stays_until_its_last_owner_lets_go(ssd: SsdStore, table: Table) -> None:
    shared, only_a = fill(ssd, contents([5000, 6000]))
    ssd.pin("a", table([shared, only_a]))
    ssd.pin("b", table([shared]))
    ssd.unpin("a")
    ssd.prune(0)
    assert ssd.missing([shared, only_a]) == [only_a]
    ssd.unpin("b")
    ssd.prune(0)
    assert ssd.missing([shared]) == [shared]


def test_an_owner_has_one_table(ssd: SsdStore, table: Table) -> None:
    a, b = fill(ssd, contents([5000, 6000]))
    ssd.pin("mount", table([a]))
    ssd.pin("mount", table([b]))
    assert ssd.pins() == ["mount"]
    ssd.prune(0)
    assert ssd.missing([a, b]) == [a]


def test_pinning_again_and_unpinning_nobody_is_fine(ssd: SsdStore, table: Table) -> None:
    (chunk,) = fill(ssd, contents([5000]))
    for _ in range(2):
        ssd.pin("mount", table([chunk]))
    ssd.unpin("nobody")
    ssd.unpin("mount")
    assert ssd.pins() == []


def test_a_pin_does_not_need_the_tables_file_any_more(open_ssd: OpenSsd, table: Table) -> None:
    store = open_ssd()
    chunks = fill(store, contents([5000]))
    path = table(chunks)
    store.pin("mount", path)
    path.write_bytes(b"something else")
    path.unlink()
    store.close()
    assert open_ssd().prune(0).removed_chunks == 0


def test_nothing_is_removed_while_a_pinned_table_cannot_be_read(
    ssd: SsdStore, ssd_root: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    pinned, loose = fill(ssd, contents([5000, 6000]))
    ssd.pin("mount", table([pinned]))
    (copy,) = (ssd_root / "pins").iterdir()
    good = copy.read_bytes()
    copy.write_bytes(good[:-1] + b"\xff")
    assert ssd.prune(0).removed_chunks == 0
    assert ssd.remove([loose]) == 0
    assert "cannot be read" in caplog.text
    copy.write_bytes(good)
    assert ssd.prune(0).removed_chunks == 1
    ssd.unpin("mount")
    copy.unlink()
    assert ssd.prune(0).removed_chunks == 1


@pytest.mark.parametrize("owner", ["mount:../../x", "a/b", "..", "ü ñ\n", "x" * 150])
def test_any_short_name_can_own_a_pin(open_ssd: OpenSsd, table: Table, owner: str) -> None:
    store = open_ssd()
    chunks = fill(store, contents([10]))
    if len(owner.encode()) > 150:
        pytest.fail("not short")
    store.pin(owner, table(chunks))
    assert store.pins() == [owner]
    store.close()
    assert open_ssd().prune(0).removed_chunks == 0


@pytest.mark.parametrize("owner", ["", "x" * 151, "ü" * 60])
def test_a_name_that_no_file_can_have_is_refused(ssd: SsdStore, table: Table, owner: str) -> None:
    with pytest.raises(InvalidInput):
        ssd.pin(owner, table([]))


@pytest.mark.parametrize("content", [b"", b"GPCHUNK1" + bytes(20), os.urandom(500)])
def test_what_is_no_table_is_refused(ssd: SsdStore, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.bin"
    path.write_bytes(content)
    for attempt in (
        lambda: ssd.pin("mount", path),
        lambda: ssd.mark_complete("image", path),
        lambda: ssd.pin_if_complete("mount", "image", path),
        lambda: ssd.pin("mount", tmp_path / "absent.bin"),
    ):
        with pytest.raises(InvalidInput):
            attempt()
    assert ssd.pins() == []


# Complete sets


def test_a_set_is_complete_only_with_every_chunk(ssd: SsdStore, table: Table) -> None:
    bodies = contents([100, 5000, 70_000])
    path = table(chunks_of(bodies))
    fill(ssd, bodies[:2])
    assert not ssd.mark_complete("image", path)
    assert not ssd.is_complete("image")
    fill(ssd, bodies)
    assert ssd.mark_complete("image", path)
    assert ssd.is_complete("image")


def test_a_mark_is_known_to_all_processes_and_after_a_restart(open_ssd: OpenSsd, table: Table) -> None:
    first, second = open_ssd(), open_ssd()
    path = table(fill(first, contents([5000])))
    assert first.mark_complete("image", path)
    assert second.is_complete("image")
    first.close()
    assert open_ssd().is_complete("image")


def test_a_mark_is_refused_if_a_chunk_has_moved_since_it_was_located(ssd: SsdStore, table: Table) -> None:
    bodies = contents([5000, 6000])
    chunks = fill(ssd, bodies)
    before = ssd.locate_all(chunks)
    assert ssd.mark_complete("image", table(chunks), before)
    ssd.remove(chunks[:1])
    fill(ssd, bodies)
    assert not ssd.mark_complete("image", table(chunks), before)
    assert ssd.mark_complete("image", table(chunks), ssd.locate_all(chunks))


def test_a_mark_is_refused_if_a_pack_is_gone(ssd: SsdStore, table: Table) -> None:
    chunks = fill(ssd, contents([5000]))
    ssd.flush()
    ssd.pack_path(location_of(ssd, chunks[0]).pack).unlink()
    assert not ssd.mark_complete("image", table(chunks))


@pytest.mark.parametrize("how", ["prune", "remove", "corrupt", "forget_corrupt", "verify"])
def test_any_removal_takes_the_mark_away(open_ssd: OpenSsd, table: Table, how: str) -> None:
    store, other = open_ssd(), open_ssd()
    lost, kept = fill(store, contents([5000, 6000]))
    assert store.mark_complete("lost", table([lost, kept]))
    assert store.mark_complete("kept", table([kept]))
    store.pin("kept", table([kept]))
    if how == "prune":
        store.prune(0)
    elif how == "remove":
        store.remove([lost])
    else:
        damage(store, lost)
    if how == "corrupt":
        with pytest.raises(ChunkMissing):
            store.get(lost, TIMEOUT_S)
    elif how == "forget_corrupt":
        assert store.forget_corrupt(lost)
    elif how == "verify":
        assert store.verify().damaged == 1
    assert not store.is_complete("lost")
    assert not other.is_complete("lost")
    assert other.is_complete("kept")


def test_a_mark_whose_table_is_damaged_goes_with_the_next_removal(
    ssd: SsdStore, ssd_root: Path, table: Table
) -> None:
    a, b = fill(ssd, contents([5000, 6000]))
    ssd.mark_complete("image", table([a]))
    (copy,) = (ssd_root / "complete").iterdir()
    copy.write_bytes(b"?")
    ssd.remove([b])
    assert not ssd.is_complete("image")


def test_pin_if_complete_pins_only_what_is_complete(ssd: SsdStore, table: Table) -> None:
    chunks = fill(ssd, contents([5000, 6000]))
    path = table(chunks)
    assert not ssd.pin_if_complete("mount", "image", path)
    assert ssd.pins() == []
    ssd.mark_complete("image", path)
    assert not ssd.pin_if_complete("mount", "image", table(chunks[:1])), "another table than was marked"
    assert ssd.pin_if_complete("mount", "image", path)
    assert ssd.prune(0).removed_chunks == 0
    assert ssd.is_complete("image")


# The range of a pinned chunk is never punched, whatever became of its row


def test_the_bytes_of_a_corrupt_chunk_stay_while_it_is_pinned(ssd: SsdStore, table: Table) -> None:
    bodies = contents([5000])
    chunks = fill(ssd, bodies)
    ssd.flush()
    ssd.pin("mount", table(chunks))
    where = damage(ssd, chunks[0])
    damaged = ssd.read_at(where, 5000)
    assert ssd.forget_corrupt(chunks[0])
    ssd.prune(0)
    ssd.gc()
    assert ssd.read_at(where, 5000) == damaged
    fill(ssd, bodies)
    assert location_of(ssd, chunks[0]) != where
    ssd.unpin("mount")
    ssd.prune(ssd.used_bytes())
    assert ssd.read_at(where, 5000) == bytes(5000)
    assert ssd.get(chunks[0], TIMEOUT_S) == bodies[0]


def test_a_copy_that_lost_to_another_process_stays_readable_while_it_is_pinned(
    open_ssd: OpenSsd, table: Table
) -> None:
    loser, winner = open_ssd(commit_interval_s=600.0), open_ssd()
    bodies = contents([5000])
    (chunk,) = fill(loser, bodies)
    loser.pin("mount", table([chunk]))
    seen_early = location_of(loser, chunk)
    fill(winner, bodies)
    winner.flush()
    loser.flush()
    assert location_of(loser, chunk) == location_of(winner, chunk) != seen_early
    winner.prune(0)
    winner.gc()
    assert loser.read_at(seen_early, 5000) == bodies[0]
    loser.unpin("mount")
    loser.prune(loser.used_bytes())
    assert loser.read_at(seen_early, 5000) == bytes(5000)
    assert loser.get(chunk, TIMEOUT_S) == bodies[0]


def test_gc_removes_tables_that_nobody_speaks_of(ssd: SsdStore, ssd_root: Path, table: Table) -> None:
    a, b = fill(ssd, contents([5000, 6000]))
    for owner, chunk in (("a", a), ("b", b)):
        ssd.pin(owner, table([chunk]))
        ssd.mark_complete(owner, table([chunk]))
    ssd.unpin("a")
    ssd.remove([a])
    ssd.gc()
    assert len(list((ssd_root / "pins").iterdir())) == 1
    assert len(list((ssd_root / "complete").iterdir())) == 1
    assert ssd.prune(0).removed_chunks == 0
