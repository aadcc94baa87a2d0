"""The pump answers what it can, and hands on the rest unchanged: each request one of both, once."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import tempfile
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.image.lazy.blob_content import MIXED_SIZES, BlobContent, cached_bytes, forget_pages
from tests.image.lazy.pump_bench import NODE, PumpBench, SharedBlob, read_request, request_of

from glowplug.chunks.chunk import ALIGN_BYTES
from glowplug.chunks.ssd_packs import Location
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy.blob import NOWHERE, VERIFIED, place_word
from glowplug.image.lazy.fuse_protocol import MAX_READ_BYTES, Opcode
from glowplug.image.lazy.fuse_pump import Notice

CONTENT = BlobContent.of_sizes(MIXED_SIZES)
MIB = 1 << 20
NATIVE = Path(__file__).parents[3] / "native"
FUZZ_TIMEOUT_S = 400.0


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
def test_a_read_is_answered_right_if_all_of_it_is_here_and_verified(
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
            if wanted is None or wanted & (absent | unverified):
                assert answer is None
            else:
                assert answer == CONTENT.blob[offset:end]
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


def test_a_hole_is_never_answered_as_zeros(bench: PumpBench) -> None:
    blob = bench.serve(CONTENT)
    size_bytes = bench.pack(1).stat().st_size
    os.truncate(bench.pack(1), 0)
    os.truncate(bench.pack(1), size_bytes)
    for index in range(len(blob.table)):
        assert bench.read(blob.table.offset(index), CONTENT.chunks[index].size_bytes) is None
    assert bench.read(0, MIB) is None


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
    odd = SharedBlob(ChunkTable(CONTENT.packed_table), NODE + 1)
    odd.table.starts[3] = odd.table.starts[2]
    bench.pump.attach(odd)
    assert "Invalid argument" in caplog.text


def test_an_empty_blob_has_nothing_to_answer(bench: PumpBench) -> None:
    bench.pump.attach(SharedBlob(ChunkTable(ChunkTable.pack([]))))
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


def test_chunks_that_move_while_they_are_read_are_read_right(bench: PumpBench) -> None:
    """In one pack they lie as in the blob, in the other with foreign bytes between them."""
    content, ended = BlobContent.of_sizes([4096] * 16, seed=4), threading.Event()
    together, apart = array("q"), array("q")
    with bench.pack(2).open("wb") as one, bench.pack(3).open("wb") as other:
        for body in content.bodies:
            together.append(place_word(Location(2, one.tell())) | VERIFIED)
            apart.append(place_word(Location(3, other.tell())) | VERIFIED)
            one.write(body)
            other.write(body + b"\xee" * ALIGN_BYTES)
    blob = SharedBlob(ChunkTable(content.packed_table))
    blob.places[:] = together
    bench.pump.attach(blob)

    def move() -> None:
        while not ended.is_set():
            for places in (apart, together):
                for index in range(len(places)):
                    blob.places[index] = places[index]

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(3000):
            assert bench.read(0, len(content.blob)) == content.blob
    finally:
        ended.set()
        mover.join()


@pytest.mark.timeout(900)
def test_it_keeps_its_promises_under_sanitizers(tmp_path: Path) -> None:
    """Random blobs, packs that change, hostile requests: by a driver in C++, where memory errors are seen."""
    driver = tmp_path / "fuzz_pump"
    sources = [NATIVE / "fuse_pump.cpp", NATIVE / "fuzz_pump.cpp"]
    flags = [
        "-std=c++20",
        "-O1",
        "-g",
        "-pthread",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    subprocess.run(["g++", *flags, "-o", driver, *sources], check=True, timeout=FUZZ_TIMEOUT_S)
    ran = subprocess.run(
        [driver, tmp_path / "packs", "1", "20000"],
        capture_output=True, text=True, timeout=FUZZ_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    answered, handed_on = map(int, ran.stdout.split())
    assert answered > 1000
    assert handed_on > 1000


def test_a_long_read_of_what_is_not_in_page_cache_leaves_nothing_there() -> None:
    content = BlobContent.of_sizes([MIB] * 4)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # on a disk
        bench = PumpBench(Path(folder, "packs"))
        try:
            bench.serve(content)
            (pack,) = Path(folder, "packs").iterdir()
            forget_pages(pack)

            assert bench.read(MIB, MIB) == content.bodies[1]

            assert cached_bytes(pack) == 0
        finally:
            bench.end()
