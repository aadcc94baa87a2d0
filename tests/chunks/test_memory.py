"""The in-memory fake does what a real tier does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.chunks.content import contents, table_file
from tests.chunks.contract import Pin, PruneStoreContract

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.memory import MemoryStore
from glowplug.types.clock import ManualClock


class TestMemoryStore(PruneStoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def pin(self, store: MemoryStore, tmp_path: Path) -> Pin:
        def run(owner: str, chunks: Sequence[Chunk]) -> None:
            store.pin(owner, table_file(tmp_path / "chunks.bin", chunks))

        return run


def test_what_was_unpinned_can_be_removed(tmp_path: Path) -> None:
    store = MemoryStore()
    (body,) = contents([100])
    store.put(Chunk.of(body), body)
    store.pin("mount", table_file(tmp_path / "chunks.bin", [Chunk.of(body)]))
    store.unpin("mount")
    store.unpin("nobody")
    assert store.remove([Chunk.of(body)]) == 1
