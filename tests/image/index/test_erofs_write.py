"""What an index is made of, and what it refuses."""

from __future__ import annotations

import os
import stat
import struct

import pytest
from hypothesis import given, settings
from tests.image.index.trees import chunk, directory, file, hole, symlink, tree_of, trees

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    CHUNK_INDEX,
    MAX_FILE_BYTES,
    SLOT_BYTES,
    SUPER_OFFSET,
    Superblock,
    decode_device_number,
    encode_device_number,
    padded,
)
from glowplug.image.index.erofs_scan import Record, scan_inodes
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.types.errors import InvalidInput


def records(image: bytes) -> list[Record]:
    view = memoryview(image)
    return list(scan_inodes(view, Superblock.parse(view)))


def sizes_of(children: dict[bytes, Inode]) -> list[int]:
    """Bytes of the inodes of a tree of these, the root and data behind them left out."""
    return [record.xattrs[0] - record.start for record in records(write_index(tree_of(children))[0])][1:]


@given(trees())
@settings(max_examples=30, deadline=None)
def test_the_same_tree_gives_the_same_bytes(tree: Tree) -> None:
    first = write_index(tree)
    for _, inode in tree.walk():
        inode.children = dict(reversed(inode.children.items()))
        inode.xattrs = dict(reversed(inode.xattrs.items()))
    assert write_index(tree) == first


def test_the_uuid_tells_images_with_other_content_apart() -> None:
    uuids = {
        Superblock.parse(memoryview(write_index(tree_of({b"a": file(9, seed=s)}))[0])).uuid for s in (1, 2)
    }
    assert len(uuids) == 2


def test_a_small_inode_wherever_it_says_everything() -> None:
    assert sizes_of({b"a": file(5), b"b": file(mode=0o6755), b"c": file(0xFFFF, uid=0xFFFF)}) == [32, 32, 32]


@pytest.mark.parametrize(
    "odd", [{"mtime_ns": 5}, {"uid": 0x10000}, {"gid": 0x10000}, {"size_bytes": 1 << 32}]
)
def test_a_large_inode_for_what_a_small_one_cannot_say(odd: dict[str, int]) -> None:
    assert sizes_of({b"a": file(), b"b": file(), b"odd": file(**odd)}) == [32, 32, 64]


def test_the_most_common_time_costs_nothing() -> None:
    children = {b"%d" % number: file(mtime_ns=7_000_000_001) for number in range(5)}
    assert sizes_of({**children, b"odd": file()}) == [32] * 5 + [64]


def test_a_file_of_one_chunk_takes_two_slots() -> None:
    """And names its device: of one that did not, the kernel would read each page alone."""
    image, _ = write_index(tree_of({b"%d" % number: file(5, seed=number) for number in range(3)}))
    first, second, third = records(image)[1:]
    assert (second.start - first.start, third.start - second.start) == (2 * SLOT_BYTES, 2 * SLOT_BYTES)
    entries = [CHUNK_INDEX.unpack_from(image, record.tail[0]) for record in (first, second, third)]
    assert entries == [(0, 1, 0), (0, 1, 1), (0, 1, 2)]


def test_equal_content_is_stored_once() -> None:
    _, packed = write_index(
        tree_of({b"a": file(5), b"b": file(5), b"c": directory(children={b"d": file(5)})})
    )
    assert list(ChunkTable(packed)) == [chunk(1, 5)]


def test_chunks_follow_the_order_given_and_then_the_paths() -> None:
    tree = tree_of(
        {b"b": file(2, seed=2), b"a": file(1, seed=1), b"c": file(3, seed=3), b"a!": file(4, seed=4)}
    )
    one, two, three, four = chunk(1, 1), chunk(2, 2), chunk(3, 3), chunk(4, 4)
    assert list(ChunkTable(write_index(tree)[1])) == [one, four, two, three]
    order = [three, chunk(99, 99), two, three]
    assert list(ChunkTable(write_index(tree, order)[1])) == [three, two, one, four]


def test_a_label_that_all_files_carry_is_kept_once() -> None:
    def index_bytes(label: bytes) -> int:
        labelled = {b"%d" % number: file(xattrs={b"security.selinux": label}) for number in range(1000)}
        return len(write_index(tree_of(labelled))[0])

    assert index_bytes(b"l" * 1000) - index_bytes(b"l" * 10) < 2 * BLOCK_BYTES


def test_a_hole_of_terabytes_takes_one_entry() -> None:
    tree = tree_of({b"lastlog": hole(MAX_FILE_BYTES)})
    assert len(write_index(tree)[0]) == 2 * BLOCK_BYTES


def test_inodes_leave_next_to_no_room_between_them() -> None:
    folders = {
        b"%d" % number: directory(
            children={b"%d %s" % (entry, b"n" * 50): file(1, seed=entry) for entry in range(number % 40)}
        )
        for number in range(400)
    }
    image, _ = write_index(tree_of(folders))
    used = sum(padded(record.tail[1] - record.start, SLOT_BYTES) for record in records(image))
    superblock = Superblock.parse(memoryview(image))
    assert used > 0.97 * (superblock.blocks - superblock.meta_block) * BLOCK_BYTES


@pytest.mark.parametrize(
    ("inode", "why"),
    [
        (Inode(stat.S_IFREG | 0o644, uid=0xFFFFFFFF), "owner"),
        (Inode(stat.S_IFREG | 0o644, gid=-1), "owner"),
        (Inode(stat.S_IFREG | 0o644, mtime_ns=(1 << 63) * 10**9), "time"),
        (Inode(0o644), "kind"),
        (Inode(stat.S_IFREG | 0o1000644), "kind"),
        (Inode(stat.S_IFREG, size_bytes=-1), "size"),
        (Inode(stat.S_IFREG, size_bytes=MAX_FILE_BYTES + 1), "size"),
        (Inode(stat.S_IFCHR, rdev=os.makedev(4096, 0)), "device number"),
        (Inode(stat.S_IFBLK, rdev=os.makedev(0, 1 << 20)), "device number"),
        (Inode(stat.S_IFREG, xattrs={b"system.other": b""}), "cannot be kept"),
        (Inode(stat.S_IFREG, xattrs={b"user.": b""}), "cannot be kept"),
        (Inode(stat.S_IFREG, xattrs={b"system.posix_acl_access.x": b""}), "cannot be kept"),
        (Inode(stat.S_IFREG, xattrs={b"user.a": bytes(65536)}), "too long"),
        (Inode(stat.S_IFREG, xattrs={b"user." + b"a" * 251: b""}), "too long"),
        (Inode(stat.S_IFREG, xattrs={b"user.%d" % n: bytes(65000) for n in range(5)}), "262148 bytes"),
        (symlink(b""), "empty"),
        (symlink(b"a\0b"), "null byte"),
    ],
)
def test_what_no_index_can_hold_is_refused_by_path(inode: Inode, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        write_index(tree_of({b"folder": directory(children={b"here": inode})}))
    assert refused.value.details["path"] == "/folder/here"


@pytest.mark.parametrize(
    ("size_bytes", "extents"),
    [
        (5, [Extent(0, (chunk(1, 4),))]),
        (4, [Extent(0, (chunk(1, 5),))]),
        (0, [Extent(0, (chunk(1, 5),))]),
        (CHUNK_BYTES + 5, [Extent(0, (chunk(1, 5),))]),
        (CHUNK_BYTES + 5, [Extent(CHUNK_BYTES, (chunk(1, 4),))]),
        (CHUNK_BYTES + 5, [Extent(4096, (chunk(1, CHUNK_BYTES),))]),
        (CHUNK_BYTES + 5, [Extent(0, (chunk(1, CHUNK_BYTES), chunk(1, 5), chunk(1, 5)))]),
        (
            2 * CHUNK_BYTES,
            [Extent(CHUNK_BYTES, (chunk(1, CHUNK_BYTES),)), Extent(0, (chunk(1, CHUNK_BYTES),))],
        ),
        (2 * CHUNK_BYTES, [Extent(0, (chunk(1, CHUNK_BYTES),)), Extent(0, (chunk(2, CHUNK_BYTES),))]),
        (5, [Extent(0, (Chunk(b"short", 5),))]),
        (2 * CHUNK_BYTES, [Extent(-CHUNK_BYTES, (chunk(1, CHUNK_BYTES),))]),
    ],
)
def test_content_that_does_not_fit_its_file_is_refused(size_bytes: int, extents: list[Extent]) -> None:
    """The kernel would show what lies behind the chunk in the blob: other files' content."""
    with pytest.raises(InvalidInput):
        write_index(tree_of({b"a": file(size_bytes=size_bytes, extents=tuple(extents))}))


@pytest.mark.parametrize(
    ("size_bytes", "extents"),
    [
        (8192, [Extent(0, (chunk(1, 4097), chunk(2, 4095)))]),
        (8192, [Extent(0, (chunk(1, 12288),))]),
        (12288, [Extent(0, (chunk(1, 8192),)), Extent(4096, (chunk(2, 8192),))]),
        (8192, [Extent(1, (chunk(1, 4096),))]),
        (8192, [Extent(-4096, (chunk(1, 4096),))]),
        (4 << 20, [Extent(0, (chunk(1, CHUNK_BYTES + 4096),))]),
        (8192, [Extent(0, (Chunk(b"short", 4096),))]),
    ],
)
def test_pages_that_do_not_fit_their_file_are_refused(size_bytes: int, extents: list[Extent]) -> None:
    with pytest.raises(InvalidInput):
        write_index(
            tree_of({b"a": file(size_bytes=size_bytes, extents=tuple(extents), is_cut_at_pages=True)})
        )


def test_sparse_files_that_need_a_huge_index_are_refused_together() -> None:
    end = (chunk(1, CHUNK_BYTES),)
    size_bytes = 1 << 42
    sparse = {
        b"%d" % number: file(size_bytes=size_bytes, extents=(Extent(size_bytes - CHUNK_BYTES, end),))
        for number in range(9)
    }
    with pytest.raises(InvalidInput, match="256 MiB"):
        write_index(tree_of(sparse))


def test_one_chunk_cannot_have_two_lengths() -> None:
    other = file(6, extents=(Extent(0, (chunk(1, 5)._replace(size_bytes=6),)),))
    with pytest.raises(InvalidInput, match="another length"):
        write_index(tree_of({b"a": file(5), b"b": other}))


def test_directories_cannot_be_linked() -> None:
    twice = directory()
    with pytest.raises(InvalidInput, match="appears twice"):
        write_index(tree_of({b"a": twice, b"b": twice}))
    twice.children[b"loop"] = twice
    with pytest.raises(InvalidInput, match="appears twice"):
        write_index(tree_of({b"a": twice}))


def test_device_numbers_are_encoded_as_the_kernel_does() -> None:
    assert encode_device_number(os.makedev(0xABC, 0x12345)) == 0x123ABC45
    for rdev in (0, os.makedev(4095, 1048575), os.makedev(8, 256)):
        assert decode_device_number(encode_device_number(rdev)) == rdev


def test_what_newer_kernels_would_read_is_zero() -> None:
    image, _ = write_index(tree_of({b"a": file(5), b"b": file(5, uid=70_000)}))
    small, large = records(image)[1:]
    assert (
        image[small.start + 12 : small.start + 16] == image[small.start + 28 : small.start + 32] == bytes(4)
    )
    assert image[large.start + 6 : large.start + 8] == bytes(2)
    assert image[large.start + 48 : large.start + 64] == bytes(16)
    assert struct.unpack_from("<I", image, SUPER_OFFSET + 4) == (0,)
