"""Reads of a blob: right bytes from wherever they are, an error where there are none, nothing in between."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.image.lazy.blob_content import MIXED_SIZES, BlobContent, cached_bytes, forget_pages, short_state
from tests.image.lazy.fetcher_fake import FakeFetcher

from glowplug.chunks.chunk import ALIGN_BYTES
from glowplug.chunks.run import Run
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.ssd_packs import location_of
from glowplug.image.lazy.blob import NOWHERE, VERIFIED, Blob, open_blob, place_word
from glowplug.image.lazy.blob_server import BlobServer
from glowplug.image.lazy.fuse_session import Part, Scratch
from glowplug.types.clock import SystemClock
from glowplug.types.errors import GlowplugError, InvalidInput, NotFound, Unavailable
from glowplug.types.paths import StateDir

PATIENCE_S = 60.0
MIB = 1 << 20


@dataclass
class Reply:
    """What a read was answered, once."""

    data: bytes | None = None
    error: GlowplugError | None = None
    times: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, outcome: Sequence[Part] | GlowplugError) -> None:
        self.times += 1
        if isinstance(outcome, GlowplugError):
            self.error = outcome
        else:
            self.data = b"".join(outcome)
        self._done.set()

    @property
    def is_there(self) -> bool:
        return self._done.is_set()

    def wait(self) -> bytes:
        assert self._done.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        assert self.data is not None
        return self.data


class Bench:
    """A server, its disk and its fetcher."""

    def __init__(self, root: Path) -> None:
        self.state = StateDir(root)
        self.state.create()
        self.state.chunks.mkdir(exist_ok=True)
        self.ssd = SsdStore(self.state.chunks)
        self.fetcher = FakeFetcher(ssd=self.ssd)
        self.server = BlobServer(self.ssd, self.fetcher, SystemClock())

    def serve(self, content: BlobContent, here: Sequence[int] | None = None) -> Blob:
        """A blob of which the chunks ``here`` (all) are on this machine, and all can be fetched."""
        content.publish(self.state)
        content.store(self.ssd, here)
        self.fetcher.bodies.update(
            (chunk.id, body) for chunk, body in zip(content.chunks, content.bodies, strict=True)
        )
        return open_blob(self.state, content.digest)

    def read(self, blob: Blob, offset: int, size_bytes: int) -> Reply:
        reply = Reply()
        self.server.read(blob, offset, size_bytes, Scratch(), reply)
        return reply

    def forget_pages(self) -> Path:
        """Have nothing of the only pack in page cache."""
        (pack,) = (self.state.chunks / "packs").iterdir()
        forget_pages(pack)
        return pack

    def close(self) -> None:
        self.server.close()
        self.ssd.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "state")
    yield bench
    bench.close()


CONTENT = BlobContent.of_sizes(MIXED_SIZES)
READS = st.lists(
    st.tuples(st.integers(0, len(CONTENT.blob) + 5000), st.integers(0, MIB)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(reads=READS, here=st.sets(st.integers(0, len(MIXED_SIZES) - 1)))
def test_any_range_reads_as_the_blob_is_wherever_its_chunks_are(
    tmp_path_factory: pytest.TempPathFactory, reads: list[tuple[int, int]], here: set[int]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.fetcher.is_prompt = True
    try:
        blob = bench.serve(CONTENT, sorted(here))
        for offset, size_bytes in reads:
            assert bench.read(blob, offset, size_bytes).wait() == CONTENT.blob[offset : offset + size_bytes]
    finally:
        bench.close()


def test_a_read_waits_for_all_of_its_missing_chunks_and_is_answered_once(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096, 5000, 6000, 4096])
    blob = bench.serve(content, [0, 3])
    reply = bench.read(blob, 0, MIB)
    bench.fetcher.deliver(2)
    assert not reply.is_there
    bench.fetcher.deliver(1)
    assert reply.wait() == content.blob
    assert reply.times == 1


def test_what_could_not_be_kept_on_the_disk_is_answered_all_the_same(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096, 5000, 6000])
    blob = bench.serve(content, [0])
    bench.fetcher.ssd = None
    reply = bench.read(blob, 100, MIB)
    bench.fetcher.deliver(1)
    bench.fetcher.deliver(2)
    assert reply.wait() == content.blob[100:]


def test_a_chunk_that_cannot_be_fetched_fails_the_reads_of_it_and_no_other(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096, 4096, 4096])
    blob = bench.serve(content, [0])
    failing, waiting = bench.read(blob, 4096, 4096), bench.read(blob, 8192, 4096)
    bench.fetcher.deliver(1, Unavailable("no such luck", remedy="none"))
    with pytest.raises(Unavailable, match="no such luck"):
        failing.wait()
    assert bench.read(blob, 0, 4096).wait() == content.bodies[0]
    bench.fetcher.deliver(2)
    assert waiting.wait() == content.bodies[2]
    assert blob.counts().errors == 1


def test_a_failed_chunk_is_fetched_again_by_the_next_read(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096])
    blob = bench.serve(content, [])
    first = bench.read(blob, 0, 4096)
    bench.fetcher.deliver(0, Unavailable("not now", remedy="none"))
    with pytest.raises(Unavailable):
        first.wait()
    second = bench.read(blob, 0, 4096)
    bench.fetcher.deliver(0)
    assert second.wait() == content.blob


def _overwrite(bench: Bench, content: BlobContent, index: int, data: bytes, at: int = 0) -> None:
    location = bench.ssd.locate(content.chunks[index])
    assert location is not None
    with bench.ssd.pack_path(location.pack).open("r+b") as pack:
        pack.seek(location.offset + at)
        pack.write(data)


def test_a_corrupt_chunk_is_fetched_again(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096, 50_000, 4096])
    blob = bench.serve(content)
    _overwrite(bench, content, 1, b"wrong", at=20_000)
    bench.fetcher.is_prompt = True
    assert bench.read(blob, 4096, 4096).wait() == content.bodies[1][:4096]
    assert bench.fetcher.reads() == [1]
    assert blob.counts().corrupt_chunks == 1


def test_a_disk_that_cannot_read_a_chunk_costs_a_fetch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    content = BlobContent.of_sizes([4096])
    blob = bench.serve(content)
    bench.fetcher.is_prompt = True
    monkeypatch.setattr(os, "preadv", _failing(errno.EIO))
    assert bench.read(blob, 0, 4096).wait() == content.blob
    assert bench.fetcher.reads() == [0]


def test_a_read_that_fails_for_another_reason_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BlobContent.of_sizes([4096])
    blob = bench.serve(content)
    monkeypatch.setattr(os, "preadv", _failing(errno.ENOMEM))
    with pytest.raises(Unavailable, match="could not be read"):
        bench.read(blob, 0, 4096).wait()


def test_a_chunk_that_is_pruned_under_a_reader_is_fetched_never_read_as_zeros(bench: Bench) -> None:
    content = BlobContent.of_sizes([MIB, 300_000, 5000])
    blob = bench.serve(content)
    assert bench.read(blob, 0, MIB).wait() == content.bodies[0]
    assert bench.read(blob, MIB, MIB).wait() == content.blob[MIB:]
    bench.ssd.prune(0)
    bench.fetcher.is_prompt = True
    bench.fetcher.ssd = None
    assert bench.read(blob, 8192, 4096).wait() == content.blob[8192:12288]
    assert bench.read(blob, MIB - 4096, MIB).wait() == content.blob[MIB - 4096 : 2 * MIB - 4096]
    assert sorted(set(bench.fetcher.reads())) == [0, 1, 2]


def test_a_hole_behind_the_back_of_the_index_is_noticed_too(bench: Bench) -> None:
    content = BlobContent.of_sizes([MIB])
    blob = bench.serve(content)
    bench.read(blob, 0, MIB).wait()
    _overwrite(bench, content, 0, bytes(MIB))
    bench.fetcher.is_prompt = True
    assert bench.read(blob, 4096, 4096).wait() == content.blob[4096:8192]


def test_honest_zeros_are_read_as_such(bench: Bench) -> None:
    content = BlobContent((bytes(MIB), b"x" * 5000 + bytes(20_000), b"\0"))
    blob = bench.serve(content)
    for _ in range(2):
        assert bench.read(blob, 0, MIB).wait() == content.blob[:MIB]
        assert bench.read(blob, MIB, MIB).wait() == content.blob[MIB:]
        assert bench.read(blob, MIB - 4096, 8192).wait() == content.blob[MIB - 4096 : MIB + 4096]
    assert bench.fetcher.wanted == []


def test_a_pack_that_is_deleted_costs_a_fetch(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096, 8192])
    blob = bench.serve(content)
    location = bench.ssd.locate(content.chunks[0])
    assert location is not None
    bench.ssd.pack_path(location.pack).unlink()
    bench.fetcher.is_prompt = True
    assert bench.read(blob, 0, MIB).wait() == content.blob


def test_padding_is_zeros_whatever_the_pack_has_there(bench: Bench) -> None:
    content = BlobContent.of_sizes([100, 5000])
    blob = bench.serve(content)
    _overwrite(bench, content, 0, b"!" * (ALIGN_BYTES - 100), at=100)
    for offset, size_bytes in [(0, MIB), (0, 4096), (50, 200), (200, 100), (0, MIB)]:
        assert bench.read(blob, offset, size_bytes).wait() == content.blob[offset : offset + size_bytes]


def test_a_miss_fetches_ahead_what_lies_around_it(bench: Bench) -> None:
    content = BlobContent.of_sizes([MIB] * 4)
    blob = bench.serve(content, [])
    bench.read(blob, MIB, 4096)
    assert bench.fetcher.reads() == [1]
    assert bench.fetcher.ahead == [[2]]
    bench.read(blob, MIB, 4096)
    assert bench.fetcher.ahead == [[2]]  # nothing is asked for twice


def test_what_is_here_is_read_without_fetching_ahead(bench: Bench) -> None:
    blob = bench.serve(BlobContent.of_sizes([4096] * 12))
    bench.read(blob, 0, MIB).wait()
    assert bench.fetcher.ahead == []


def test_a_chunk_that_was_fetched_is_read_where_it_was_written_without_hashing_it_again(
    bench: Bench,
) -> None:
    content = BlobContent.of_sizes([5000, 7000])
    blob = bench.serve(content, [])
    (place,) = bench.ssd.put_verified(Run.of(content.chunks[1], content.bodies[1]))
    assert place is not None
    assert blob.remote.kept is not None
    blob.remote.kept([0, 1], [None, place])
    assert blob.places[0] == NOWHERE
    assert blob.places[1] == place_word(location_of(place)) | VERIFIED
    start = blob.starts[1] * ALIGN_BYTES
    assert bench.read(blob, start, 4096).wait() == content.blob[start : start + 4096]
    assert bench.fetcher.wanted == []


def test_the_trace_is_the_order_of_first_use(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096] * 6)
    blob = bench.serve(content)
    for index in (4, 1, 4, 0, 1):
        bench.read(blob, index * 4096, 4096).wait()
    bench.read(blob, 0, 3 * 4096).wait()
    assert list(blob.trace()) == [4, 1, 0, 2]
    blob.reset_trace()
    bench.read(blob, 4096, 4096).wait()
    assert list(blob.trace()) == [1]


def test_it_counts_where_chunks_were_at_their_first_use(bench: Bench) -> None:
    content = BlobContent.of_sizes([4096] * 4)
    blob = bench.serve(content, [0, 1])
    bench.fetcher.is_prompt = True
    for _ in range(2):
        bench.read(blob, 0, MIB).wait()
    counts = blob.counts()
    assert (counts.ssd_chunks, counts.fetched_chunks) == (2, 2)
    assert (counts.reads, counts.read_bytes) == (2, 2 * len(content.blob))
    assert counts.ssd_bytes == 6 * 4096


def test_many_threads_read_right_while_chunks_come_and_go(bench: Bench) -> None:
    content = BlobContent.of_sizes(MIXED_SIZES, seed=9)
    blob = bench.serve(content)
    bench.fetcher.is_prompt = True
    stop = threading.Event()
    wrong: list[object] = []

    def read(seed: int) -> None:
        at = seed
        for _ in range(400):
            at = (at * 1_103_515_245 + 12345) % len(content.blob)
            size_bytes = (at >> 3) % MIB
            reply = bench.read(blob, at, size_bytes)
            try:
                if reply.wait() != content.blob[at : at + size_bytes]:
                    wrong.append((at, size_bytes))
            except GlowplugError as problem:
                wrong.append(problem)

    def prune() -> None:
        while not stop.wait(0.002):
            bench.ssd.prune(0)

    pruner = threading.Thread(target=prune)
    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in (pruner, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    pruner.join()
    assert wrong == []


def test_a_closed_server_fails_reads_rather_than_leave_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BlobContent.of_sizes([4096])
    blob = bench.serve(content)
    bench.server.close()
    monkeypatch.setattr(os, "preadv", _failing(errno.EAGAIN))
    with pytest.raises(Unavailable, match="stopping"):
        bench.read(blob, 0, 4096).wait()


def _failing(code: int) -> Callable[..., int]:
    def fail(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


def _with(state: StateDir, content: BlobContent, name: str, data: bytes) -> str:
    (content.publish(state) / name).write_bytes(data)
    return content.digest


def test_a_truncated_chunk_table_is_refused(bench: Bench) -> None:
    digest = _with(bench.state, CONTENT, "chunks.bin", CONTENT.packed_table[:-1])
    with pytest.raises(InvalidInput, match="chunk table"):
        open_blob(bench.state, digest)


def test_another_images_chunk_table_is_refused(bench: Bench) -> None:
    digest = _with(bench.state, CONTENT, "chunks.bin", BlobContent.of_sizes([1, 2]).packed_table)
    with pytest.raises(InvalidInput, match="not the one its manifest names"):
        open_blob(bench.state, digest)


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[]", b'{"chunks": 3}', b"\xff" * 100])
def test_another_manifest_is_refused(bench: Bench, manifest: bytes) -> None:
    digest = _with(bench.state, CONTENT, "manifest.json", manifest)
    with pytest.raises(InvalidInput, match="of another image"):
        open_blob(bench.state, digest)


def test_a_damaged_placement_leaves_what_is_here_readable(bench: Bench) -> None:
    bench.serve(CONTENT)
    digest = _with(bench.state, CONTENT, "placement.bin", b"nonsense")
    blob = open_blob(bench.state, digest)
    assert blob.remote.placement is None
    assert bench.read(blob, 0, 5000).wait() == CONTENT.blob[:5000]


@pytest.mark.parametrize("digest", ["", "..", "../" * 5 + "etc", "f" * 63, "F" * 64, "a" * 64])
def test_what_is_no_image_here_is_not_found(bench: Bench, digest: str) -> None:
    with pytest.raises(NotFound):
        open_blob(bench.state, digest)


def test_an_image_that_was_removed_while_mounted_is_found_by_what_the_mount_keeps(bench: Bench) -> None:
    folder = CONTENT.publish(bench.state)
    held = bench.state.lazy / "held" / CONTENT.digest
    held.mkdir(parents=True)
    (folder / "chunks.bin").rename(held / "chunks.bin")
    assert open_blob(bench.state, CONTENT.digest).size_bytes == len(CONTENT.blob)


# Reads past the page cache


@pytest.fixture
def disk_bench() -> Iterator[Bench]:
    """On a disk: packs in memory (tmpfs) have no page cache to read past."""
    with short_state(under="/var/tmp") as state:
        bench = Bench(state.root)
        yield bench
        bench.close()


def test_a_long_file_that_is_read_for_the_first_time_is_hashed_without_filling_the_packs_page_cache(
    disk_bench: Bench,
) -> None:
    content = BlobContent.of_sizes([MIB] * 4)
    blob = disk_bench.serve(content)
    pack = disk_bench.forget_pages()

    replies = [disk_bench.read(blob, index * MIB, MIB) for index in range(4)]

    assert [reply.wait() for reply in replies] == list(content.bodies)
    assert all(place & VERIFIED for place in blob.places)
    assert cached_bytes(pack) < MIB


def test_damage_that_is_found_past_the_page_cache_is_fetched_again(disk_bench: Bench) -> None:
    content = BlobContent.of_sizes([MIB] * 2)
    blob = disk_bench.serve(content)
    location = disk_bench.ssd.locate(content.chunks[1])
    assert location is not None
    with disk_bench.ssd.pack_path(location.pack).open("r+b") as file:
        file.seek(location.offset + 123_456)
        file.write(b"wrong")
    disk_bench.forget_pages()
    disk_bench.fetcher.is_prompt = True

    assert disk_bench.read(blob, MIB, MIB).wait() == content.bodies[1]

    assert blob.counts().corrupt_chunks == 1


def test_a_disk_whose_blocks_are_longer_than_ours_is_read_through_the_page_cache(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = BlobContent.of_sizes([MIB])
    blob = disk_bench.serve(content)
    disk_bench.forget_pages()
    read, asked = os.preadv, []

    def preadv(file: int, parts: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            asked.append(offset)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return read(file, parts, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)

    assert disk_bench.read(blob, 0, MIB).wait() == content.bodies[0]
    assert asked


def test_a_reader_in_order_asks_the_index_once_for_many_chunks(bench: Bench) -> None:
    content = BlobContent.of_sizes([5000] * 40)
    blob = bench.serve(content)

    bench.read(blob, 0, 5000).wait()

    assert NOWHERE not in blob.places[:32]
    assert set(blob.places[32:]) == {NOWHERE}
