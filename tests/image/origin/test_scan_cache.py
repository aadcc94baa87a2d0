from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.index.trees import chunk

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.tree import Extent
from glowplug.image.origin.folder_access import Signature
from glowplug.image.origin.scan_cache import SETTLED_S, ScanCache

DAY_S = 86_400
SCAN_S = 1_700_000_000.0
OLD_NS = int((SCAN_S - SETTLED_S - 1) * 1e9)
EXTENTS = (Extent(0, (chunk(1, CHUNK_BYTES),)), Extent(3 * CHUNK_BYTES, (chunk(2, 5),)))
FILE = Signature(1, 2, 3 * CHUNK_BYTES + 5, OLD_NS, OLD_NS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@pytest.fixture
def cache(path: Path) -> ScanCache:
    return ScanCache(path)


def test_what_was_recorded_is_recalled_also_by_another_process(cache: ScanCache, path: Path) -> None:
    cache.record([(FILE, EXTENTS)], [], SCAN_S)
    assert ScanCache(path).recall([FILE]) == [EXTENTS]


def test_holes_alone_are_recalled_too(cache: ScanCache) -> None:
    cache.record([(FILE, ())], [], SCAN_S)
    assert cache.recall([FILE]) == [()]


@pytest.mark.parametrize("field", Signature._fields)
def test_a_difference_in_anything_is_another_file(cache: ScanCache, field: str) -> None:
    cache.record([(FILE, EXTENTS)], [], SCAN_S)
    assert cache.recall([FILE._replace(**{field: getattr(FILE, field) + 1})]) == [None]


@pytest.mark.parametrize("age_s", [SETTLED_S - 1, 0, -5])
def test_a_file_that_was_touched_lately_is_not_recorded(cache: ScanCache, age_s: float) -> None:
    touched = FILE._replace(ctime_ns=int((SCAN_S - age_s) * 1e9))
    cache.record([(touched, EXTENTS)], [], SCAN_S)
    assert cache.recall([touched]) == [None]


def test_inode_numbers_may_have_64_bits(cache: ScanCache) -> None:
    files = [FILE._replace(inode=(1 << 64) - 1), FILE._replace(inode=1 << 63, device=(1 << 64) - 5)]
    cache.record([(file, EXTENTS) for file in files], [], SCAN_S)
    assert cache.recall(files) == [EXTENTS, EXTENTS]


def test_what_nobody_asked_for_in_months_is_forgotten(cache: ScanCache) -> None:
    used = FILE._replace(inode=99)
    cache.record([(FILE, EXTENTS), (used, EXTENTS)], [], SCAN_S)
    cache.record([], [used], SCAN_S + 50 * DAY_S)
    cache.record([], [], SCAN_S + 100 * DAY_S)
    assert cache.recall([FILE, used]) == [None, EXTENTS]


def test_a_row_that_cannot_be_is_not_believed(cache: ScanCache, path: Path) -> None:
    cache.record([(FILE, EXTENTS)], [], SCAN_S)
    with sqlite3.connect(path) as database:
        whole = database.execute("SELECT extents FROM file").fetchone()[0]
        for damaged in (
            whole[:-1],
            whole[:5],
            whole + b"x",
            whole + whole,
            whole[:8] + b"\xff" * 4 + whole[12:],
        ):
            database.execute("UPDATE file SET extents = ?", (damaged,))
            database.commit()
            assert cache.recall([FILE]) == [None]


def test_the_cache_of_another_version_is_started_anew(cache: ScanCache, path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE file (something TEXT)")
        database.execute("PRAGMA user_version = 77")
    cache.record([(FILE, EXTENTS)], [], SCAN_S)
    assert cache.recall([FILE]) == [EXTENTS]


runs = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=1, max_size=4)), max_size=4)


@given(gaps=runs)
def test_any_extents_come_back(
    gaps: list[tuple[int, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    extents, at = [], 0
    for gap, seeds in gaps:
        extents.append(Extent((at + gap) * CHUNK_BYTES, tuple(chunk(seed, CHUNK_BYTES) for seed in seeds)))
        at += gap + len(seeds)
    file = FILE._replace(size_bytes=at * CHUNK_BYTES)
    cache = ScanCache(tmp_path_factory.getbasetemp() / "any.db")
    cache.record([(file, tuple(extents))], [], SCAN_S)
    assert cache.recall([file]) == [tuple(extents)]
