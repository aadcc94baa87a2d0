"""Budgets that are used up, disks that are full, over quota or read-only: nothing is lost or half there."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tests.chunks.conftest import OpenSsd
from tests.chunks.content import TIMEOUT_S, chunks_of, contents
from tests.chunks.contract import HOUR_S
from tests.chunks.test_ssd_pins import damage, fill

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, ChunkMissing
from glowplug.chunks.run import Run
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.ssd_packs import LockedPack
from glowplug.types.clock import ManualClock
from glowplug.types.errors import ResourceExhausted

Table = Callable[[Sequence[Chunk]], Path]

DISK_BYTES = 48 << 20
BODY_BYTES = 200_000


def _mount(*command: str) -> None:
    mounted = subprocess.run(["mount", *command], capture_output=True, timeout=60)
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.decode().strip()}")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 48 MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    if request.param == "tmpfs":
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(mount_point))
    else:
        image = tmp_path / "disk.img"
        image.touch()
        os.truncate(image, DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, timeout=60)
        _mount("-o", "loop", str(image), str(mount_point))
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True, timeout=60)


@pytest.fixture
def open_on_disk(disk: Path, clock: ManualClock) -> Iterator[OpenSsd]:
    """As ``open_ssd``; closed before the disk goes."""
    opened: list[SsdStore] = []

    def run(**options: object) -> SsdStore:
        store = SsdStore(disk / "chunks", **({"clock": clock} | options))  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield run
    for store in opened:
        store.close()


def free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def leave_free(disk: Path, leave_bytes: int) -> Path:
    """Use up the disk but for ``leave_bytes``."""
    filler = disk / "filler"
    with filler.open("wb") as file, suppress(OSError):  # the filesystem needs some itself
        while (excess := free_bytes(disk) - leave_bytes) > 0:
            file.write(bytes(min(excess, 1 << 20)))
            file.flush()
            os.fsync(file.fileno())
    return filler


def all_right(store: SsdStore, bodies: Sequence[bytes]) -> list[bytes]:
    """Those that are there, each checked."""
    here = [body for body in bodies if store.locate(Chunk.of(body)) is not None]
    assert [store.get(Chunk.of(body), TIMEOUT_S) for body in here] == here
    return here


# Budgets


def test_puts_beyond_the_budget_remove_what_was_not_used_for_longest(
    open_ssd: OpenSsd, clock: ManualClock
) -> None:
    budget_bytes = 1_000_000
    store = open_ssd(budget_bytes=budget_bytes)
    bodies = contents([8000] * 400)
    for body in bodies:
        store.put(Chunk.of(body), body)
        clock.advance(60)
        assert store.used_bytes() <= budget_bytes
    here = all_right(store, bodies)
    assert len(here) >= 100
    assert here == bodies[-len(here) :]
    assert store.stats().full_errors == 0


def test_room_is_made_for_many_puts_at_once(open_ssd: OpenSsd, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_ssd(budget_bytes=1_000_000)
    prunes = []
    original = store._pruner.prune
    monkeypatch.setattr(
        store._pruner, "prune", lambda budget_bytes: prunes.append(1) or original(budget_bytes)
    )
    fill(store, contents([4000] * 1000))
    assert 0 < len(prunes) < 100


def test_a_budget_taken_by_pinned_chunks_is_resource_exhausted(
    open_ssd: OpenSsd, table: Table, clock: ManualClock
) -> None:
    store = open_ssd(budget_bytes=100_000)
    pinned, more = contents([80_000, 30_000])
    chunks = fill(store, [pinned])
    store.pin("mount", table(chunks))
    for _ in range(3):
        with pytest.raises(ResourceExhausted) as caught:
            store.put(Chunk.of(more), more)
        assert caught.value.remedy
    assert store.missing(chunks_of([more])) == chunks_of([more])
    assert store.get(chunks[0], TIMEOUT_S) == pinned
    assert store.stats().full_errors == 3
    store.unpin("mount")
    store.put(Chunk.of(more), more)
    assert store.get(Chunk.of(more), TIMEOUT_S) == more


def test_a_chunk_beyond_the_whole_budget_is_resource_exhausted(open_ssd: OpenSsd) -> None:
    (body,) = contents([50_000])
    with pytest.raises(ResourceExhausted):
        open_ssd(budget_bytes=20_000).put(Chunk.of(body), body)


def test_a_smaller_budget_than_last_time_is_reached_by_the_next_put(open_ssd: OpenSsd) -> None:
    first = open_ssd()
    fill(first, contents([8000] * 50))
    first.close()
    store = open_ssd(budget_bytes=100_000)
    fill(store, contents([8000], seed=2))
    assert store.used_bytes() <= 100_000


def test_many_threads_stay_within_the_budget(open_ssd: OpenSsd) -> None:
    budget_bytes = 2_000_000
    store = open_ssd(budget_bytes=budget_bytes)
    bodies = contents([9000] * 800)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda body: store.put(Chunk.of(body), body), bodies))
    store.flush()
    assert store.used_bytes() <= budget_bytes
    assert len(all_right(store, bodies)) > 100


# Full disks


def test_a_full_disk_makes_room_by_itself(open_on_disk: OpenSsd, disk: Path, clock: ManualClock) -> None:
    store = open_on_disk(pack_bytes=8 << 20)
    bodies = contents([BODY_BYTES] * (2 * DISK_BYTES // BODY_BYTES))
    for body in bodies:
        store.put(Chunk.of(body), body)
        clock.advance(60)
    here = all_right(store, bodies)
    assert len(here) > 50
    assert bodies[-1] in here
    assert store.stats().full_errors == 0
    store.flush()
    store.close()
    assert all_right(open_on_disk(), bodies) == here


def test_a_disk_full_of_pinned_chunks_is_resource_exhausted(
    open_on_disk: OpenSsd, table: Table, clock: ManualClock
) -> None:
    store = open_on_disk()
    bodies = contents([BODY_BYTES] * (2 * DISK_BYTES // BODY_BYTES))
    store.pin("mount", table(chunks_of(bodies)))
    refused = []
    for body in bodies:
        try:
            store.put(Chunk.of(body), body)
        except ResourceExhausted:
            refused.append(Chunk.of(body))
    assert len(refused) > 50
    assert store.missing(chunks_of(bodies)) == refused
    assert store.stats().full_errors == len(refused)
    here = all_right(store, bodies)
    store.unpin("mount")
    clock.advance(60)
    store.put(refused[0], next(body for body in bodies if Chunk.of(body) == refused[0]))
    store.flush()
    assert store.verify().damaged == 0
    assert here


def test_rows_that_cannot_be_committed_on_a_full_disk_are_tried_again(
    open_on_disk: OpenSsd, disk: Path, table: Table, clock: ManualClock
) -> None:
    store = open_on_disk(commit_interval_s=600.0)
    bodies = contents([900] * 2000)
    store.pin("mount", table(chunks_of(bodies)))
    chunks = fill(store, bodies)
    filler = leave_free(disk, 0)
    store._ballast.drop()
    second = leave_free(disk, 0).rename(disk / "filler-2")
    with pytest.raises(ResourceExhausted):
        store.flush()
    assert [store.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies
    filler.unlink(missing_ok=True)
    second.unlink(missing_ok=True)
    clock.advance(60)
    store.flush()
    store.close()
    again = open_on_disk()
    assert [again.get(chunk, TIMEOUT_S) for chunk in chunks] == bodies


def test_chunks_can_be_removed_from_a_disk_without_a_byte_left(open_on_disk: OpenSsd, disk: Path) -> None:
    store = open_on_disk()
    bodies = contents([5000] * 1500)
    fill(store, bodies)
    store.flush()
    store._index._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # removing needs a journal from nothing
    leave_free(disk, 0)
    assert store.prune(0).used_bytes == 0
    assert free_bytes(disk) > 1500 * 4096
    assert store._ballast._path.exists()


def begun(run: Run, size_bytes: int) -> Run:
    """What is written of chunks of which so much is."""
    return Run([Chunk(chunk.id, size_bytes) for chunk in run.chunks], run.offsets, run.data)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_one_failed_write_costs_the_oldest_chunks_and_is_tried_again(
    ssd: SsdStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (old,) = fill(ssd, contents([5000], seed=1))
    ssd.flush()
    clock.advance(HOUR_S)
    original = LockedPack.append
    failures = [number]

    def append(self: LockedPack, run: Run, offset: int) -> None:
        if failures:
            original(self, begun(run, 100), offset)
            raise OSError(failures.pop(), "injected")
        original(self, run, offset)

    monkeypatch.setattr(LockedPack, "append", append)
    (body,) = contents([6000], seed=2)
    ssd.put(Chunk.of(body), body)
    assert ssd.get(Chunk.of(body), TIMEOUT_S) == body
    assert ssd.missing([old]) == [old]


def test_a_write_that_fails_twice_is_resource_exhausted_and_leaves_nothing(
    ssd: SsdStore, ssd_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ssd, contents([5000], seed=1))
    ssd.flush()
    original = LockedPack.append

    def append(self: LockedPack, run: Run, offset: int) -> None:
        original(self, begun(run, 5000), offset)
        raise OSError(errno.EDQUOT, "injected")

    monkeypatch.setattr(LockedPack, "append", append)
    (body,) = contents([100_000], seed=2)
    with pytest.raises(ResourceExhausted):
        ssd.put(Chunk.of(body), body)
    monkeypatch.undo()
    assert ssd.missing(chunks_of([body])) == chunks_of([body])
    ssd.flush()
    ssd.prune(0)
    assert sum(pack.stat().st_blocks for pack in (ssd_root / "packs").iterdir()) == 0
    ssd.put(Chunk.of(body), body)
    assert ssd.get(Chunk.of(body), TIMEOUT_S) == body


def test_a_pack_that_cannot_be_synced_is_given_up(ssd: SsdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed sync the kernel may have dropped the bytes, whatever reads say now."""
    bodies = contents([5000, 6000])
    chunks = fill(ssd, bodies[:1])
    original = os.fdatasync
    failures = [errno.EIO]

    def fdatasync(descriptor: int) -> None:
        if failures:
            raise OSError(failures.pop(), "injected")
        original(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with pytest.raises(Exception, match="injected"):
        ssd.flush()
    assert ssd.missing(chunks) == chunks
    fill(ssd, bodies)
    ssd.flush()
    assert [ssd.get(chunk, TIMEOUT_S) for chunk in chunks_of(bodies)] == bodies


# Read-only disks


@pytest.fixture
def read_only(disk: Path, open_on_disk: OpenSsd, table: Table) -> tuple[SsdStore, list[bytes], Path]:
    """A store on a disk that is read-only now, what it holds, and a table that was complete."""
    store = open_on_disk()
    bodies = contents([5000, 6000])
    path = table(fill(store, bodies))
    assert store.mark_complete("image", path)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
    return open_on_disk(), bodies, path


def test_a_read_only_disk_is_read(read_only: tuple[SsdStore, list[bytes], Path]) -> None:
    store, bodies, _ = read_only
    assert all_right(store, bodies) == bodies
    assert store.stats().chunks == 2
    assert store.verify().damaged == 0
    with pytest.raises(ChunkMissing):
        store.get(Chunk.of(b"absent"), TIMEOUT_S)


def test_a_read_only_disk_takes_nothing_and_says_so(
    read_only: tuple[SsdStore, list[bytes], Path],
) -> None:
    store, bodies, path = read_only
    for attempt in (
        lambda: store.put(Chunk.of(b"new"), b"new"),
        lambda: store.prune(0),
        lambda: store.remove(chunks_of(bodies)),
        lambda: store.pin("mount", path),
        lambda: store.pin_if_complete("mount", "image", path),
    ):
        with pytest.raises(ResourceExhausted, match="read-only"):
            attempt()
    store.put(Chunk.of(bodies[0]), bodies[0])
    store.flush()


def test_nothing_counts_as_complete_on_a_read_only_disk(
    read_only: tuple[SsdStore, list[bytes], Path],
) -> None:
    """What was removed last may be in a journal that cannot be replayed."""
    store, _, _ = read_only
    assert not store.is_complete("image")


def test_a_corrupt_chunk_on_a_read_only_disk_is_not_given_out(
    disk: Path, open_on_disk: OpenSsd, table: Table
) -> None:
    store = open_on_disk()
    (chunk,) = fill(store, contents([CHUNK_BYTES]))
    store.flush()
    damage(store, chunk)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
    store = open_on_disk()
    for _ in range(2):
        with pytest.raises(ChunkMissing):
            store.get(chunk, TIMEOUT_S)
    assert store.forget_corrupt(chunk)
    assert store.stats().corrupt_chunks == 3


def test_a_store_cannot_be_made_on_a_read_only_disk(disk: Path, clock: ManualClock) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
    with pytest.raises(ResourceExhausted, match="read-only"):
        SsdStore(disk / "chunks", clock=clock)


def test_a_store_cannot_be_made_on_a_full_disk(disk: Path, clock: ManualClock) -> None:
    leave_free(disk, 0)
    with pytest.raises(ResourceExhausted, match="full"):
        SsdStore(disk / "chunks", clock=clock)
