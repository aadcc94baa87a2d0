from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.origin.origin_kit import OpenStore
from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.image.index.tree import Extent, Inode
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.errors import InvalidInput, ResourceExhausted


@pytest.fixture
def store() -> OpenStore:
    return OpenStore()


@pytest.fixture
def sink(store: OpenStore) -> Iterator[ChunkSink]:
    with ChunkSink(store) as sink:
        yield sink


def file_of(size_bytes: int, extents: tuple[Extent, ...]) -> Inode:
    return Inode(mode=0o100644, size_bytes=size_bytes, extents=extents)


class FullStore(OpenStore):
    def put(self, chunk: Chunk, data: Buffer) -> None:
        raise ResourceExhausted("The disk is full.")


def test_small_files_are_one_chunk_each(sink: ChunkSink, store: OpenStore) -> None:
    first, second = sink.add_contents([b"one", b"two"])
    assert first == (Extent(0, (Chunk.of(b"one"),)),)
    assert store.content(file_of(3, second)) == b"two"


def test_equal_content_is_put_once(sink: ChunkSink, store: OpenStore) -> None:
    sink.add_contents([b"same", b"same"])
    sink.add_contents([b"same"])
    sink.add_stream(io.BytesIO(b"same"), 4)
    assert store.put_chunks == [Chunk.of(b"same")]
    assert (sink.new_bytes, sink.known_bytes) == (4, 0)


def test_what_the_store_has_is_counted_as_known_and_not_put(sink: ChunkSink, store: OpenStore) -> None:
    store.put(Chunk.of(b"old"), b"old")
    store.put_chunks.clear()
    sink.add_contents([b"old", b"newer"])
    assert store.put_chunks == [Chunk.of(b"newer")]
    assert (sink.new_bytes, sink.known_bytes) == (5, 3)


def test_zeros_are_holes(sink: ChunkSink, store: OpenStore) -> None:
    assert sink.add_contents([b"", bytes(5)]) == [(), ()]
    assert sink.add_stream(io.BytesIO(bytes(2 * CHUNK_BYTES)), 2 * CHUNK_BYTES) == ()
    assert not store.put_chunks


def test_a_chunk_of_zeros_inside_a_file_is_a_hole(sink: ChunkSink, store: OpenStore) -> None:
    content = b"a" * CHUNK_BYTES + bytes(CHUNK_BYTES) + b"b" * 10
    extents = sink.add_stream(io.BytesIO(content), len(content))
    assert [extent.offset for extent in extents] == [0, 2 * CHUNK_BYTES]
    assert store.content(file_of(len(content), extents)) == content


def test_a_stream_is_read_no_further_than_asked(sink: ChunkSink) -> None:
    stream = io.BytesIO(b"content and more")
    sink.add_stream(stream, 7)
    assert stream.tell() == 7


def test_a_stream_that_gives_little_at_a_time_is_one_file(sink: ChunkSink, store: OpenStore) -> None:
    class Drops:
        def __init__(self, data: bytes) -> None:
            self.stream = io.BytesIO(data)

        def read(self, size: int, /) -> bytes:
            return self.stream.read(min(size, 100_000))

    content = os.urandom(CHUNK_BYTES + 5)
    extents = sink.add_stream(Drops(content), len(content))
    assert store.content(file_of(len(content), extents)) == content


def test_a_stream_that_ends_early_is_refused(sink: ChunkSink) -> None:
    with pytest.raises(InvalidInput, match="ended 3 bytes before its end"):
        sink.add_stream(io.BytesIO(b"1234567"), 10)


def test_a_file_that_is_shorter_than_said_is_refused(sink: ChunkSink, tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * (2 * CHUNK_BYTES))
    with path.open("rb") as file, pytest.raises(InvalidInput, match="ended"):
        sink.add_file(file.fileno(), 5 * CHUNK_BYTES)


@pytest.mark.parametrize(
    "ranges", [[(5, 5), (0, 5)], [(0, 6), (5, 2)], [(0, 11)], [(20, 1)], [(0, -1)], [(-3, 5)]]
)
def test_a_map_that_lies_is_refused(sink: ChunkSink, ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(InvalidInput, match="map of a sparse file"):
        sink.add_stream(io.BytesIO(b"x" * 100), 10, ranges)


def test_a_terabyte_of_holes_costs_nothing(sink: ChunkSink, store: OpenStore) -> None:
    size_bytes = 1 << 40
    extents = sink.add_stream(io.BytesIO(b"end"), size_bytes, [(size_bytes - 3, 3)])
    assert extents[0].offset == size_bytes - CHUNK_BYTES
    assert store.bodies[extents[0].chunks[0].id] == bytes(CHUNK_BYTES - 3) + b"end"


def test_a_full_disk_is_said_and_nothing_hangs() -> None:
    content = os.urandom(8 * CHUNK_BYTES)
    with ChunkSink(FullStore()) as sink:
        with pytest.raises(ResourceExhausted):
            sink.add_stream(io.BytesIO(content), len(content))
        with pytest.raises(ResourceExhausted):
            sink.add_contents([b"x"])


def test_no_work_goes_on_once_a_call_has_failed() -> None:
    class BusyStore(OpenStore):
        busy = 0

        def put(self, chunk: Chunk, data: Buffer) -> None:
            self.busy += 1
            threading.Event().wait(0.02)  # long enough to be under way when the stream fails
            super().put(chunk, data)
            self.busy -= 1

    class FailingLate(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 2 * CHUNK_BYTES:
                raise OSError("the network is gone")
            return super().read(size)

    store = BusyStore()
    with ChunkSink(store) as sink:
        with pytest.raises(OSError, match="network"):
            sink.add_stream(FailingLate(os.urandom(8 * CHUNK_BYTES)), 8 * CHUNK_BYTES)
        assert store.busy == 0


def test_a_large_file_is_given_up_as_soon_as_nobody_wants_it(store: OpenStore) -> None:
    class GivenUp(Exception):
        pass

    def check() -> None:
        if len(store.put_chunks) >= 3:
            raise GivenUp

    content = os.urandom(40 * CHUNK_BYTES)
    with ChunkSink(store, workers=1, check=check) as sink, pytest.raises(GivenUp):
        sink.add_stream(io.BytesIO(content), len(content))
    assert 3 <= len(store.put_chunks) < 10


def test_many_threads_may_add_at_once(store: OpenStore) -> None:
    contents = [bytes([number % 50]) * 10 + b"." for number in range(400)]
    with ChunkSink(store) as sink:
        threads = [
            threading.Thread(target=sink.add_contents, args=(contents[start::8],)) for start in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(store.bodies) == 50
    assert sink.new_bytes + sink.known_bytes == 50 * 11


ranges_of_a_file = st.lists(
    st.tuples(st.integers(0, 700_000), st.sampled_from([1, 7, 4096, 300_000, CHUNK_BYTES])), max_size=6
)


@given(gaps=ranges_of_a_file, tail=st.sampled_from([0, 1, CHUNK_BYTES]))
def test_stream_and_file_give_what_was_put_in(
    gaps: list[tuple[int, int]], tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ranges, end = [], 0
    for gap, length in gaps:
        ranges.append((end + gap, length))
        end += gap + length
    whole = bytearray(end + tail)
    for number, (start, length) in enumerate(ranges):
        whole[start : start + length] = bytes([number + 1]) * length
    packed = b"".join(whole[start : start + length] for start, length in ranges)
    path = tmp_path_factory.getbasetemp() / "sparse"
    path.write_bytes(whole)
    store = OpenStore()
    with ChunkSink(store) as sink, path.open("rb") as file:
        from_stream = sink.add_stream(io.BytesIO(packed), len(whole), ranges)
        assert from_stream == sink.add_file(file.fileno(), len(whole), ranges)
        assert from_stream == sink.add_file(file.fileno(), len(whole))
    assert store.content(file_of(len(whole), from_stream)) == whole


PAGES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 200)), max_size=8)


def memory_of(pages: list[tuple[int, int]]) -> bytes:
    """Runs of pages: of zeros, or of noise that is the same for the same number."""
    runs = (bytes(4096 * count) if seed == 0 else noise(seed, 4096 * count) for seed, count in pages)
    return b"".join(runs)


def noise(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def add_pages(sink: ChunkSink, folder: Path, content: bytes) -> Inode:
    path = folder / "memory"
    path.write_bytes(content)
    with path.open("rb") as file:
        return file_of(len(content), sink.add_pages(file.fileno(), len(content)))


@given(pages=PAGES, tail=st.integers(0, 4095))
def test_a_file_cut_at_pages_is_whole(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[int, int]], tail: int
) -> None:
    content = memory_of(pages) + noise(9, tail)
    store = OpenStore()
    with ChunkSink(store) as sink:
        inode = add_pages(sink, tmp_path_factory.getbasetemp(), content)
    assert store.content(inode) == content
    sizes = [chunk.size_bytes for extent in inode.extents for chunk in extent.chunks]
    assert all(size % 4096 == 0 for size in sizes[:-1])
    assert all(size <= CHUNK_BYTES for size in sizes)


def test_memory_that_moved_by_a_page_is_known(sink: ChunkSink, store: OpenStore, tmp_path: Path) -> None:
    weights = noise(1, 24 << 20)
    add_pages(sink, tmp_path, noise(2, 40 << 12) + weights + noise(3, 9 << 12))
    before = sink.new_bytes
    moved = add_pages(sink, tmp_path, noise(4, 41 << 12) + weights + noise(5, 100 << 12))
    assert sink.new_bytes - before < len(weights) / 5
    assert store.content(moved)[41 << 12 :].startswith(weights)


def test_a_file_that_ends_while_it_is_cut_at_pages_is_refused(sink: ChunkSink, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(bytes(5000))
    with (tmp_path / "memory").open("rb") as file, pytest.raises(InvalidInput):
        sink.add_pages(file.fileno(), 8192)
