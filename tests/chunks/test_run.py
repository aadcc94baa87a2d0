"""Chunks that came together are checked and written together, and never but as what they are."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chunks.content import contents, run_of
from tests.native_driver import build, run
from typing_extensions import Buffer

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES, Chunk
from glowplug.chunks.run import Run

BODIES = contents([1, 1024, 4095, 4096, 4097, 70_000])


@given(
    st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=20, unique=True),
    st.sets(st.integers(0, 19)),
    st.sets(st.integers(0, 19)),
)
def test_those_that_are_not_what_they_are_called_are_wrong(
    bodies: list[bytes], damaged: set[int], displaced: set[int]
) -> None:
    right = run_of(bodies)
    data, offsets = bytearray(right.data), list(right.offsets)
    for number in range(len(bodies)):
        if number in damaged:
            data[offsets[number] + len(bodies[number]) // 2] ^= 1
        if number in displaced:
            offsets[number] = len(data) - len(bodies[number]) + 1
    run = Run(right.chunks, offsets, data)
    assert right.wrong() == []
    assert run.wrong() == sorted((damaged | displaced) & set(range(len(bodies))))


@pytest.mark.parametrize("offset", [0, 10, 1 << 40, (1 << 64) - 1])
def test_what_is_not_wholly_within_the_data_is_wrong_and_cannot_be_written(
    tmp_path: Path, offset: int
) -> None:
    run = Run([Chunk.of(b"0123456789a")], [offset], b"0123456789")
    assert run.wrong() == [0]
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Invalid argument"):
        run.write(file.fileno(), 0)
    assert (tmp_path / "file").stat().st_size == 0


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: memoryview(b"<" + data)[1:], mapped]
)
def test_any_memory_will_do_and_is_let_go_of(kind: Callable[[bytes], Buffer]) -> None:
    together = run_of(BODIES)
    data = kind(bytes(together.data))
    run = Run(together.chunks, together.offsets, data)
    assert run.wrong() == []
    assert [bytes(run.body(number)) for number in range(len(BODIES))] == BODIES
    if isinstance(data, bytearray):
        data.clear()  # refused while somebody has its address
    if isinstance(data, mmap.mmap):
        data.close()


def test_memory_that_is_not_in_one_piece_is_refused() -> None:
    with pytest.raises(BufferError):
        Run.of(Chunk.of(b"024"), memoryview(b"012345")[::2]).wrong()


def test_they_are_written_one_behind_the_other_in_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(b"x" * 3 * ALIGN_BYTES)
    run = run_of(BODIES)
    with path.open("r+b") as file:
        run.write(file.fileno(), 2 * ALIGN_BYTES)
    wanted = b"".join(body + bytes(-len(body) % ALIGN_BYTES) for body in BODIES)
    assert path.read_bytes() == b"x" * 2 * ALIGN_BYTES + wanted
    assert run.room_bytes == len(wanted)


def test_more_than_one_system_call_takes_are_written(tmp_path: Path) -> None:
    bodies = contents([10] * 1100)
    path = tmp_path / "pack"
    with path.open("wb") as file:
        run_of(bodies).write(file.fileno(), 0)
    assert path.read_bytes() == b"".join(body.ljust(ALIGN_BYTES, b"\0") for body in bodies)


def test_what_the_kernel_refuses_is_raised(tmp_path: Path) -> None:
    (tmp_path / "pack").touch()
    file = os.open(tmp_path / "pack", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            run_of(BODIES).write(file, 0)
    finally:
        os.close(file)


def test_parts_have_all_of_it_in_order_and_each_as_much_as_may_be() -> None:
    run = run_of(contents([CHUNK_BYTES, 5, 5, CHUNK_BYTES - 2 * ALIGN_BYTES, 1, CHUNK_BYTES]))
    parts = list(run.parts(CHUNK_BYTES))
    assert [len(part.chunks) for part in parts] == [1, 3, 1, 1]
    assert [chunk for part in parts for chunk in part.chunks] == list(run.chunks)
    assert [offset for part in parts for offset in part.offsets] == list(run.offsets)
    assert list(run.only([]).parts(CHUNK_BYTES)) == []


@pytest.mark.timeout(900)
def test_it_keeps_its_promises_under_sanitizers(tmp_path: Path) -> None:
    """Short and interrupted writes, a full disk, chunks that point anywhere: by a driver in C++."""
    driver = build(tmp_path, "chunk_run", "fuzz_run", "address,undefined")
    right, wrong, unwritten = map(int, run([driver, tmp_path, "1", "200"], tmp_path).split())
    assert right > wrong > 200
    assert 20 < unwritten < 180
