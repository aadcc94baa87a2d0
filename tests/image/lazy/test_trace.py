"""Access traces: kept in order, and never believed."""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.chunks.chunk import Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.lazy import trace
from glowplug.types.errors import InvalidInput

COMMAND = ["/usr/bin/python3", "-c", "import torch"]
KEY = trace.key_of(COMMAND)


def make_table(count: int) -> ChunkTable:
    return ChunkTable(ChunkTable.pack(Chunk(i.to_bytes(32, "little"), 1 + i % 5000) for i in range(count)))


TABLE = make_table(100)


def written(folder: Path) -> Path:
    return folder / "traces" / f"{KEY}.json"


def packed(indices: list[int]) -> str:
    return base64.b64encode(zstandard.compress(array("I", indices).tobytes())).decode()


def put(folder: Path, content: dict[str, Any] | bytes) -> None:
    (folder / "traces").mkdir(exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    written(folder).write_bytes(data)


def test_a_trace_comes_back_in_the_order_it_was_recorded(tmp_path: Path) -> None:
    trace.save(tmp_path, KEY, COMMAND, [5, 3, 99, 0])

    loaded = trace.load(tmp_path, KEY, TABLE)

    assert loaded is not None
    assert list(loaded.order) == [5, 3, 99, 0]
    assert loaded.program == "python3"


@given(order=st.lists(st.integers(0, 999), unique=True, max_size=300))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=50,
    deadline=None,
)
def test_any_order_comes_back(tmp_path: Path, order: list[int]) -> None:
    trace.save(tmp_path, KEY, COMMAND, order)

    loaded = trace.load(tmp_path, KEY, make_table(1000))

    assert loaded is not None
    assert list(loaded.order) == order


def test_a_chunk_that_was_recorded_twice_counts_at_its_first_use(tmp_path: Path) -> None:
    trace.save(tmp_path, KEY, COMMAND, [7, 1, 7, 2])

    loaded = trace.load(tmp_path, KEY, TABLE)

    assert loaded is not None
    assert list(loaded.order) == [7, 1, 2]


def test_arguments_of_the_command_are_not_written_down(tmp_path: Path) -> None:
    path = trace.save(tmp_path, KEY, ["serve", "--token", "hunter2"], [1])

    assert b"hunter2" not in path.read_bytes()


def test_equal_commands_have_equal_keys_and_others_do_not() -> None:
    assert trace.key_of(["a", "b"]) == trace.key_of(("a", "b"))
    assert trace.key_of(["a b"]) != trace.key_of(["a", "b"])
    assert trace.key_of([]) != trace.key_of([""])


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n"])
def test_a_key_that_is_no_hash_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput):
        trace.save(tmp_path, key, COMMAND, [1])
    with pytest.raises(InvalidInput):
        trace.load(tmp_path, key, TABLE)
    assert list(tmp_path.iterdir()) == []


def test_there_may_be_no_trace(tmp_path: Path) -> None:
    assert trace.load(tmp_path, KEY, TABLE) is None
    assert trace.best(tmp_path, COMMAND, TABLE) is None


GOOD: dict[str, Any] = {"version": 1, "program": "x", "chunks": 3, "order": packed([1, 2, 3])}


def test_the_written_format_is_read(tmp_path: Path) -> None:
    put(tmp_path, GOOD)

    loaded = trace.load(tmp_path, KEY, TABLE)

    assert loaded is not None
    assert list(loaded.order) == [1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b"[]",
        b"\xff\xfe",
        GOOD | {"version": 2},
        GOOD | {"program": 5},
        GOOD | {"chunks": 2},
        GOOD | {"chunks": 4},
        GOOD | {"chunks": -1},
        GOOD | {"chunks": True},
        GOOD | {"chunks": 10**30},
        GOOD | {"chunks": "3"},
        GOOD | {"order": None},
        GOOD | {"order": "%%%"},
        GOOD | {"order": base64.b64encode(b"not zstd").decode()},
        GOOD | {"order": packed([1, 2, 100])},
        GOOD | {"order": packed([1, 2, 2])},
        GOOD | {"order": packed([1, 2, 3])[:-8]},
        {"version": 1},
    ],
)
def test_a_damaged_trace_is_logged_and_ignored(
    tmp_path: Path, content: dict[str, Any] | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, content)

    with caplog.at_level(logging.WARNING):
        assert trace.load(tmp_path, KEY, TABLE) is None

    assert "is ignored" in caplog.text


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = trace.save(tmp_path, KEY, COMMAND, range(50))
    fields = json.loads(path.read_bytes())
    frame = bytearray(base64.b64decode(fields["order"]))
    frame[len(frame) // 2] ^= 1
    put(tmp_path, fields | {"order": base64.b64encode(bytes(frame)).decode()})

    assert trace.load(tmp_path, KEY, TABLE) is None


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = base64.b64encode(zstandard.compress(bytes(1 << 28))).decode()
    put(tmp_path, GOOD | {"order": bomb})

    assert trace.load(tmp_path, KEY, TABLE) is None


def test_a_file_longer_than_any_trace_of_the_image_is_not_read_whole(tmp_path: Path) -> None:
    put(tmp_path, json.dumps(GOOD).encode() + b" " * (1 << 20))

    assert trace.load(tmp_path, KEY, TABLE) is None


def test_what_is_no_regular_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    os.mkfifo(written(tmp_path))
    assert trace.load(tmp_path, KEY, TABLE) is None

    written(tmp_path).unlink()
    written(tmp_path).mkdir()
    assert trace.load(tmp_path, KEY, TABLE) is None

    written(tmp_path).rmdir()
    written(tmp_path).symlink_to("/dev/zero")
    assert trace.load(tmp_path, KEY, TABLE) is None


@given(data=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        trace.parse(data, TABLE)


def test_the_longest_possible_trace_is_accepted(tmp_path: Path) -> None:
    table = make_table(20_000)
    order = sorted(range(20_000), key=lambda i: i * 7919 % 20_011)
    trace.save(tmp_path, KEY, COMMAND, order)

    loaded = trace.load(tmp_path, KEY, table)

    assert loaded is not None
    assert list(loaded.order) == order


def test_the_best_trace_is_the_commands_own(tmp_path: Path) -> None:
    trace.save(tmp_path, trace.key_of(["other"]), ["other"], [9])
    trace.save(tmp_path, KEY, COMMAND, [1, 2])

    best = trace.best(tmp_path, COMMAND, TABLE)

    assert best is not None
    assert list(best.order) == [1, 2]


def test_without_its_own_trace_a_command_gets_the_union_of_the_others(tmp_path: Path) -> None:
    trace.save(tmp_path, trace.key_of(["one"]), ["one"], [1, 2, 3, 4])
    trace.save(tmp_path, trace.key_of(["two"]), ["two"], [1, 9])
    put(tmp_path, b"damaged")
    (tmp_path / "traces" / "stray.txt").write_text("x")

    best = trace.best(tmp_path, ["unknown"], TABLE)

    assert best is not None
    assert sorted(best.order) == [1, 2, 3, 4, 9]


def test_a_merge_keeps_early_what_any_of_them_reads_early() -> None:
    one = trace.Trace("one", array("I", [1, 2, 3, 4]))
    two = trace.Trace("two", array("I", [9, 1]))

    assert list(trace.merge([one, two]).order) == [1, 9, 2, 3, 4]


def test_the_layout_begins_with_the_traced_chunks() -> None:
    hot = trace.order_for_layout(trace.Trace("x", array("I", [4, 2])), TABLE)

    assert hot == [TABLE[4], TABLE[2]]


def test_a_reader_never_sees_half_of_a_replacement(tmp_path: Path) -> None:
    orders = [list(range(100)), list(reversed(range(100)))]
    trace.save(tmp_path, KEY, COMMAND, orders[0])
    is_over = threading.Event()

    def replace_again_and_again() -> None:
        for turn in range(40):
            trace.save(tmp_path, KEY, COMMAND, orders[turn % 2])
        is_over.set()

    writer = threading.Thread(target=replace_again_and_again)
    writer.start()
    while not is_over.is_set():
        loaded = trace.load(tmp_path, KEY, TABLE)
        assert loaded is not None
        assert list(loaded.order) in orders
    writer.join()
    assert [path.name for path in (tmp_path / "traces").iterdir()] == [f"{KEY}.json"]
