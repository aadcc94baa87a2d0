"""Small files as one: which are taken, where they lie, and that nothing of it outlives the mount."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.index.conftest import fsck
from tests.image.lazy.small_image import detach_all, needs_root, write_small_image

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import BLOCK_BYTES, CHUNK_INDEX, Superblock
from glowplug.image.index.relocate import relocate
from glowplug.image.lazy import syscalls
from glowplug.image.lazy.erofs_mount import gathered_content, mount_erofs
from glowplug.image.lazy.gather import SHARE, Gathered, gather
from glowplug.image.lazy.in_use import is_open_elsewhere
from glowplug.image.lazy.mount_table import read_mount_table

NOISE = random.Random(3)
FILES = {f"small-{number:03}": NOISE.randbytes(NOISE.randrange(1, 30_000)) for number in range(200)}
FILES["large"] = NOISE.randbytes(40 << 20)
KILLS = 12

sizes = st.lists(st.integers(1, CHUNK_BYTES) | st.sampled_from([1, 4096, 4097, 9000]), max_size=60)


def a_table(sizes_bytes: list[int]) -> ChunkTable:
    chunks = [Chunk(number.to_bytes(32, "big"), size) for number, size in enumerate(sizes_bytes)]
    return ChunkTable(ChunkTable.pack(chunks))


def scattered(table: ChunkTable, seed: int) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """A place for each chunk in packs of odd numbers, in no order."""
    order = list(range(len(table)))
    random.Random(seed).shuffle(order)
    places = [(0, 0)] * len(table)
    ends = {3: 0, 4: 0, 9: 0}
    for turn, index in enumerate(order):
        pack = sorted(ends)[turn % 3]
        places[index] = (pack, ends[pack])
        ends[pack] += aligned(table.sizes[index])
    return places, {pack: end // BLOCK_BYTES for pack, end in ends.items()}


def entries(gathered: Gathered) -> list[tuple[int, int]]:
    """Device slot and block of each block of the file."""
    start = Superblock.parse(memoryview(gathered.image)).meta_block * BLOCK_BYTES + 4 * 32 + 64
    found = CHUNK_INDEX.iter_unpack(gathered.image[start : start + gathered.blocks * CHUNK_INDEX.size])
    return [(slot, block) for _, slot, block in found]


@given(sizes, st.integers(0, 99), st.sampled_from([0, SHARE, 0.5, 1]))
def test_the_file_has_every_block_of_the_chosen_chunks_in_order(
    sizes_bytes: list[int], seed: int, share: float
) -> None:
    table = a_table(sizes_bytes)
    places, packs = scattered(table, seed)
    gathered = gather(table, places, packs, share)
    slots = {3: 1, 4: 2, 9: 3}
    expected = [
        (slots[places[index][0]], places[index][1] // BLOCK_BYTES + block)
        for index in gathered.offsets
        for block in range(aligned(sizes_bytes[index]) // BLOCK_BYTES)
    ]
    assert list(gathered.offsets) == sorted(gathered.offsets)
    assert entries(gathered) == expected
    starts = [offset // BLOCK_BYTES for offset in gathered.offsets.values()]
    assert [expected[start] for start in starts] == [
        (slots[places[index][0]], places[index][1] // BLOCK_BYTES) for index in gathered.offsets
    ]


@given(sizes, st.sampled_from([0, SHARE, 0.5, 1]))
def test_the_smallest_are_taken_and_no_more_than_the_share(sizes_bytes: list[int], share: float) -> None:
    table = a_table(sizes_bytes)
    gathered = gather(table, *scattered(table, 0), share)
    assert gathered.blocks * BLOCK_BYTES <= share * table.blob_bytes
    taken = {aligned(sizes_bytes[index]) for index in gathered.offsets}
    left = {aligned(size) for index, size in enumerate(sizes_bytes) if index not in gathered.offsets}
    assert max(taken, default=0) < min(left, default=CHUNK_BYTES + 1)
    if share == 1:
        assert not left


@dataclass(frozen=True)
class Image:
    index: Path
    gathered: Path
    pack: Path
    target: Path

    def mount(self) -> None:
        with gathered_content(self.gathered, [self.pack]) as content:
            mount_erofs(self.index, [self.pack, content], self.target, directio=True)

    def contents(self) -> dict[str, bytes]:
        return {entry.name: entry.read_bytes() for entry in self.target.iterdir()}


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    small = write_small_image(tmp_path, FILES)
    table = small.table
    places = [(1, start * BLOCK_BYTES) for start in table.starts[:-1]]
    packs = {1: table.blob_bytes // BLOCK_BYTES}
    gathered = gather(table, places, packs)
    assert len(gathered.offsets) == len(FILES) - 1
    place = [
        (2, gathered.offsets[index]) if index in gathered.offsets else at for index, at in enumerate(places)
    ]
    relocated = relocate(small.index.read_bytes(), place.__getitem__, table, {**packs, 2: gathered.blocks})
    small.index.write_bytes(relocated)
    (tmp_path / "gathered.erofs").write_bytes(gathered.image)
    yield Image(small.index, tmp_path / "gathered.erofs", small.blob, small.target)
    detach_all(small.target)


@needs_root
def test_every_file_is_itself(image: Image) -> None:
    image.mount()
    assert image.contents() == FILES


def test_fsck_accepts_both_images(image: Image, tmp_path: Path) -> None:
    assert fsck(image.gathered.read_bytes(), tmp_path, [image.pack.stat().st_size]) == ""
    index = image.index.read_bytes()
    devices_bytes = [blocks * BLOCK_BYTES for blocks in Superblock.parse(memoryview(index)).devices]
    assert len(devices_bytes) == 2
    assert fsck(index, tmp_path, devices_bytes) == ""


@needs_root
def test_the_gathered_image_is_mounted_nowhere_and_goes_with_the_mount(image: Image) -> None:
    image.mount()
    sources = [entry.source for entry in read_mount_table()]
    assert str(image.index) in sources
    assert str(image.gathered) not in sources
    assert is_open_elsewhere(image.gathered)
    syscalls.unmount(image.target)
    assert not is_open_elsewhere(image.gathered)
    assert not is_open_elsewhere(image.index)


@needs_root
def test_who_has_a_small_file_open_keeps_it_when_the_mount_is_detached(image: Image) -> None:
    image.mount()
    with (image.target / "small-007").open("rb") as file:
        syscalls.detach(image.target)
        assert file.read() == FILES["small-007"]
        assert is_open_elsewhere(image.gathered)
    assert not is_open_elsewhere(image.gathered)


@needs_root
def test_killed_readers_leave_no_zeros(image: Image) -> None:
    """Where this fails, ``probe_mounting`` has to say that small files cannot be gathered."""
    for turn in range(KILLS):
        image.mount()
        reader = subprocess.Popen(["sh", "-c", f"exec cat {image.target}/*"], stdout=subprocess.DEVNULL)
        time.sleep(0.003 * turn)
        reader.kill()
        reader.wait(120)
        assert image.contents() == FILES
        syscalls.unmount(image.target)
