"""The test vector of ``docs/image-format.md``, built from the page's own words."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.image.index.trees import describe

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_read import read_index
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.manifest import ImageConfig, ImageManifest
from glowplug.image.index.tree import Extent, Inode, Tree

DOCUMENT = Path(__file__).parents[3] / "docs" / "image-format.md"
LINE_BYTES = 32


def section(name: str) -> str:
    """What follows a mark of the page, up to the next empty line behind it."""
    text = DOCUMENT.read_text().split(f"<!-- vector: {name} -->\n", 1)[1]
    return text.split("\n\n", 1)[0].replace("```", "").strip()


def tree_of_the_page() -> Tree:
    found: dict[str, Inode] = {}
    for line in section("tree").splitlines()[2:]:
        path, mode, owner, mtime_ns, content = (cell.strip() for cell in line.strip("|").split("|"))
        path = path.strip("`")
        if content.startswith("= "):
            inode = found[content[2:].strip("`")]
        else:
            uid, gid = map(int, owner.split(":"))
            inode = Inode(int(mode, 8), uid, gid, int(mtime_ns))
            fill(inode, content)
        found[path] = inode
        parent, _, name = path.rpartition("/")
        if name:
            found[parent or "/"].children[name.encode()] = inode
    return Tree(found["/"])


def fill(inode: Inode, content: str) -> None:
    if repeated := re.match(r"`(.*?)` \u00d7 (\d+)", content):
        data = repeated[1].encode() * int(repeated[2])
        pieces = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
        inode.size_bytes = len(data)
        inode.extents = (Extent(0, tuple(map(Chunk.of, pieces))),) if pieces else ()
    if zeros := re.match(r"(\d+) zeros", content):
        inode.size_bytes = int(zeros[1])
    if device := re.match(r"device (\d+):(\d+)", content):
        inode.rdev = os.makedev(int(device[1]), int(device[2]))
    if link := re.match(r"-> `(.*)`", content):
        inode.target = link[1].encode()
    for name, value in re.findall(r"`(\S+)` = `(\S+)`", content):
        inode.xattrs[name.encode()] = value.encode()


@pytest.fixture(scope="module")
def built() -> tuple[bytes, bytes, ImageManifest]:
    tree = tree_of_the_page()
    index, chunks = write_index(tree, [tree.root.children[b"labelled"].extents[0].chunks[0]])
    config = ImageConfig(entrypoint=["/bin/tool"], env={"LANG": "C.UTF-8"})
    entries = sum(1 for _ in tree.walk())
    return index, chunks, ImageManifest.of(index, chunks, entries, config)


def hex_lines(data: bytes) -> str:
    starts = range(0, len(data), LINE_BYTES)
    lines = [(start, data[start : start + LINE_BYTES]) for start in starts]
    return "\n".join(f"{start:08x} {line.hex()}" for start, line in lines if any(line))


def test_the_table_of_chunks_is_the_one_of_the_page(built: tuple[bytes, bytes, ImageManifest]) -> None:
    assert bytes.fromhex(section("chunks.bin")) == built[1]


def test_the_index_is_the_one_of_the_page(built: tuple[bytes, bytes, ImageManifest]) -> None:
    assert section("index.erofs") == hex_lines(built[0])


def test_the_manifest_and_the_digest_are_those_of_the_page(built: tuple[bytes, bytes, ImageManifest]) -> None:
    assert section("manifest.json").encode() == built[2].canonical()
    assert section("digest") == built[2].image_digest


def test_the_index_of_the_page_is_read_as_the_tree_of_the_page() -> None:
    lines = [line.split() for line in section("index.erofs").splitlines()]
    manifest = ImageManifest.parse(section("manifest.json").encode(), section("digest"))
    index = bytearray(manifest.index.size_bytes)
    for start, data in lines:
        index[int(start, 16) : int(start, 16) + LINE_BYTES] = bytes.fromhex(data)
    table = ChunkTable(bytes.fromhex(section("chunks.bin")))
    assert describe(read_index(index, table)) == describe(tree_of_the_page())
