"""How the kernel reads what an index describes: neighbouring pages in one request, not each alone."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import MountingNode
from tests.image.lazy.small_image import needs_root

from glowplug.image.index.erofs import BLOCK_BYTES

PAGES = 128
LARGE_PAGES = 3 * 256


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MountingNode]:
    node = MountingNode(tmp_path)
    yield node
    node.close()


@needs_root
@pytest.mark.parametrize("pages", [PAGES, LARGE_PAGES], ids=["one chunk", "several chunks"])
def test_pages_of_a_mapped_file_are_read_together(node: MountingNode, tmp_path: Path, pages: int) -> None:
    """As a shared library's are, page by page: 42,000 requests for ``import torch`` if each were one."""
    original = tmp_path / "original"
    original.mkdir()
    content = b"".join(number.to_bytes(8, "little") * (BLOCK_BYTES // 8) for number in range(1, pages + 1))
    (original / "library.so").write_bytes(content)
    digest = node.add_image(original).digest
    mounted = node.mounts(forced="lazy").mount(digest)
    before = node.daemon().stats().blobs[digest]
    with (
        (mounted.path / "library.so").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
        assert [library[at] for at in range(0, len(content), BLOCK_BYTES)] == [
            number & 0xFF for number in range(1, pages + 1)
        ]
    after = node.daemon().stats().blobs[digest]
    assert after.read_bytes - before.read_bytes == len(content)
    assert after.reads - before.reads <= pages // 8
