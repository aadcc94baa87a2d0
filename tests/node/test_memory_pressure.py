"""When a machine's memory counts as short, and what a parked replica counts with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glowplug.node.capacity import Capacity
from glowplug.node.memory_pressure import read_memory
from glowplug.node.table import ReplicaTable
from glowplug.types.errors import Unavailable
from glowplug.types.replica import MemoryView
from glowplug.types.spec import Resources

GIB = 1 << 30


def proc(folder: Path, *, available: float, some: float = 0.0, full: float = 0.0) -> Path:
    """A /proc of a machine with a GiB of memory, of which a share is available."""
    (folder / "meminfo").write_text(
        f"MemTotal: {1 << 20} kB\nMemAvailable: {int(available * (1 << 20))} kB\nSwapFree: 2048 kB\n"
    )
    (folder / "pressure").mkdir(exist_ok=True)
    (folder / "pressure/memory").write_text(
        f"some avg10={some:.2f} avg60=0.00 avg300=0.00 total=1\n"
        f"full avg10={full:.2f} avg60=0.00 avg300=0.00 total=1\n"
    )
    return folder


@pytest.mark.parametrize(
    ("available", "some", "full", "is_short"),
    [
        (0.04, 0, 0, True),
        (0.06, 0, 0, False),
        (0.10, 25, 0, True),
        (0.10, 0, 6, True),
        (0.10, 19, 4, False),
        (0.50, 90, 90, False),  # moving memory out on purpose looks like this
    ],
)
def test_memory_is_short_when_little_is_left_or_is_waited_for(
    tmp_path: Path, available: float, some: float, full: float, is_short: bool
) -> None:
    memory = read_memory(proc(tmp_path, available=available, some=some, full=full))
    assert memory.is_short is is_short
    assert (memory.total_bytes, memory.swap_free_bytes) == (GIB, 2 << 20)
    assert (memory.some_waiting_percent, memory.all_waiting_percent) == (some, full)


def test_a_kernel_that_tells_no_pressure_is_read_by_its_free_memory(tmp_path: Path) -> None:
    (proc(tmp_path, available=0.5) / "pressure/memory").unlink()
    assert read_memory(tmp_path).some_waiting_percent == 0.0


def test_this_machine_can_be_read() -> None:
    memory = read_memory()
    assert 0 < memory.available_bytes < memory.total_bytes


async def test_watchers_hear_of_memory_while_it_is_short_and_once_when_it_is_not() -> None:
    table = ReplicaTable()
    short, plenty = (MemoryView(total_bytes=1, available_bytes=1, is_short=is_so) for is_so in (True, False))
    table.tell_memory(plenty)
    events = table.watch()
    seen = [await anext(events) for _ in range(2)]
    assert [event.type for event in seen] == ["synced", "memory"]
    for memory in (plenty, short, short, plenty, plenty, short):
        table.tell_memory(memory)
    heard = [(await anext(events)).memory for _ in range(4)]
    assert heard == [short, short, plenty, short]
    await events.aclose()  # type: ignore[attr-defined]


@given(held_bytes=st.integers(0, 4 * GIB), promised_gib=st.integers(1, 8))
def test_parking_and_waking_never_promises_more_than_there_is(held_bytes: int, promised_gib: int) -> None:
    capacity = Capacity(cpus=4, memory_bytes=8 * GIB)
    wanted = Resources(cpus=2, memory_bytes=promised_gib * GIB)
    try:
        capacity.reserve("a", wanted)
    except Unavailable:
        assert promised_gib == 8  # its sandbox needs room too
        return
    promised = capacity.memory_used_bytes
    capacity.park("a", held_bytes)
    assert (capacity.cpus_used, capacity.memory_used_bytes) == (0, held_bytes)
    capacity.reserve("b", Resources(memory_bytes=GIB))
    try:
        capacity.reserve("a", wanted)
    except Unavailable:
        assert capacity.memory_used_bytes <= 8 * GIB or held_bytes > 6 * GIB
        assert capacity.cpus_used == 1.0, "it holds what it held"
    else:
        assert capacity.memory_used_bytes == promised + GIB + (192 << 20)
        assert capacity.memory_used_bytes <= 8 * GIB
    capacity.release("a")
    capacity.park("a", GIB)
    assert capacity.cpus_used == 1.0, "who is gone holds nothing"
