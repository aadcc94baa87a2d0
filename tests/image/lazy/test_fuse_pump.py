"""The pump answers what it can, and hands on the rest unchanged: each request one of both, once."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.image.lazy.blob_content import MIXED_SIZES, BlobContent, cached_bytes, forget_pages
from tests.image.lazy.pump_bench import NODE, PumpBench, SharedBlob, read_request, request_of, shared
from tests.native_driver import build, run

from glowplug.chunks.chunk import ALIGN_BYTES
from glowplug.chunks.ssd_packs import Location
from glowplug.image.lazy.blob import NOWHERE, VERIFIED, place_word
from glowplug.image.lazy.fuse_protocol import MAX_READ_BYTES, Opcode
from glowplug.image.lazy.fuse_pump import Notice

CONTENT = BlobContent.of_sizes(MIXED_SIZES)
MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PumpBench]:
    bench = PumpBench(tmp_path / "packs")
    yield bench
    bench.end()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    reads=st.lists(
        st.tuples(st.integers(0, len(CONTENT.blob) + 5000), st.integers(0, MIB)), min_size=1, max_size=8
    ),
    absent=st.sets(st.integers(0, len(MIXED_SIZES) - 1)),
    unverified=st.sets(st.integers(0, len(MIXED_SIZES) - 1)),
)
def test_a_read_is_answered_right_if_all_of_it_is_here(
    tmp_path_factory: pytest.TempPathFactory,
    reads: list[tuple[int, int]],
    absent: set[int],
    unverified: set[int],
) -> None:
    bench = PumpBench(tmp_path_factory.mktemp("pump") / "packs")
    try:
        blob = bench.serve(CONTENT)
        for index in unverified:
            blob.places[index] &= ~VERIFIED
        for index in absent:
            blob.places[index] = NOWHERE
        answered = 0
        for offset, size in reads:
            end = min(offset + size, len(CONTENT.blob))
            wanted = set(range(blob.table.at(offset), blob.table.at(end - 1) + 1)) if offset < end else None
            answer = bench.read(offset, size)
            if wanted is None or wanted & absent:
                assert answer is None
            else:
                assert answer == CONTENT.blob[offset:end]
                assert all(blob.places[index] & VERIFIED for index in wanted)
                answered += 1
        assert blob.answered[0] == answered
    finally:
        bench.end()


def test_whatever_is_no_read_is_handed_on(bench: PumpBench) -> None:
    bench.serve(CONTENT)
    read = read_request(0, 4096)
    others = [
        request_of(Opcode.STATFS, b""),
        request_of(Opcode.READ, b"short"),
        read_request(0, MAX_READ_BYTES + 1),
        read_request(1 << 63, 4096),
        read_request(0, 4096, node=NODE + 1),
        read[:8],
        struct.pack("<I", len(read) + 1) + read[4:],
        b"\xff" * 300,
    ]
    assert [bench.ask(packet) for packet in others] == [None] * len(others)
    assert bench.ask(read) == CONTENT.blob[:4096]


@pytest.mark.parametrize("is_verified", [True, False])
def test_a_hole_is_never_answered_as_zeros(bench: PumpBench, is_verified: bool) -> None:
    blob = bench.serve(CONTENT, is_verified=is_verified)
    size_bytes = bench.pack(1).stat().st_size
    os.truncate(bench.pack(1), 0)
    os.truncate(bench.pack(1), size_bytes)
    for index in range(len(blob.table)):
        assert bench.read(blob.table.offset(index), CONTENT.chunks[index].size_bytes) is None
    assert bench.read(0, MIB) is None


@pytest.mark.parametrize("index", range(len(MIXED_SIZES)))
def test_a_chunk_is_answered_once_it_is_right_and_never_before(bench: PumpBench, index: int) -> None:
    blob = bench.serve(CONTENT, is_verified=False)
    start, size_bytes = blob.table.offset(index), CONTENT.chunks[index].size_bytes
    reads = [(start, size_bytes), (start, 1), (start + size_bytes - 1, 1), (max(0, start - 10), MIB)]
    block = (blob.places[index] & ((1 << 33) - 1)) >> 1
    with bench.pack(1).open("r+b") as pack:
        for damaged in {0, size_bytes // 2, size_bytes - 1}:
            at = block * ALIGN_BYTES + damaged
            os.pwrite(pack.fileno(), bytes([CONTENT.bodies[index][damaged] ^ 1]), at)
            assert [bench.read(*read) for read in reads] == [None] * len(reads)
            assert not blob.places[index] & VERIFIED
            os.pwrite(pack.fileno(), CONTENT.bodies[index][damaged : damaged + 1], at)

    for offset, wanted in reads:
        blob.places[index] &= ~VERIFIED
        assert bench.read(offset, wanted) == CONTENT.blob[offset : offset + wanted]
        assert blob.places[index] & VERIFIED


def test_parts_of_one_chunk_that_are_wanted_at_once_are_all_answered(bench: PumpBench) -> None:
    content = BlobContent.of_sizes([MIB, 700_000], seed=5)
    blob = bench.serve(content, is_verified=False)
    offsets = range(0, len(content.blob), 50_000)
    packets = [read_request(offset, 60_000, unique=offset + 1) for offset in offsets]
    answers = bench.ask_at_once(packets)
    assert answers == [content.blob[offset : offset + 60_000] for offset in offsets]
    assert all(place & VERIFIED for place in blob.places)


def test_parts_of_a_damaged_chunk_that_are_wanted_at_once_are_all_left_to_python(bench: PumpBench) -> None:
    content = BlobContent.of_sizes([MIB], seed=5)
    bench.serve(content, is_verified=False)
    with bench.pack(1).open("r+b") as pack:
        os.pwrite(pack.fileno(), bytes([content.bodies[0][-1] ^ 1]), ALIGN_BYTES + MIB - 1)
    packets = [read_request(offset, 60_000, unique=offset + 1) for offset in range(0, MIB, 50_000)]
    assert bench.ask_at_once(packets) == [None] * len(packets)


@pytest.mark.parametrize("size_bytes", [0, ALIGN_BYTES, 1 << 20])
def test_a_pack_that_ends_too_early_is_left_to_python(bench: PumpBench, size_bytes: int) -> None:
    blob = bench.serve(CONTENT)
    os.truncate(bench.pack(1), size_bytes)
    assert bench.read(blob.table.offset(len(MIXED_SIZES) - 1), 4096) is None


def test_a_pack_that_is_gone_is_left_to_python_and_not_kept_open(bench: PumpBench) -> None:
    bench.serve(CONTENT)
    assert bench.read(0, 100) == CONTENT.blob[:100]
    bench.pack(1).unlink()
    assert bench.read(0, 100) is None
    assert not bench.open_packs()


def test_a_pack_that_is_no_file_is_left_to_python(bench: PumpBench, tmp_path: Path) -> None:
    bench.serve(CONTENT)
    bench.pack(1).rename(tmp_path / "elsewhere")
    bench.pack(1).symlink_to(tmp_path / "elsewhere")
    assert bench.read(0, 100) is None
    bench.pack(1).unlink()
    os.mkfifo(bench.pack(1))
    assert bench.read(0, 100) is None


def test_more_packs_are_read_than_are_kept_open(bench: PumpBench) -> None:
    content = BlobContent.of_sizes([5000])
    nodes = range(NODE, NODE + 300)
    for pack, node in enumerate(nodes, start=1):
        bench.serve(content, node=node, pack=pack)
    assert all(bench.read(0, 5000, node) == content.bodies[0] for node in itertools.chain(nodes, nodes))


def test_the_first_read_of_a_chunk_is_noticed(bench: PumpBench) -> None:
    blob = bench.serve(CONTENT)
    assert bench.read(blob.table.offset(2), 3 * 4096) is not None  # three small chunks
    assert bench.pump.wait_until_followed(60)
    blob.touched[2:5] = b"\1\1\1"
    assert bench.read(blob.table.offset(3), 4096) is not None
    assert bench.read(blob.table.offset(4), 2 * 4096 + 1) is not None
    assert bench.pump.wait_until_followed(60)
    assert bench.notices == [Notice(NODE, 2, 4), Notice(NODE, 4, 5)]
    assert list(blob.answered) == [3, 3 * 4096 + 4096 + 2 * 4096 + 1]


def test_a_detached_blob_is_left_to_python(bench: PumpBench) -> None:
    bench.serve(CONTENT)
    bench.pump.detach(NODE)
    bench.pump.detach(NODE)
    assert bench.read(0, 100) is None
    bench.serve(CONTENT)
    assert bench.read(0, 100) == CONTENT.blob[:100]


def test_a_node_that_is_taken_and_a_blob_that_cannot_be_are_refused(
    bench: PumpBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.serve(CONTENT)
    bench.serve(BlobContent.of_sizes([9000], seed=2), pack=2)
    assert "File exists" in caplog.text
    assert bench.read(0, 9000) == CONTENT.blob[:9000]
    odd = shared(CONTENT, NODE + 1)
    odd.table.starts[3] = odd.table.starts[2]
    bench.pump.attach(odd)
    assert "Invalid argument" in caplog.text


def test_an_empty_blob_has_nothing_to_answer(bench: PumpBench) -> None:
    bench.pump.attach(shared(BlobContent(())))
    assert bench.read(0, 100) is None


def test_blobs_come_and_go_under_readers(bench: PumpBench) -> None:
    bench.serve(CONTENT)
    content, ended = BlobContent.of_sizes([70_000] * 30, seed=3), threading.Event()

    def come_and_go() -> None:
        for _ in range(100):
            bench.serve(content, node=NODE + 1, pack=2)
            bench.pump.detach(NODE + 1)
        ended.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    while not ended.is_set():
        assert bench.read(0, MIB, NODE + 1) in (None, content.blob[:MIB])
        assert bench.read(0, MIB) == CONTENT.blob[:MIB]
    thread.join()


@pytest.mark.parametrize("bits", [VERIFIED, 0])
def test_chunks_that_move_while_they_are_read_are_read_right(bench: PumpBench, bits: int) -> None:
    """In one pack they lie as in the blob, in the other with foreign bytes between them."""
    content = BlobContent.of_sizes([4096] * 16, seed=4)
    together, apart = array("q"), array("q")
    with bench.pack(2).open("wb") as one, bench.pack(3).open("wb") as other:
        for body in content.bodies:
            together.append(place_word(Location(2, one.tell())) | bits)
            apart.append(place_word(Location(3, other.tell())) | bits)
            one.write(body)
            other.write(body + b"\xee" * ALIGN_BYTES)
    blob = shared(content)
    blob.places[:] = together
    bench.pump.attach(blob)
    with moving(blob, apart, together):
        for _ in range(3000):
            assert bench.read(0, len(content.blob)) == content.blob


@pytest.mark.parametrize("size_bytes", [4096, 300_000])
def test_a_place_that_changes_while_it_is_hashed_is_not_marked_for_what_lay_elsewhere(
    bench: PumpBench, size_bytes: int
) -> None:
    content = BlobContent.of_sizes([size_bytes], seed=6)
    bench.pack(2).write_bytes(content.bodies[0])
    bench.pack(3).write_bytes(bytes(byte ^ 1 for byte in content.bodies[0]))
    right, wrong = place_word(Location(2, 0)), place_word(Location(3, 0))
    blob = shared(content)
    bench.pump.attach(blob)
    with moving(blob, [right], [wrong]) as seen:
        for number in range(2000):
            offset = number % 2  # the whole chunk, or a part of it
            assert bench.read(offset, size_bytes) in (None, content.blob[offset : offset + size_bytes])
    assert seen <= {NOWHERE, right, right | VERIFIED, wrong}


@contextmanager
def moving(blob: SharedBlob, *turns: Sequence[int]) -> Iterator[set[int]]:
    """Meanwhile the first chunks' places become these, in turn, again and again. Gives what they were."""
    ended, seen = threading.Event(), set()

    def move() -> None:
        while not ended.is_set():
            for places in turns:
                for index, place in enumerate(places):
                    seen.add(blob.places[index])
                    blob.places[index] = place

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield seen
    finally:
        ended.set()
        mover.join()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sanitizers", "requests"),
    [("address,undefined", 20_000), pytest.param("thread", 4_000, marks=pytest.mark.nightly)],
)
def test_it_keeps_its_promises_under_sanitizers(tmp_path: Path, sanitizers: str, requests: int) -> None:
    """Random blobs, packs that change, hostile requests: by a driver in C++, which sees errors of memory."""
    driver = build(tmp_path, "fuse_pump", "fuzz_pump", sanitizers)
    # ThreadSanitizer of GCC 12 knows where memory lies without randomization only.
    told = run(["setarch", "--addr-no-randomize", driver, tmp_path / "packs", "1", str(requests)], tmp_path)
    answered, handed_on = map(int, told.split())
    assert answered > requests / 20
    assert handed_on > requests / 20


@pytest.mark.parametrize("is_verified", [True, False])
def test_a_long_read_of_what_is_not_in_page_cache_leaves_nothing_there(is_verified: bool) -> None:
    content = BlobContent.of_sizes([MIB] * 4)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # on a disk
        bench = PumpBench(Path(folder, "packs"))
        try:
            bench.serve(content, is_verified=is_verified)
            (pack,) = Path(folder, "packs").iterdir()
            forget_pages(pack)

            assert bench.read(MIB, MIB) == content.bodies[1]

            assert cached_bytes(pack) == 0
        finally:
            bench.end()
