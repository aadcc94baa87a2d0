"""The blob daemon as the kernel and its clients see it: files that read as the blobs, and what they tell."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.image.lazy.blob_content import MIXED_SIZES, BlobContent
from tests.image.lazy.blob_daemon import PATIENCE_S, Daemon, needs_fuse, read_at, running_daemon, wait_until

from glowplug.image.lazy import trace
from glowplug.image.lazy.launch import ensure_daemon
from glowplug.types.errors import InvalidInput, NotFound

pytestmark = needs_fuse

MIB = 1 << 20
CONTENT = BlobContent.of_sizes(MIXED_SIZES)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def blob(daemon: Daemon) -> Path:
    """Every other chunk is here."""
    return daemon.serve(CONTENT, range(0, len(MIXED_SIZES), 2))


def fresh(seed: int, sizes: list[int] | None = None) -> BlobContent:
    return BlobContent.of_sizes(sizes or [4096, 5000, 70_000, 4096, 4096, 4096], seed)


@settings(max_examples=80, deadline=None)
@given(offset=st.integers(0, len(CONTENT.blob) + 9000), size_bytes=st.integers(0, 3 * MIB))
def test_any_range_of_a_blobs_file_reads_as_the_blob(blob: Path, offset: int, size_bytes: int) -> None:
    assert read_at(blob, offset, size_bytes) == CONTENT.blob[offset : offset + size_bytes]


def test_a_blobs_file_reads_the_same_without_page_cache(blob: Path) -> None:
    room = mmap.mmap(-1, 2 * MIB)
    descriptor = os.open(blob, os.O_RDONLY | os.O_DIRECT)
    try:
        got = os.preadv(descriptor, [room], 8192)
    finally:
        os.close(descriptor)
    assert room[:got] == CONTENT.blob[8192 : 8192 + got]
    assert got == 2 * MIB


def test_a_blobs_file_is_as_long_as_the_blob_and_only_readable(blob: Path) -> None:
    status = blob.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (len(CONTENT.blob), 0o400)
    with pytest.raises(OSError, match="Read-only file system"):
        blob.open("r+b")


def test_the_folder_lists_the_images_that_there_are(daemon: Daemon, blob: Path) -> None:
    assert blob in daemon.paths.blobs.iterdir()
    assert stat.S_IMODE(daemon.paths.blobs.stat().st_mode) == 0o500


def test_a_folder_of_many_images_lists_them_all(daemon: Daemon, blob: Path) -> None:
    digests = [f"{number:064x}" for number in range(1 << 40, (1 << 40) + 300)]
    folders = [daemon.state.indexes / digest for digest in digests]
    for folder in folders:
        folder.mkdir()
    try:
        assert {path.name for path in daemon.paths.blobs.iterdir()} >= {*digests, blob.name}
    finally:
        for folder in folders:
            folder.rmdir()


@pytest.mark.parametrize("name", ["x", "f" * 64, "F" * 64, "f" * 63])
def test_what_is_no_image_is_no_file(daemon: Daemon, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        (daemon.paths.blobs / name).stat()


def test_an_image_that_comes_later_is_there_at_once(daemon: Daemon) -> None:
    content = fresh(11)
    path = daemon.paths.blobs / content.digest
    assert not path.exists()
    daemon.serve(content)
    assert path.read_bytes() == content.blob


def test_a_damaged_image_is_an_io_error_until_it_is_mended(daemon: Daemon) -> None:
    content = fresh(12)
    path = daemon.serve(content)
    table = daemon.state.indexes / content.digest / "chunks.bin"
    table.write_bytes(content.packed_table[:-7])
    with pytest.raises(OSError, match="Input/output") as failed:
        path.read_bytes()
    assert failed.value.errno == errno.EIO
    with pytest.raises(InvalidInput):
        daemon.client.attach(content.digest)
    table.write_bytes(content.packed_table)
    assert path.read_bytes() == content.blob


def test_a_slow_fetch_does_not_delay_reads_of_what_is_here(daemon: Daemon) -> None:
    content = fresh(13, [4096] * 40)
    path = daemon.serve(content, range(20))
    gates = [daemon.region.hold(content, index) for index in range(20, 40)]
    slow = [
        threading.Thread(target=read_at, args=(path, index * 4096, 4096), daemon=True)
        for index in range(20, 40)
    ]
    for thread in slow:
        thread.start()
    wait_until(lambda: sum(asked.is_set() for asked, _ in gates) >= 12)  # more than there are threads
    for index in range(20):
        assert read_at(path, index * 4096, 4096) == content.bodies[index]
    assert all(thread.is_alive() for thread in slow)
    for _, release in gates:
        release.set()
    for thread in slow:
        thread.join(PATIENCE_S)


def test_a_fetch_that_fails_is_an_io_error_for_that_read_only(daemon: Daemon) -> None:
    content = fresh(14)
    path = daemon.serve(content, [0, 1])
    daemon.region.fail(content, 2)
    bad = content.starts[2]
    with pytest.raises(OSError, match="Input/output"):
        read_at(path, bad, 4096)
    assert read_at(path, 0, bad) == content.blob[:bad]
    last = content.starts[5]
    assert read_at(path, last, 4096) == content.bodies[5]
    daemon.region.heal()
    assert path.read_bytes() == content.blob
    assert daemon.client.stats().blobs[content.digest].errors > 0


def test_a_placement_that_comes_later_is_used_after_a_refresh(daemon: Daemon) -> None:
    content = fresh(15)
    path = daemon.serve(content, [0])
    placement = daemon.state.indexes / content.digest / "placement.bin"
    packed = placement.read_bytes()
    placement.unlink()
    assert not daemon.client.attach(content.digest).is_placed
    with pytest.raises(OSError, match="Input/output"):
        read_at(path, content.starts[1], 4096)
    placement.write_bytes(packed)
    assert daemon.client.refresh(content.digest)
    assert path.read_bytes() == content.blob


def test_the_trace_tells_what_was_read_in_order(daemon: Daemon) -> None:
    content = fresh(16, [MIB] * 6)
    path = daemon.serve(content, range(6))
    for index in (4, 0, 4, 2):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, 100, index * MIB)
        os.close(descriptor)
    wait_until(lambda: len(daemon.client.trace(content.digest)) == 3)  # a busy machine notes them later
    assert list(daemon.client.trace(content.digest)) == [4, 0, 2]
    daemon.client.reset_trace(content.digest)
    assert list(daemon.client.trace(content.digest)) == []


def test_a_prefetch_brings_what_a_stored_trace_names(daemon: Daemon) -> None:
    content = fresh(17)
    path = daemon.serve(content, [])
    folder = daemon.state.indexes / content.digest
    key = trace.key_of(["server"])
    trace.save(folder, key, ["server"], [5, 2])
    daemon.client.prefetch(content.digest, trace=key)
    progress = daemon.client.prefetch_status(content.digest, wait_s=20)
    assert progress.is_over
    assert (progress.done_bytes, progress.failed_chunks) == (4096 + 70_000, 0)
    before = len(daemon.region.requests)
    assert read_at(path, content.starts[5], 4096) == content.bodies[5]
    assert len(daemon.region.requests) == before


def test_a_prefetch_of_chunks_that_are_not_there_is_refused(daemon: Daemon) -> None:
    content = fresh(18)
    daemon.serve(content, [])
    with pytest.raises(InvalidInput):
        daemon.client.prefetch(content.digest, [0, 6])
    with pytest.raises(NotFound):
        daemon.client.prefetch(content.digest, trace="0" * 32)
    with pytest.raises(NotFound):
        daemon.client.prefetch_status(content.digest)


def test_a_cancelled_prefetch_is_over(daemon: Daemon) -> None:
    content = fresh(19)
    daemon.serve(content, [])
    gates = [daemon.region.hold(content, index) for index in range(6)]
    daemon.client.prefetch(content.digest)
    wait_until(lambda: any(asked.is_set() for asked, _ in gates))
    assert daemon.client.prefetch_cancel(content.digest).is_over
    for _, release in gates:
        release.set()


def test_a_detached_blob_can_be_read_as_before(daemon: Daemon) -> None:
    content = fresh(20)
    path = daemon.serve(content)
    assert path.read_bytes() == content.blob
    assert daemon.client.detach(content.digest)
    assert not daemon.client.detach(content.digest)
    assert read_at(path, 0, MIB) == content.blob


def test_stats_tell_reads_and_tiers_by_image(daemon: Daemon) -> None:
    content = fresh(21)
    path = daemon.serve(content, [0, 1, 2])
    assert path.read_bytes() == content.blob
    stats = daemon.client.stats()
    mine = stats.blobs[content.digest]
    assert (mine.ssd_chunks, mine.fetched_chunks, mine.errors) == (3, 3, 0)
    assert mine.read_bytes >= len(content.blob)
    assert mine.tiers["region"].chunks == 3
    assert mine.tiers["region"].bytes == 3 * 4096
    assert stats.tiers["region"].chunks >= 3
    assert 0 < stats.rss_bytes < 120 << 20


def test_metrics_are_prometheus_text(daemon: Daemon, blob: Path) -> None:
    blob.read_bytes()
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(daemon.client.metrics())}
    assert families["glowplug_blob_daemon_read_bytes"].samples[0].value >= len(CONTENT.blob)
    assert families["glowplug_blob_daemon_tier_chunks"].samples[0].labels == {"tier": "region"}


def test_what_is_no_image_cannot_be_attached(daemon: Daemon) -> None:
    with pytest.raises(NotFound):
        daemon.client.attach("a" * 64)
    with pytest.raises(InvalidInput):
        daemon.client.attach("../../etc")


def test_there_is_one_daemon_however_often_it_is_asked_for(daemon: Daemon) -> None:
    pid = daemon.client.ping().pid
    clients = []

    def ask() -> None:
        clients.append(ensure_daemon(daemon.state, PATIENCE_S))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [client.ping().pid for client in clients] == [pid] * 5
