"""Memory of answers: used again, but never while anybody looks at it, and not kept for ever."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from glowplug.chunks.http_buffers import (
    BUFFER_BYTES,
    MAX_BUFFERS,
    MAX_IDLE_BUFFERS,
    SMALLEST_BYTES,
    ReceiveBuffers,
)

SIZE = SMALLEST_BYTES


def memory_of(view: memoryview) -> object:
    """What the view is of."""
    return view.obj


def test_memory_is_used_again_once_nobody_looks_at_it() -> None:
    buffers = ReceiveBuffers()
    with buffers.kept():
        first = buffers.take(SIZE)
        memory = memory_of(first)
        del first
        assert memory_of(buffers.take(2 * SIZE)) is memory


def test_a_slice_of_it_is_enough_to_keep_it() -> None:
    buffers = ReceiveBuffers()
    with buffers.kept():
        first = buffers.take(SIZE)
        first[:4] = b"mine"
        part = first[:4]
        del first
        other = buffers.take(SIZE)
        other[:4] = b"take"
        assert bytes(part) == b"mine"


@pytest.mark.parametrize("size_bytes", [0, 1, SIZE - 1, SIZE, BUFFER_BYTES, BUFFER_BYTES + 1])
def test_it_is_as_long_as_was_asked_for(size_bytes: int) -> None:
    buffers = ReceiveBuffers()
    with buffers.kept():
        assert len(buffers.take(size_bytes)) == size_bytes


def test_after_a_rush_most_of_it_is_let_go() -> None:
    buffers = ReceiveBuffers()
    with buffers.kept():
        with buffers.kept():
            held = [buffers.take(SIZE) for _ in range(MAX_BUFFERS)]
            memories = [memory_of(view) for view in held]
            held.clear()
        held = [buffers.take(SIZE) for _ in range(MAX_BUFFERS)]
        assert set(map(id, memories)) == {id(memory_of(view)) for view in held}
        held.clear()
    with buffers.kept():
        held = [buffers.take(SIZE) for _ in range(MAX_BUFFERS)]
        assert len({id(memory_of(view)) for view in held} & set(map(id, memories))) == MAX_IDLE_BUFFERS


def test_no_more_is_kept_than_a_fetcher_uses() -> None:
    buffers = ReceiveBuffers()
    with buffers.kept():
        held = [buffers.take(SIZE) for _ in range(MAX_BUFFERS + 4)]
        memories = [memory_of(view) for view in held]
        assert len(set(map(id, memories))) == MAX_BUFFERS + 4
        held.clear()
        again = [buffers.take(SIZE) for _ in range(MAX_BUFFERS + 4)]
        assert len({id(memory_of(view)) for view in again} & set(map(id, memories))) == MAX_BUFFERS


def test_many_threads_never_share_memory() -> None:
    buffers = ReceiveBuffers()
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        rng = random.Random(seed)
        start.wait()
        for _ in range(200):
            with buffers.kept():
                view = buffers.take(rng.randrange(SIZE, 2 * SIZE))
                mark = rng.randbytes(16)
                view[:16] = mark
                view[-16:] = mark
                part = view[-16:]
                if bytes(view[:16]) != mark or bytes(part) != mark:
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
