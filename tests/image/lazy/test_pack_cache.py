"""The page cache has one copy of a graduated image after a start, and it is the one that is in use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import Node, contents, make_files
from tests.image.lazy.small_image import detach_all, needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.erofs_mount import mount_erofs
from glowplug.image.lazy.graduate import graduate, read_graduated
from glowplug.image.lazy.pack_cache import drop_pack_cache

CACHESTAT = 451  # Linux 6.5


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def folder(node: Node, tmp_path: Path) -> IndexFolder:
    return node.add_image(make_files(tmp_path / "original"))


def cached_pages(paths: Iterable[Path]) -> int:
    return sum(map(cached_pages_of, paths))


def cached_pages_of(path: Path) -> int:
    whole, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).syscall(CACHESTAT, file.fileno(), whole, counts, 0):
            pytest.skip(f"cachestat: {os.strerror(ctypes.get_errno())}")
    return counts[0]


@needs_root
def test_dropping_leaves_the_copy_of_the_mounted_image(
    node: Node, folder: IndexFolder, tmp_path: Path
) -> None:
    assert graduate(folder, node.ssd)
    graduated = read_graduated(folder)
    assert graduated is not None
    packs = [node.ssd.pack_path(pack) for pack in graduated.record.packs]
    target = tmp_path / "mounted"
    target.mkdir()
    mount_erofs(folder.graduated_index_path, packs, target, directio=False)
    try:
        assert contents(target) == contents(tmp_path / "original")
        files = [path for path in target.iterdir() if path.is_file()]
        before = cached_pages(files)
        assert min(before, cached_pages(packs)) > 0
        drop_pack_cache(folder, node.ssd)
        assert (cached_pages(files), cached_pages(packs)) == (before, 0)
        assert contents(target) == contents(tmp_path / "original")
    finally:
        detach_all(target)


def test_an_image_that_has_not_graduated_has_nothing_to_drop(node: Node, folder: IndexFolder) -> None:
    drop_pack_cache(folder, node.ssd)


def test_a_pack_that_is_gone_is_no_error(node: Node, folder: IndexFolder) -> None:
    assert graduate(folder, node.ssd)
    graduated = read_graduated(folder)
    assert graduated is not None
    for pack in graduated.record.packs:
        node.ssd.pack_path(pack).unlink()
    drop_pack_cache(folder, node.ssd)
