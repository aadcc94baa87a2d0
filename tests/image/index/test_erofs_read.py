"""An index read back: exactly what was written, or an error."""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from tests.image.index.mutations import check_survives, mutate, seed_tree
from tests.image.index.trees import describe, directory, file, memory, names, symlink, tree_of, trees

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import BLOCK_BYTES, MAX_INDEX_BYTES, SLOT_BYTES, SUPER_OFFSET, Superblock
from glowplug.image.index.erofs_dirs import decode_blocks, encode_block, split_names
from glowplug.image.index.erofs_read import read_index
from glowplug.image.index.erofs_scan import Record, data_blocks, scan_inodes
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Tree
from glowplug.types.errors import InvalidInput


@given(trees())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reading_is_the_inverse_of_writing(tree: Tree) -> None:
    image, packed = write_index(tree)
    back = read_index(image, ChunkTable(packed))
    assert describe(back) == describe(tree)
    assert write_index(back) == (image, packed)


def test_the_order_of_the_blob_does_not_matter_to_the_tree() -> None:
    tree = seed_tree()
    chunks = list(ChunkTable(write_index(tree)[1]))
    image, packed = write_index(tree, reversed(chunks))
    assert list(ChunkTable(packed)) == chunks[::-1]
    assert describe(read_index(image, ChunkTable(packed))) == describe(tree)


def test_a_mapped_file_is_read_as_well(tmp_path: Path) -> None:
    image, packed = write_index(seed_tree())
    (tmp_path / "index.erofs").write_bytes(image)
    (tmp_path / "chunks.bin").write_bytes(packed)
    with (tmp_path / "index.erofs").open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        tree = read_index(mapped, ChunkTable.open(tmp_path / "chunks.bin"))
    assert describe(tree) == describe(seed_tree())


def test_names_may_fill_a_block_to_its_last_byte() -> None:
    length = (BLOCK_BYTES - 12 * 18 - 3) // 16
    rest = BLOCK_BYTES - 12 * 18 - 3 - 15 * length
    children = {b"%02d" % number + b"n" * (length - 2): file() for number in range(15)}
    children[b"15" + b"n" * (rest - 2)] = file()
    children[b"16"] = file()
    tree = tree_of(children)
    image, packed = write_index(tree)
    assert describe(read_index(image, ChunkTable(packed))) == describe(tree)


@given(names)
def test_any_name_survives_in_a_block(name: bytes) -> None:
    ends, used = split_names([name])
    block = encode_block([name], [7], [1])
    assert (ends, used) == ([1], len(block))
    assert list(decode_blocks([block])) == [(name, 7, 1)]


def test_changed_bytes_give_an_error_or_another_sound_tree() -> None:
    image, packed = write_index(seed_tree())
    table = ChunkTable(packed)
    generator = random.Random(20)
    survived = sum(check_survives(mutate(image, generator), table) for _ in range(1500))
    assert 0 < survived < 1500


def test_no_prefix_of_an_image_is_an_image() -> None:
    image, packed = write_index(seed_tree())
    for length in {0, 1, 1024, 1152, len(image) - 1, *range(0, len(image), BLOCK_BYTES)} - {len(image)}:
        assert not check_survives(image[:length], ChunkTable(packed))
    assert not check_survives(image + bytes(BLOCK_BYTES), ChunkTable(packed))


def test_an_image_goes_with_its_own_table_only() -> None:
    image, _ = write_index(seed_tree())
    _, packed = write_index(tree_of({b"a": file(5)}))
    with pytest.raises(InvalidInput, match="table"):
        read_index(image, ChunkTable(packed))


class Victim:
    """An image of a small tree, its inodes by the order of the walk, to be damaged."""

    def __init__(self) -> None:
        tree = tree_of(
            {
                b"a": directory(children={b"inner": file()}),
                b"b": directory(),
                b"c": file(5),
                b"d": symlink(b"t" * 4090),
                b"e": symlink(b"u" * 4090),
                b"f": file((1 << 20) + 1),
                b"g": memory(2 * BLOCK_BYTES, BLOCK_BYTES, 5),
            }
        )
        image, packed = write_index(tree)
        self.table = ChunkTable(packed)
        self.superblock = Superblock.parse(memoryview(image))
        self.records = list(scan_inodes(memoryview(image), self.superblock))
        self.root, self.a, self.inner, self.b, self.c, self.d, self.e, self.f, self.g = self.records
        self.image = bytearray(image)

    def nid(self, record: Record) -> int:
        return (record.start - self.superblock.meta_block * BLOCK_BYTES) // SLOT_BYTES

    def point(self, holder: Record, name: bytes, nid: int) -> None:
        """Make a name lead elsewhere."""
        listed = [entry for entry, _, _ in decode_blocks(data_blocks(memoryview(self.image), holder))]
        struct.pack_into("<Q", self.image, holder.tail[0] + 12 * listed.index(name), nid)

    def put(self, layout: str, at: int, *values: int) -> None:
        struct.pack_into(layout, self.image, at, *values)

    def put_superblock(self, layout: str, at: int, value: int) -> None:
        self.put(layout, SUPER_OFFSET + at, value)


def loop(victim: Victim) -> None:
    victim.point(victim.a, b"inner", victim.nid(victim.a))


def cycle_of_two(victim: Victim) -> None:
    victim.point(victim.root, b"a", victim.nid(victim.b))


def root_below(victim: Victim) -> None:
    victim.point(victim.root, b"a", victim.nid(victim.root))


def nowhere(victim: Victim) -> None:
    victim.point(victim.root, b"c", 1 << 40)


def between_inodes(victim: Victim) -> None:
    victim.point(victim.root, b"c", victim.nid(victim.root) + 1)


def wrong_parent(victim: Victim) -> None:
    victim.point(victim.a, b"..", victim.nid(victim.b))


def wrong_self(victim: Victim) -> None:
    victim.point(victim.a, b".", victim.nid(victim.root))


def one_lost(victim: Victim) -> None:
    victim.point(victim.root, b"d", victim.nid(victim.e))


def other_kind(victim: Victim) -> None:
    victim.image[victim.a.tail[0] + 12 * 2 + 10] = 7


def twice(victim: Victim) -> None:
    at = victim.image.index(b"...abcdef"[:2] + b".abcdef")
    victim.image[at + 4] = ord("a")


def slash(victim: Victim) -> None:
    victim.image[victim.image.index(b"inner") + 1] = ord("/")


def null(victim: Victim) -> None:
    victim.image[victim.image.index(b"inner") + 1] = 0


def too_many_entries(victim: Victim) -> None:
    victim.put("<H", victim.root.tail[0] + 8, 12 * 300)


def same_blocks(victim: Victim) -> None:
    victim.put("<I", victim.e.start + 16, victim.d.union)


def blocks_in_the_superblock(victim: Victim) -> None:
    victim.put("<I", victim.d.start + 16, 0)


def blocks_behind(victim: Victim) -> None:
    victim.put("<I", victim.d.start + 16, victim.superblock.blocks)


def more_links(victim: Victim) -> None:
    victim.put("<H", victim.c.start + 6, 2)


def no_links(victim: Victim) -> None:
    victim.put("<H", victim.c.start + 6, 0)


def longer_file(victim: Victim) -> None:
    victim.put("<I", victim.c.start + 8, 4096)


def other_file(victim: Victim) -> None:
    victim.put("<I", victim.c.tail[0] + 4, 1)


def huge_file(victim: Victim) -> None:
    victim.put("<I", victim.f.start + 8, 0xFFFFFFFF)


def other_device(victim: Victim) -> None:
    victim.put("<H", victim.f.tail[0] + 2, 2)


def index_as_device(victim: Victim) -> None:
    victim.put("<H", victim.c.tail[0] + 2, 0)


def advised(victim: Victim) -> None:
    victim.put("<H", victim.c.tail[0], 1)


def hole_in_a_device(victim: Victim) -> None:
    victim.put("<I", victim.c.tail[0] + 4, 0xFFFFFFFF)


def plain_file(victim: Victim) -> None:
    victim.put("<H", victim.c.start, 0)


def wide_chunks(victim: Victim) -> None:
    victim.put("<H", victim.f.start + 16, 9 | 0x20)


def no_chunk_bits(victim: Victim) -> None:
    victim.put("<H", victim.f.start + 16, 0x20)


def huge_xattrs(victim: Victim) -> None:
    victim.put("<H", victim.c.start + 2, 0xFFFF)


def wrong_count(victim: Victim) -> None:
    victim.put_superblock("<Q", 16, len(victim.records) + 1)


def no_root(victim: Victim) -> None:
    victim.put_superblock("<H", 14, 0)


def file_as_root(victim: Victim) -> None:
    victim.put_superblock("<H", 14, victim.nid(victim.c))


def more_devices(victim: Victim) -> None:
    victim.put_superblock("<H", 86, 0xFFFF)


def bigger_device(victim: Victim) -> None:
    victim.put("<I", SUPER_OFFSET + 128 + 64, victim.superblock.devices[0] + 1)


def mapped_device(victim: Victim) -> None:
    victim.put("<I", SUPER_OFFSET + 128 + 68, victim.superblock.blocks)


def later_inodes(victim: Victim) -> None:
    victim.put_superblock("<I", 40, victim.superblock.blocks)


def half_a_chunk_of_pages(victim: Victim) -> None:
    victim.put("<HHI", victim.g.tail[0] + 8, 0, 0, 0xFFFFFFFF)


def starts_within_a_chunk(victim: Victim) -> None:
    _device, block = struct.unpack_from("<HI", victim.image, victim.g.tail[0] + 2)
    victim.put("<I", victim.g.tail[0] + 4, block + 1)


def pages_that_skip(victim: Victim) -> None:
    _device, block = struct.unpack_from("<HI", victim.image, victim.g.tail[0] + 10)
    victim.put("<I", victim.g.tail[0] + 12, block + 1)


def pages_of_a_device(victim: Victim) -> None:
    victim.put("<H", victim.g.tail[0] + 10, 0)


def short_chunk_in_the_middle(victim: Victim) -> None:
    last = struct.unpack_from("<HHI", victim.image, victim.g.tail[0] + 24)
    victim.put("<HHI", victim.g.tail[0] + 16, *last)


def longer_memory(victim: Victim) -> None:
    victim.put("<I", victim.g.start + 8, victim.g.size_bytes + 1)


DAMAGES = [
    loop, cycle_of_two, root_below, nowhere, between_inodes, wrong_parent, wrong_self, one_lost, other_kind,
    twice, slash, null, too_many_entries, same_blocks, blocks_in_the_superblock, blocks_behind, more_links,
    no_links, longer_file, other_file, huge_file, other_device, index_as_device, advised,
    hole_in_a_device, plain_file, wide_chunks, no_chunk_bits, huge_xattrs,
    half_a_chunk_of_pages, starts_within_a_chunk, pages_that_skip, pages_of_a_device,
    short_chunk_in_the_middle, longer_memory,
    wrong_count, no_root, file_as_root, more_devices, bigger_device, mapped_device, later_inodes,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_an_index_with_one_thing_wrong_is_refused(damage: Callable[[Victim], None]) -> None:
    victim = Victim()
    read_index(victim.image, victim.table)
    damage(victim)
    with pytest.raises(InvalidInput):
        read_index(victim.image, victim.table)


def test_a_huge_image_is_refused_before_it_is_read() -> None:
    with mmap.mmap(-1, MAX_INDEX_BYTES + BLOCK_BYTES) as image, pytest.raises(InvalidInput, match="length"):
        read_index(image, ChunkTable(ChunkTable.pack([])))


def test_shared_xattrs_do_not_multiply_memory() -> None:
    xattrs = {b"user.%d" % number: bytes([number]) * 60_000 for number in range(4)}
    tree = tree_of({b"%d" % number: file(xattrs=xattrs) for number in range(2000)})
    image, packed = write_index(tree)
    assert len(image) < 1 << 20
    values = {id(v) for _, i in read_index(image, ChunkTable(packed)).walk() for v in i.xattrs.values()}
    assert len(values) == 4
