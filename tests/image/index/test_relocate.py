"""Graduation: the same image on local packs, and nothing of anybody else's packs in it."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.image.index.mutations import mutate, seed_tree
from tests.image.index.trees import directory, file, tree_of, trees

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import BLOCK_BYTES, CHUNK_INDEX, HOLE, SLOT_BYTES, Superblock
from glowplug.image.index.erofs_scan import scan_inodes
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.relocate import relocate
from glowplug.image.index.tree import Tree
from glowplug.types.errors import InvalidInput


def places_read(image: bytes) -> list[tuple[int, int]]:
    """Device slot and block that the kernel would start reading file content at, by inode, holes left out."""
    view = memoryview(image)
    return [
        entry[1:]
        for record in scan_inodes(view, Superblock.parse(view))
        if record.mode & 0o170000 == 0o100000
        for entry in CHUNK_INDEX.iter_unpack(view[record.tail[0] : record.tail[1]])
        if entry != HOLE
    ]


@given(trees(), st.integers(1, 60), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_every_chunk_is_read_from_its_pack(tree: Tree, pack_count: int, generator: random.Random) -> None:
    image, packed = write_index(tree)
    table = ChunkTable(packed)
    numbers = generator.sample(range(10_000), pack_count)
    packs = {number: table.starts[-1] + 10 + number for number in numbers}
    places = [(generator.choice(numbers), table.offset(i) + 10 * BLOCK_BYTES) for i in range(len(table))]
    moved = relocate(image, places.__getitem__, table, packs)
    assert Superblock.parse(memoryview(moved)).devices == tuple(packs[number] for number in sorted(packs))
    slot_of = {number: slot for slot, number in enumerate(sorted(packs), 1)}

    def moved_to(block: int) -> tuple[int, int]:
        index = table.at(block * BLOCK_BYTES)
        pack, offset = places[index]
        return slot_of[pack], offset // BLOCK_BYTES + block - table.starts[index]

    assert places_read(moved) == [moved_to(block) for _slot, block in places_read(image)]


def test_inodes_keep_their_numbers_when_the_device_table_grows() -> None:
    image, packed = write_index(seed_tree())
    table = ChunkTable(packed)
    packs = dict.fromkeys(range(100), table.starts[-1])
    moved = relocate(image, lambda index: (99, table.offset(index)), table, packs)
    before, after = (Superblock.parse(memoryview(data)) for data in (image, moved))
    assert len(moved) - len(image) == 3 * BLOCK_BYTES
    assert (after.root_nid, after.meta_block - before.meta_block) == (before.root_nid, 3)
    starts = [
        [
            record.start - superblock.meta_block * BLOCK_BYTES
            for record in scan_inodes(memoryview(data), superblock)
        ]
        for data, superblock in ((image, before), (moved, after))
    ]
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    ("place", "blocks"),
    [((2, 0), 10), ((1, 512), 10), ((1, -BLOCK_BYTES), 10), ((1, 9 * BLOCK_BYTES), 10), ((1, 0), 1)],
)
def test_a_chunk_must_lie_wholly_in_a_pack(place: tuple[int, int], blocks: int) -> None:
    image, packed = write_index(tree_of({b"a": file(5000)}))
    with pytest.raises(InvalidInput, match="chunk 0"):
        relocate(image, lambda _: place, ChunkTable(packed), {1: blocks})


def test_packs_must_fit_their_slots() -> None:
    image, packed = write_index(tree_of({}))
    with pytest.raises(InvalidInput, match="16 TiB"):
        relocate(image, lambda _: (0, 0), ChunkTable(packed), {1: 1, 2: 0xFFFFFFFF})
    with pytest.raises(InvalidInput, match="packs"):
        relocate(image, lambda _: (0, 0), ChunkTable(packed), dict.fromkeys(range(65536), 1))


def test_a_file_longer_than_its_chunk_would_show_others_content_and_is_refused() -> None:
    image, packed = write_index(tree_of({b"a": file(5)}))
    record = [*scan_inodes(memoryview(image), Superblock.parse(memoryview(image)))][1]
    longer = bytearray(image)
    struct.pack_into("<I", longer, record.start + 8, 1 << 20)
    with pytest.raises(InvalidInput, match="not in its table"):
        relocate(longer, lambda _: (1, 0), ChunkTable(packed), {1: 1000})


@pytest.mark.parametrize("slot", [0, 2])
def test_a_file_in_another_device_would_show_another_pack_and_is_refused(slot: int) -> None:
    image, packed = write_index(tree_of({b"a": file(5)}))
    record = [*scan_inodes(memoryview(image), Superblock.parse(memoryview(image)))][1]
    elsewhere = bytearray(image)
    struct.pack_into("<H", elsewhere, record.tail[0] + 2, slot)
    with pytest.raises(InvalidInput, match="not in its table"):
        relocate(elsewhere, lambda _: (1, 0), ChunkTable(packed), {1: 1000, 2: 1000})


def test_a_file_without_a_device_is_refused() -> None:
    """A plain one would be read from the index file itself."""
    image, packed = write_index(tree_of({b"a": file(), b"b": file(5)}))
    record = [*scan_inodes(memoryview(image), Superblock.parse(memoryview(image)))][1]
    plain = bytearray(image)
    struct.pack_into("<I8xI", plain, record.start + 8, 5, 0)
    with pytest.raises(InvalidInput, match="of no kind"):
        relocate(plain, lambda _: (1, 0), ChunkTable(packed), {1: 1000})


def test_a_name_that_leads_into_an_inodes_data_is_refused() -> None:
    """The inode hidden there was not moved: its addresses are whatever its author wrote."""
    image, packed = write_index(tree_of({b"d": directory(children={b"x" * 200: file()}), b"e": file()}))
    superblock = Superblock.parse(memoryview(image))
    root, below, *_ = scan_inodes(memoryview(image), superblock)
    hidden = (below.start - superblock.meta_block * BLOCK_BYTES) // SLOT_BYTES + 2
    crafted = bytearray(image)
    struct.pack_into("<Q", crafted, root.tail[0] + 12 * 3, hidden)
    with pytest.raises(InvalidInput, match="leads to no inode"):
        relocate(crafted, lambda _: (1, 0), ChunkTable(packed), {1: 1000})


def test_whatever_is_damaged_no_block_of_another_image_is_read() -> None:
    image, packed = write_index(seed_tree())
    table = ChunkTable(packed)
    generator = random.Random(9)
    offset = 1 << 20
    packs = {1: offset // BLOCK_BYTES * 2 + table.starts[-1]}
    relocated = 0
    for _ in range(1000):
        damaged = mutate(image, generator)
        try:
            moved = relocate(damaged, lambda index: (1, offset + table.offset(index)), table, packs)
        except InvalidInput:
            continue
        relocated += 1
        allowed = {(1, offset // BLOCK_BYTES + block) for block in range(table.starts[-1])}
        assert allowed.issuperset(places_read(moved))
    assert relocated


def test_an_image_on_packs_is_not_moved_again() -> None:
    image, packed = write_index(tree_of({b"a": file(5)}))
    table = ChunkTable(packed)
    moved = relocate(image, lambda _: (1, 0), table, {1: 5, 2: 5})
    with pytest.raises(InvalidInput):
        relocate(moved, lambda _: (1, 0), table, {1: 5})
