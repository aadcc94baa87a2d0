"""Indexes as the kernel and ``fsck.erofs`` see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from tests.image.index.conftest import Mount, fsck
from tests.image.index.nasty_folder import LONG_BEFORE_1970_NS, make_nasty_folder
from tests.image.index.real_tree import differences, read_folder, write_blob
from tests.image.index.trees import chunk, describe, directory, file, memory, symlink, tree_of, trees

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_read import read_index
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.relocate import relocate
from glowplug.image.index.tree import Tree

BLOCK_BYTES = 4096


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can make such a folder")
    folder = tmp_path / "nasty"
    make_nasty_folder(folder)
    return folder


def test_everything_a_root_filesystem_holds_survives(tmp_path: Path, nasty: Path, mount_index: Mount) -> None:
    tree, chunks = read_folder(nasty)
    image, packed = write_index(tree)
    table = ChunkTable(packed)
    assert fsck(image, tmp_path, [table.blob_bytes]) == ""
    assert describe(read_index(image, table)) == describe(tree)
    blob = tmp_path / "blob"
    write_blob(blob, table, chunks)
    assert differences(nasty, mount_index(image, [blob])) == []


def test_fsck_accepts_files_that_are_cut_at_pages(tmp_path: Path) -> None:
    page = 1 << 12
    tree = tree_of(
        {
            b"memory": memory(3 * page, -2 * page, page, 5),
            b"hole first": memory(-page, 256 * page),
            b"beside": file(70_000),
        }
    )
    image, packed = write_index(tree)
    table = ChunkTable(packed)
    assert fsck(image, tmp_path, [table.blob_bytes]) == ""
    blocks = table.blob_bytes // BLOCK_BYTES
    graduated = relocate(image, lambda index: (7, table.offset(index)), table, {7: blocks})
    assert fsck(graduated, tmp_path, [table.blob_bytes]) == ""


@given(trees())
@settings(max_examples=15, deadline=None)
def test_fsck_accepts_any_tree(tmp_path_factory: pytest.TempPathFactory, tree: Tree) -> None:
    image, packed = write_index(tree)
    assert fsck(image, tmp_path_factory.mktemp("tree"), [ChunkTable(packed).blob_bytes]) == ""


def test_everything_survives_graduation_to_packs(tmp_path: Path, nasty: Path, mount_index: Mount) -> None:
    tree, chunks = read_folder(nasty)
    image, packed = write_index(tree)
    table = ChunkTable(packed)
    places: list[tuple[int, int]] = []
    packs = {number: bytearray(os.urandom(3 * BLOCK_BYTES)) for number in range(3, 33)}  # others' chunks
    for index, piece in enumerate(table):
        pack = packs[3 + index % 30]
        places.append((3 + index % 30, len(pack)))
        pack += chunks[piece.id]
        pack += bytes(-len(pack) % BLOCK_BYTES) + os.urandom(BLOCK_BYTES)
    paths = []
    for number, content in packs.items():
        paths.append(tmp_path / f"{number}.pack")
        paths[-1].write_bytes(content)
    blocks = {number: len(content) // BLOCK_BYTES for number, content in packs.items()}
    graduated = relocate(image, places.__getitem__, table, blocks)
    assert len(graduated) == len(image) + BLOCK_BYTES  # 30 slots need a second block
    assert fsck(graduated, tmp_path, [len(content) for content in packs.values()]) == ""
    assert differences(nasty, mount_index(graduated, paths)) == []


def test_a_directory_of_100_000_entries_is_listed_and_found_in(tmp_path: Path, mount_index: Mount) -> None:
    shared = file()
    children = {b"%06d" % (number * 7919 % 1_000_000): shared for number in range(100_000)}
    image, _ = write_index(tree_of({b"many": directory(children=children)}))
    assert fsck(image, tmp_path, [0]) == ""
    many = mount_index(image, [empty_blob(tmp_path)]) / "many"
    assert listed(many) == sorted(name.decode() for name in children)
    assert all((many / name.decode()).stat().st_nlink == 100_000 for name in list(children)[::997])
    assert not any((many / f"{number:06}.absent").exists() for number in range(0, 1_000_000, 10_007))


def test_more_folders_in_a_folder_than_a_small_inode_can_count(tmp_path: Path, mount_index: Mount) -> None:
    image, _ = write_index(tree_of({b"%05d" % number: directory() for number in range(66_000)}))
    assert mount_index(image, [empty_blob(tmp_path)]).stat().st_nlink == 66_002


def test_an_empty_image_is_mounted(tmp_path: Path, mount_index: Mount) -> None:
    image, packed = write_index(tree_of({}))
    assert fsck(image, tmp_path, [0]) == ""
    root = mount_index(image, [empty_blob(tmp_path)])
    assert (listed(root), root.stat().st_nlink) == ([], 2)
    assert root.stat().st_ino != 0
    assert listed(mount_index(relocate(image, lambda _: (0, 0), ChunkTable(packed), {}), [])) == []


def test_times_of_any_epoch_are_exact(tmp_path: Path, mount_index: Mount) -> None:
    times = [LONG_BEFORE_1970_NS, -1, 0, 1, (1 << 62) * 10**9 + 999_999_999]
    image, _ = write_index(tree_of({b"%d" % number: file(mtime_ns=t) for number, t in enumerate(times)}))
    root = mount_index(image, [empty_blob(tmp_path)])
    assert [(root / str(number)).stat().st_mtime_ns for number in range(len(times))] == times


def test_the_most_common_time_may_lie_before_1970(tmp_path: Path, mount_index: Mount) -> None:
    root = directory(mtime_ns=-1_500_000_001, children={b"a": file(mtime_ns=-1_500_000_001)})
    tree = tree_of({b"below": root})
    image, _ = write_index(tree)
    mounted = mount_index(image, [empty_blob(tmp_path)])
    assert (mounted / "below" / "a").stat().st_mtime_ns == -1_500_000_001


@pytest.mark.parametrize("length", [3900, 4000, 4031, 4032, 4033, 4063, 4064, 4065, 4095])
@pytest.mark.parametrize("value_bytes", [0, 20, 5000])
def test_long_links_with_and_without_xattrs(
    tmp_path: Path, mount_index: Mount, length: int, value_bytes: int
) -> None:
    xattrs = {b"trusted.a": b"v" * value_bytes} if value_bytes else {}
    links = {
        b"%d" % number: symlink(b"%d" % number + b"x" * (length - 1), xattrs=xattrs) for number in range(3)
    }
    links[b"other"] = symlink(b"y" * length, xattrs=xattrs, uid=70_000)
    image, _ = write_index(tree_of(links))
    root = mount_index(image, [empty_blob(tmp_path)])
    assert {os.fsencode(path.name): os.fsencode(path.readlink()) for path in root.iterdir()} == {
        name: link.target for name, link in links.items()
    }
    for path in root.iterdir():
        found = {
            n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
        }
        assert found == {name.decode(): value for name, value in xattrs.items()}


def test_the_largest_xattrs_are_kept(tmp_path: Path, mount_index: Mount) -> None:
    xattrs = {b"user.%d" % number: bytes([number]) * 65_000 for number in range(4)}
    holder = file(70_000, xattrs=xattrs)
    folder = directory(xattrs=xattrs, children={b"%d" % number: file() for number in range(400)})
    image, packed = write_index(tree_of({b"file": holder, b"folder": folder}))
    assert fsck(image, tmp_path, [ChunkTable(packed).blob_bytes]) == ""
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(ChunkTable(packed).blob_bytes))
    root = mount_index(image, [blob])
    for name in ("file", "folder"):
        assert {os.fsencode(n): os.getxattr(root / name, n) for n in os.listxattr(root / name)} == xattrs
    assert len(listed(root / "folder")) == 400


def test_statfs_counts_the_blob(tmp_path: Path, mount_index: Mount) -> None:
    image, packed = write_index(tree_of({b"a": file(1 << 20), b"b": file(300 << 20, seed=9)}))
    blob = tmp_path / "blob"
    with blob.open("wb") as sparse:
        sparse.truncate(ChunkTable(packed).blob_bytes)
    assert os.statvfs(mount_index(image, [blob])).f_blocks >= 301 << 8


def test_inode_numbers_are_unique_and_never_zero(tmp_path: Path, mount_index: Mount) -> None:
    tree = tree_of({b"d%d" % number: directory(children={b"f": file(seed=number)}) for number in range(300)})
    root = mount_index(write_index(tree)[0], [empty_blob(tmp_path)])
    paths = [root, *root.rglob("*")]
    numbers = {path.lstat().st_ino for path in paths}
    assert (len(numbers), 0 in numbers) == (601, False)


def test_content_is_laid_out_in_the_order_given(tmp_path: Path, mount_index: Mount) -> None:
    hot, cold = chunk(2, 5000), chunk(1, 4096)
    tree = tree_of({b"a": file(4096, seed=1), b"z": file(5000, seed=2)})
    image, packed = write_index(tree, [hot])
    assert list(ChunkTable(packed)) == [hot, cold]
    blob = tmp_path / "blob"
    blob.write_bytes(b"h" * 5000 + bytes(3192) + b"c" * 4096)
    root = mount_index(image, [blob])
    assert ((root / "a").read_bytes(), (root / "z").read_bytes()) == (b"c" * 4096, b"h" * 5000)


def listed(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def empty_blob(folder: Path) -> Path:
    path = folder / "empty blob"
    path.touch()
    return path
