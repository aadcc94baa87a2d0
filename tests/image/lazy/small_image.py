"""A tiny image without stores and daemons: an index, and a plain file that is its whole blob."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_write import write_index
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.lazy import syscalls

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@dataclass(frozen=True)
class SmallImage:
    index: Path
    blob: Path
    target: Path  # an empty folder
    table: ChunkTable
    tree: Tree


def write_small_image(folder: Path, files: Mapping[str, bytes]) -> SmallImage:
    """Files in the root, by name."""
    bodies: dict[bytes, bytes] = {}
    children = {}
    for name, content in files.items():
        cuts = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        chunks = tuple(map(Chunk.of, cuts))
        bodies.update(zip((chunk.id for chunk in chunks), cuts, strict=True))
        children[name.encode()] = Inode(
            mode=stat.S_IFREG | 0o644,
            size_bytes=len(content),
            extents=(Extent(0, chunks),) if chunks else (),
        )
    tree = Tree(Inode(mode=stat.S_IFDIR | 0o755, children=children))
    index, packed = write_index(tree)
    table = ChunkTable(packed)
    paths = folder / "index.erofs", folder / "blob", folder / "mounted"
    paths[0].write_bytes(index)
    blob = [bodies[chunk.id].ljust(aligned(chunk.size_bytes), b"\0") for chunk in table]
    paths[1].write_bytes(b"".join(blob))
    paths[2].mkdir()
    return SmallImage(*paths, table, tree)


def detach_all(target: Path) -> None:
    while syscalls.detach(target):
        pass
