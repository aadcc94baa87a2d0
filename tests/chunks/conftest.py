"""An SSD tier, ways to look at it from outside, and fetchers, for the tests of the content store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.chunks.content import table_file
from tests.chunks.contract import Pin
from tests.chunks.fetch_fakes import PATIENCE_S, FakeSsd, FakeTier, MakeFetcher

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.fetch import Fetcher
from glowplug.chunks.ssd import SsdStore
from glowplug.types.clock import ManualClock

OpenSsd = Callable[..., SsdStore]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ssd_root(tmp_path: Path) -> Path:
    return tmp_path / "chunks"


@pytest.fixture
def open_ssd(ssd_root: Path, clock: ManualClock) -> Iterator[OpenSsd]:
    """Open the store, also a second time beside the first: to the kernel that is another process."""
    opened: list[SsdStore] = []

    def run(root: Path = ssd_root, **options: object) -> SsdStore:
        store = SsdStore(root, **({"clock": clock} | options))  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield run
    for store in opened:
        store.close()


@pytest.fixture
def ssd(open_ssd: OpenSsd) -> SsdStore:
    return open_ssd()


@pytest.fixture
def table(tmp_path: Path) -> Callable[[Sequence[Chunk]], Path]:
    """A new file with a table of these chunks."""
    count = 0

    def run(chunks: Sequence[Chunk]) -> Path:
        nonlocal count
        count += 1
        return table_file(tmp_path / f"chunks-{count}.bin", chunks)

    return run


@pytest.fixture
def pin_ssd(ssd: SsdStore, table: Callable[[Sequence[Chunk]], Path]) -> Pin:
    def run(owner: str, chunks: Sequence[Chunk]) -> None:
        ssd.pin(owner, table(chunks))

    return run


@pytest.fixture
def make_fetcher() -> Iterator[MakeFetcher]:
    with ExitStack() as stack:

        def make(ssd: FakeSsd, *tiers: FakeTier, **options: float) -> Fetcher:
            fetcher = Fetcher(ssd, tiers, **options)  # type: ignore[arg-type]
            stack.callback(fetcher.close, timeout_s=PATIENCE_S)
            for tier in tiers:
                stack.callback(tier.release)  # before the fetcher waits for what is in flight
            return fetcher

        yield make
