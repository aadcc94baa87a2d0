from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.image.index.real_tree import read_folder
from tests.image.index.trees import describe
from tests.image.origin.origin_kit import OpenStore, a_later_job, at, read

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.tree import Extent
from glowplug.image.job import Job
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.scan_cache import SETTLED_S, ScanCache
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.clock import ManualClock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


class CountingSink(ChunkSink):
    """Counts what reaches it, so what was read."""

    def __init__(self, store: OpenStore) -> None:
        super().__init__(store)
        self.read_bytes = 0

    def add_contents(self, contents: Sequence[bytes]) -> list[tuple[Extent, ...]]:
        self.read_bytes += sum(map(len, contents))
        return super().add_contents(contents)

    def add_file(
        self, descriptor: int, size_bytes: int, data_ranges: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Extent, ...]:
        self.read_bytes += size_bytes
        return super().add_file(descriptor, size_bytes, data_ranges)


@pytest.fixture
def cache(tmp_path: Path) -> ScanCache:
    return ScanCache(tmp_path / "indexes" / ".scan-cache.db")


def read_bytes(folder: Path, cache: ScanCache, store: OpenStore, job: Job | None = None) -> int:
    """How much of ``folder`` is read; the tree must be right in any case."""
    with CountingSink(store) as sink:
        tree, _ = FolderOrigin(folder, cache=cache).read(sink, job or a_later_job())
    assert describe(tree) == describe(read_folder(folder)[0])
    return sink.read_bytes


def fill(folder: Path) -> int:
    (folder / "small").write_bytes(b"small")
    (folder / "large").write_bytes(os.urandom(2 * CHUNK_BYTES + 1))
    with (folder / "sparse").open("wb") as file:
        file.seek(7 * CHUNK_BYTES)
        file.write(b"end")
    (folder / "zeros").write_bytes(bytes(100))
    (folder / "empty").write_bytes(b"")
    return sum(path.stat().st_size for path in folder.iterdir())


def test_an_unchanged_file_is_not_read_again(folder: Path, cache: ScanCache) -> None:
    total_bytes = fill(folder)
    store = OpenStore()
    assert read_bytes(folder, cache, store) == total_bytes
    assert read_bytes(folder, cache, store) == 0


def test_only_what_changed_is_read_again(folder: Path, cache: ScanCache) -> None:
    fill(folder)
    store = OpenStore()
    read_bytes(folder, cache, store)
    (folder / "small").write_bytes(b"other")
    assert read_bytes(folder, cache, store) == 5


def test_a_change_that_keeps_size_and_mtime_is_seen(folder: Path, cache: ScanCache) -> None:
    path = folder / "file"
    path.write_bytes(b"before")
    before = path.stat()
    store = OpenStore()
    read_bytes(folder, cache, store)
    path.write_bytes(b"behind")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_bytes(folder, cache, store) == 6


def test_what_the_store_lost_is_read_again(folder: Path, cache: ScanCache) -> None:
    fill(folder)
    store = OpenStore()
    read_bytes(folder, cache, store)
    del store.bodies[at(read(FolderOrigin(folder))[0], b"/large").extents[0].chunks[1].id]
    assert read_bytes(folder, cache, store) == 2 * CHUNK_BYTES + 1


def test_a_file_touched_shortly_before_the_scan_is_not_trusted(folder: Path, cache: ScanCache) -> None:
    """It may change once more within one tick of the clock, or through a page that is dirty already."""
    total_bytes = fill(folder)
    store = OpenStore()
    clock = ManualClock(time.time() + SETTLED_S - 50)
    job = Job(lambda _text, _fraction: None, clock, clock.monotonic() + 100)
    assert read_bytes(folder, cache, store, job) == total_bytes
    assert read_bytes(folder, cache, store, job) == total_bytes


def test_a_damaged_cache_is_thrown_away_and_said(
    folder: Path, tmp_path: Path, cache: ScanCache, caplog: pytest.LogCaptureFixture
) -> None:
    total_bytes = fill(folder)
    store = OpenStore()
    read_bytes(folder, cache, store)
    (tmp_path / "indexes" / ".scan-cache.db").write_bytes(b"garbage" * 2000)
    with caplog.at_level(logging.WARNING):
        assert read_bytes(folder, cache, store) == total_bytes
    assert "files are read anew" in caplog.text
    assert read_bytes(folder, cache, store) == 0


def test_a_cache_that_cannot_be_used_costs_time_only(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    total_bytes = fill(folder)
    (tmp_path / "file").write_text("in the way")
    cache = ScanCache(tmp_path / "file" / "cache.db")
    assert read_bytes(folder, cache, OpenStore()) == total_bytes
    assert "files are read anew" in caplog.text
