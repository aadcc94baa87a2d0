"""Blocks cover exactly what is wanted; threads bring every byte, in bounded memory; what fails is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.weights.files import tensor, write, write_shards

from glowplug.types.errors import DeadlineExceeded, InvalidInput, Unavailable
from glowplug.weights.files import Weights, find_weights
from glowplug.weights.header import Entry
from glowplug.weights.plan import MAX_PIECES, Block, plan_blocks
from glowplug.weights.reading import BlockReader, HostLanding, Landing, Reading

SHARDS = [
    {f"s{shard}.t{number}": tensor("U8", [size], seed=size) for number, size in enumerate(sizes)}
    for shard, sizes in enumerate([[70_000, 1, 0, 333], [5] * 40, [200_000]])
]
CONTENT = {name: content for shard in SHARDS for name, (_, _, content) in shard.items()}

layouts = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.booleans()), max_size=30)


def laid_out(sizes: list[tuple[int, int, bool]]) -> list[tuple[int, Entry]]:
    """Tensors of up to three files, one behind the other; those with False are not wanted."""
    ends = [8, 8, 8]
    tensors = []
    for number, (file, size, is_wanted) in enumerate(sorted(sizes, key=lambda one: one[0])):
        if is_wanted:
            tensors.append((file, Entry(f"t{number}", "U8", (size,), ends[file], ends[file] + size)))
        ends[file] += size
    return tensors


@given(layouts, st.integers(1, 64))
def test_blocks_cover_every_wanted_byte_once_and_no_other(
    sizes: list[tuple[int, int, bool]], block_bytes: int
) -> None:
    tensors = laid_out(sizes)
    blocks = plan_blocks(tensors, block_bytes)
    read: list[tuple[int, int, int]] = []
    for block in blocks:
        assert 0 < block.length <= block_bytes
        assert block.length == sum(piece.length for piece in block.pieces)
        at = block.offset
        for piece in block.pieces:
            file, entry = tensors[piece.tensor]
            assert (file, entry.begin + piece.offset) == (block.file, at)
            read += [(piece.tensor, piece.offset + n, at + n) for n in range(piece.length)]
            at += piece.length
    wanted = [
        (n, at, entry.begin + at) for n, (_, entry) in enumerate(tensors) for at in range(entry.size_bytes)
    ]
    assert read == wanted


def test_a_block_has_no_more_pieces_than_the_kernel_takes_at_once() -> None:
    blocks = plan_blocks(laid_out([(0, 1, True)] * (2 * MAX_PIECES + 1)), 1 << 20)
    assert [len(block.pieces) for block in blocks] == [MAX_PIECES, MAX_PIECES, 1]


class Host:
    """Tensors as bytearrays, and a reader that fills them."""

    def __init__(
        self, source: Path | Weights, reading: Reading, wrap: Callable[[Landing], Landing] = lambda x: x
    ):
        weights = source if isinstance(source, Weights) else find_weights(source)
        self.chosen = weights.chosen()
        sizes = [entry.size_bytes for _, entry in self.chosen]
        self.memory = [bytearray(size) for size in sizes]
        landing = wrap(HostLanding(lambda number: memoryview(self.memory[number])))
        blocks = plan_blocks(self.chosen, reading.block_bytes)
        self.reader = BlockReader([file.path for file in weights.files], sizes, blocks, landing, reading)

    def read(self) -> dict[str, bytes]:
        with self.reader as reader:
            found = {}
            for number, (_, entry) in enumerate(self.chosen):
                reader.wait(number)
                found[entry.name] = bytes(self.memory[number])
            return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("model"), SHARDS)


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("block_bytes", [1, 64, 4096, 1 << 20])
@pytest.mark.parametrize("ahead_bytes", [1, 10_000, 1 << 30])
def test_every_byte_arrives(model: Path, threads: int, block_bytes: int, ahead_bytes: int) -> None:
    if block_bytes == 1:
        model = write(model.parent / f"small-{threads}-{ahead_bytes}.safetensors", SHARDS[1])
    with no_thread_left():
        found = Host(model, Reading(threads, block_bytes, ahead_bytes)).read()
    assert found == {name: CONTENT[name] for name in found}
    assert len(found) == (40 if block_bytes == 1 else len(CONTENT))


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_layout_arrives(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, data: st.DataObject
) -> None:
    tensors = {f"t{n}": tensor("U8", [size], seed + n) for n, size in enumerate(sizes)}
    file = write(tmp_path_factory.getbasetemp() / "layout.safetensors", tensors)
    draw = data.draw
    reading = Reading(draw(st.integers(1, 4)), draw(st.integers(1, 200)), draw(st.integers(1, 500)))
    assert Host(file, reading).read() == {name: content for name, (_, _, content) in tensors.items()}


class Watched:
    """A landing that can hold its threads up, and notes how many bytes were begun."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.begun_bytes = 0
        self.may_go_on = threading.Event()
        self.lock = threading.Lock()
        self.error: Exception | None = None

    def lander(self) -> Any:
        return self

    def take(self, descriptor: int, block: Block) -> list[Block]:
        with self.lock:
            self.begun_bytes += block.length
        if self.error is not None:
            raise self.error
        assert self.may_go_on.wait(30)
        return list(self._inner.take(descriptor, block))

    def drain(self) -> list[Block]:
        return []


def watched(source: Path, reading: Reading) -> tuple[Host, Watched]:
    made: list[Watched] = []

    def wrap(landing: Landing) -> Landing:
        made.append(Watched(landing))
        return made[0]

    return Host(source, reading, wrap), made[0]


def test_no_more_is_read_ahead_than_allowed(tmp_path: Path) -> None:
    file = write(tmp_path / "even.safetensors", {f"t{n}": tensor("U8", [100], n) for n in range(50)})
    host, landing = watched(file, Reading(4, 100, 500))
    landing.may_go_on.set()
    with host.reader as reader:
        for number in range(50):
            reader.wait(number)
            # What was taken, what may lie ahead, and what each thread may have begun for the next one.
            assert landing.begun_bytes <= (number + 1) * 100 + 500 + 4 * 100
    assert landing.begun_bytes == 5000


def test_a_read_that_hangs_ends_the_wait_with_the_place(model: Path) -> None:
    host, landing = watched(model, Reading(2, 4096, stall_s=0.05))
    with host.reader as reader:
        with pytest.raises(DeadlineExceeded, match="model-0000") as refused:
            reader.wait(0)
        landing.may_go_on.set()
    assert refused.value.details["stage"] == "weights"


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (OSError(5, "Input/output error"), Unavailable, "cannot be read at byte"),
        (EOFError(), InvalidInput, "became shorter"),
        (RuntimeError("the device is gone"), RuntimeError, "the device is gone"),
    ],
)
def test_what_a_thread_meets_is_raised_where_somebody_waits(
    model: Path, raised: Exception, expected: type[Exception], words: str
) -> None:
    host, landing = watched(model, Reading(3, 4096))
    landing.error = raised
    with no_thread_left(), pytest.raises(expected, match=words):
        host.read()


def test_a_file_that_becomes_shorter_meanwhile_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {"a": tensor("U8", [100_000])})
    host = Host(find_weights(file), Reading(2, 4096))
    with file.open("r+b") as shorter:
        shorter.truncate(50_000)
    with no_thread_left(), pytest.raises(InvalidInput, match="became shorter"):
        host.read()


def test_a_file_that_goes_away_meanwhile_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", {"a": tensor("U8", [100])})
    host = Host(find_weights(file), Reading(2, 4096))
    file.unlink()
    with no_thread_left(), pytest.raises(Unavailable, match="cannot be read"):
        host.read()


def test_who_stops_in_the_middle_leaves_no_thread(model: Path) -> None:
    with no_thread_left(), Host(model, Reading(4, 64, 100)).reader as reader:
        reader.wait(0)


@pytest.mark.parametrize(
    "fields",
    [{"threads": -1}, {"threads": 1.5}, {"block_bytes": 0}, {"ahead_bytes": True}, {"stall_s": 0},
     {"stall_s": float("inf")}],
)  # fmt: skip
def test_impossible_readings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Reading(**fields)
