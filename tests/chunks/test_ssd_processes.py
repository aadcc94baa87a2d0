"""Several real processes use one SSD tier at once: nobody reads a wrong byte, no promise is broken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chunks.content import table_file
from tests.chunks.ssd_worker import bodies

from glowplug.chunks.chunk import Chunk, aligned
from glowplug.chunks.ssd import SsdStore

TIMEOUT_S = 200.0


class Workers:
    """Processes of :mod:`tests.chunks.ssd_worker`."""

    def __init__(self, root: Path, table: Path) -> None:
        self._root = root
        self._table = table
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *works: str) -> None:
        script = Path(__file__).with_name("ssd_worker.py")
        for seed, work in enumerate(works):
            command = [sys.executable, str(script), str(self._root), str(self._table), work, str(seed)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self._running.append(process)
        for process in self._running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate(timeout=TIMEOUT_S)[1]

    def wait(self, index: int) -> None:
        """Until that one has done all its rounds."""
        self._running[index].wait(TIMEOUT_S)

    def stop(self) -> None:
        """End them, and fail with the words of one that failed."""
        for process in self._running:
            _, complaint = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, complaint

    def kill(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def workers(ssd_root: Path, tmp_path: Path) -> Iterator[Workers]:
    table = table_file(tmp_path / "chunks.bin", [Chunk.of(body) for body in bodies()])
    workers = Workers(ssd_root, table)
    yield workers
    workers.kill()


def check(root: Path) -> None:
    """What is known is right, counted right, and after a clean-up the only thing that takes room."""
    with SsdStore(root) as store:
        report = store.verify()
        assert report.damaged == 0
        stats = store.stats()
        assert stats.chunks == report.chunks
        assert store.pins() == []
        chunks = store.unneeded(frozenset())
        assert stats.used_bytes == sum(aligned(chunk.size_bytes) for chunk in chunks)
        assert len(chunks) == len(set(chunks))
        store.gc()
        taken = sum(pack.stat().st_blocks * 512 for pack in (root / "packs").iterdir())
        assert taken <= stats.used_bytes + (64 << 10)


def test_processes_that_put_the_same_and_different_chunks_keep_each_once(
    ssd_root: Path, workers: Workers
) -> None:
    workers.start("fill", "fill", "fill")
    workers.wait(0)
    workers.stop()
    check(ssd_root)
    with SsdStore(ssd_root) as store:
        assert store.missing([Chunk.of(body) for body in bodies()]) == []
        assert len(store.unneeded({Chunk.of(body).id for body in bodies()})) >= 3


def test_what_is_pinned_stays_readable_in_place_while_others_prune(ssd_root: Path, workers: Workers) -> None:
    workers.start("read_pinned", "prune", "read_pinned")
    workers.wait(0)
    workers.stop()
    check(ssd_root)


def test_what_is_complete_and_pinned_stays_in_its_places_while_others_prune(
    ssd_root: Path, workers: Workers
) -> None:
    workers.start("read_complete", "prune", "fill")
    workers.wait(0)
    workers.stop()
    check(ssd_root)
