"""The two buffers of each thread: none is overwritten before the device has fetched it.

There is no GPU here. The device is a **fake** that copies nothing before somebody waits for it, which is as
late as a real one may be: order and safety are tested, never speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.weights.files import tensor, write_shards
from tests.weights.test_reading import CONTENT, SHARDS

from glowplug.weights.files import find_weights
from glowplug.weights.plan import Piece, plan_blocks
from glowplug.weights.reading import BlockReader, Reading
from glowplug.weights.staging import BUFFERS_PER_THREAD, StagedLanding


class LateCopier:
    """Copies to ``memory`` only when it is waited for."""

    def __init__(self, memory: list[bytearray], made: list[LateCopier]) -> None:
        self.memory = memory
        self.buffers = 0
        self.waited: list[int] = []
        self._begun: list[tuple[memoryview, int, Piece]] = []
        self._ended = 0
        made.append(self)

    def buffer(self, size_bytes: int) -> tuple[Any, memoryview]:
        self.buffers += 1
        view = memoryview(bytearray(size_bytes))
        return view, view

    def copy(self, buffer: Any, start: int, piece: Piece) -> None:
        self._begun.append((buffer, start, piece))

    def mark(self) -> int:
        return len(self._begun)

    def wait(self, mark: int) -> None:
        self.waited.append(mark)
        for buffer, start, piece in self._begun[self._ended : mark]:
            target = memoryview(self.memory[piece.tensor])
            target[piece.offset : piece.offset + piece.length] = buffer[start : start + piece.length]
        self._ended = max(self._ended, mark)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block_bytes", [100, 4096, 1 << 20])
@pytest.mark.parametrize("ahead_bytes", [1, 1 << 30])
def test_a_device_that_copies_as_late_as_it_may_gets_every_byte(
    tmp_path: Path, threads: int, block_bytes: int, ahead_bytes: int
) -> None:
    weights = find_weights(write_shards(tmp_path / "model", SHARDS))
    chosen = weights.chosen()
    sizes = [entry.size_bytes for _, entry in chosen]
    memory = [bytearray(size) for size in sizes]
    copiers: list[LateCopier] = []
    landing = StagedLanding(lambda: LateCopier(memory, copiers), block_bytes)
    paths = [file.path for file in weights.files]
    reading = Reading(threads, block_bytes, ahead_bytes)
    with BlockReader(paths, sizes, plan_blocks(chosen, block_bytes), landing, reading) as reader:
        for number, (_, entry) in enumerate(chosen):
            reader.wait(number)
            assert bytes(memory[number]) == CONTENT[entry.name]  # whole when it is said to be
    assert len(copiers) <= threads
    assert all(copier.buffers <= BUFFERS_PER_THREAD for copier in copiers)


def test_a_thread_reads_the_next_block_before_it_waits_for_the_copy_of_the_last(tmp_path: Path) -> None:
    weights = find_weights(write_shards(tmp_path / "model", [{"a": tensor("U8", [300])}]))
    chosen = weights.chosen()
    made: list[LateCopier] = []
    lander = StagedLanding(lambda: LateCopier([bytearray(300)], made), 100).lander()
    first, second, third = plan_blocks(chosen, 100)
    with weights.files[0].path.open("rb") as file:
        assert lander.take(file.fileno(), first) == []
        assert lander.take(file.fileno(), second) == []
        assert made[0].waited == []
        assert lander.take(file.fileno(), third) == [first]
        assert lander.drain() == [second, third]
    assert bytes(made[0].memory[0]) == chosen_content(weights)


def chosen_content(weights: Any) -> bytes:
    (_, entry) = weights.chosen()[0]
    return bytes(weights.files[0].path.read_bytes()[entry.begin : entry.end])
