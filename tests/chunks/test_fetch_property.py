"""Whatever is asked in whatever order while tiers fail: everybody is answered once, and never wrongly."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chunks.fetch_fakes import PATIENCE_S, Asker, FakeSsd, FakeTier, Request, make_blob

from glowplug.chunks.fetch import Fetcher, PrefetchHandle, Priority, RemoteBlob
from glowplug.types.errors import GlowplugError, NotFound, Unavailable

CHUNKS = 24
BLOBS = [
    make_blob([500 + 131 * i for i in range(CHUNKS)], seed=1, chunks_per_pack=9),
    make_blob([40_000] * CHUNKS, seed=2, chunks_per_pack=5),
]
# The same content as the first, from elsewhere; and what was never pushed.
MIRROR = make_blob([500 + 131 * i for i in range(CHUNKS)], seed=1, chunks_per_pack=4)
PACKS = BLOBS[0].packs | BLOBS[1].packs | MIRROR.packs


def fresh_blobs() -> list[tuple[RemoteBlob, list[bytes]]]:
    return [
        *((RemoteBlob(blob.remote.table, blob.placement), blob.contents) for blob in (*BLOBS, MIRROR)),
        (RemoteBlob(BLOBS[0].remote.table, None), BLOBS[0].contents),
    ]


class UnreliableTier(FakeTier):
    """Answers wrongly in every way there is, as often as it is told to."""

    def __init__(self, tier: str, badness: float, seed: int) -> None:
        super().__init__(tier, PACKS)
        self.answer = self._answer
        self._badness = badness
        self._rng = random.Random(seed)
        self._dice = threading.Lock()

    def _answer(self, _request: Request, data: bytes) -> bytes:
        with self._dice:
            if self._rng.random() >= self._badness:
                return data
            way = self._rng.randrange(6)
            at = self._rng.randrange(len(data))
        if way == 0:
            raise NotFound("gone")
        if way == 1:
            raise Unavailable("down")
        if way == 2:
            raise RuntimeError("a bug")
        if way == 3:
            return data[:at]
        if way == 4:
            return bytes(len(data))
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.fixture(scope="module", autouse=True)
def threads_change_all_the_time() -> Iterator[None]:
    """So that a few examples meet many interleavings."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before_s)


@dataclass(frozen=True)
class Want:
    blob: int
    index: int
    priority: Priority


@dataclass(frozen=True)
class StartPrefetch:
    blob: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class FillDisk:
    is_full: bool


@dataclass(frozen=True)
class Await:
    """Everything asked so far."""


INDEX = st.integers(0, CHUNKS - 1)
BLOB = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.builds(Want, BLOB, INDEX, st.sampled_from(Priority)),
        st.builds(Want, BLOB, INDEX, st.sampled_from(Priority)),
        st.builds(StartPrefetch, BLOB, st.lists(INDEX, max_size=CHUNKS).map(tuple)),
        st.builds(Cancel, st.integers(0, 3)),
        st.builds(FillDisk, st.booleans()),
        st.builds(Await),
    ),
    max_size=40,
)


@given(
    steps=STEPS,
    badness=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 1 << 16),
    is_closed_early=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_everybody_is_answered_once_with_the_right_bytes_or_an_error(
    steps: list[object], badness: float, seed: int, is_closed_early: bool
) -> None:
    ssd, asker, handles = FakeSsd(), Asker(), list[PrefetchHandle]()
    blobs = fresh_blobs()
    wanted: dict[int, bytes] = {}
    tiers = [UnreliableTier("zone", badness, seed), UnreliableTier("region", badness / 2, seed + 1)]
    fetcher = Fetcher(ssd, tiers, connections=3, reserved_for_reads=1)
    for number, step in enumerate(steps):
        match step:
            case Want(blob, index, priority):
                remote, contents = blobs[blob]
                wanted[number] = contents[index]
                fetcher.want(remote, index, priority, asker.done(number))
            case StartPrefetch(blob, order):
                handles.append(fetcher.prefetch(blobs[blob][0], order))
            case Cancel(which):
                for handle in handles[which : which + 1]:
                    handle.cancel()
            case FillDisk(is_full):
                ssd.is_full = is_full
            case Await():
                asker.wait(*wanted)
    if not is_closed_early:
        asker.wait(*wanted)
        for handle in handles:
            handle.wait(PATIENCE_S)
    fetcher.close(PATIENCE_S)

    assert asker.twice == []
    assert set(asker.outcomes) == set(wanted)
    for number, outcome in asker.outcomes.items():
        assert isinstance(outcome, GlowplugError) or outcome == wanted[number]
    assert all(handle.is_over for handle in handles)
    for content in ssd.chunks.values():
        assert content in BLOBS[0].contents or content in BLOBS[1].contents
    assert (fetcher.stats().waiting, fetcher.stats().in_flight) == (0, 0) or is_closed_early


@given(steps=STEPS, seed=st.integers(0, 1 << 16))
@settings(max_examples=60, deadline=None)
def test_with_a_region_that_works_nothing_fails_and_nothing_is_fetched_twice(
    steps: list[object], seed: int
) -> None:
    ssd, asker, handles = FakeSsd(), Asker(), list[PrefetchHandle]()
    blobs = fresh_blobs()[:3]
    wanted: dict[int, bytes] = {}
    region = FakeTier("region", PACKS)
    with Fetcher(ssd, [region], connections=4, reserved_for_reads=1) as fetcher:
        for number, step in enumerate(steps):
            match step:
                case Want(blob, index, priority) if blob < len(blobs):
                    wanted[number] = blobs[blob][1][index]
                    fetcher.want(blobs[blob][0], index, priority, asker.done(number))
                case StartPrefetch(blob, order) if blob < len(blobs):
                    handles.append(fetcher.prefetch(blobs[blob][0], order))
        assert asker.wait(*wanted) == list(wanted.values())
        assert all(handle.wait(PATIENCE_S) for handle in handles)
    assert fetcher.stats().tiers["region"].chunks == len(ssd.chunks)
