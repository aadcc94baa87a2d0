"""Reads an index back into the tree it was written from, whoever wrote it.

The exact inverse of ``write_index``. An index is only accepted if it is wholly sound: every name leads to an
inode, every inode has exactly the names it counts, every directory hangs at one place. Anything else raises
InvalidInput, after work and memory in proportion to the image's length at most.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from typing_extensions import Buffer

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    FILE_TYPES,
    SLOT_BYTES,
    Superblock,
    damaged,
    decode_device_number,
)
from glowplug.image.index.erofs_dirs import decode_blocks
from glowplug.image.index.erofs_scan import BlobMap, Record, data_blocks, is_cut_at_pages, scan_inodes
from glowplug.image.index.erofs_xattrs import SharedXattrs
from glowplug.image.index.tree import Extent, Inode, Tree


def read_index(image: Buffer, table: ChunkTable) -> Tree:
    """The tree of an image. Raises InvalidInput."""
    reader = _IndexReader(memoryview(image).cast("B"), table)
    tree = reader.read()
    tree.check()
    return tree


class _IndexReader:
    """One image being read."""

    def __init__(self, image: memoryview, table: ChunkTable) -> None:
        self._image = image
        self._table = table
        self._superblock = Superblock.parse(image)
        self._blob = BlobMap(self._superblock, table)
        area = image[self._superblock.xattr_block * BLOCK_BYTES : self._superblock.meta_block * BLOCK_BYTES]
        self._shared_xattrs = SharedXattrs(area)
        self._found: dict[int, tuple[Record, Inode]] = {}
        self._names: dict[int, int] = {}  # how many names lead to each inode; of a directory, its own count

    def read(self) -> Tree:
        zone = self._superblock.meta_block * BLOCK_BYTES
        for record in scan_inodes(self._image, self._superblock):
            self._found[(record.start - zone) // SLOT_BYTES] = record, self._read_inode(record)
        if len(self._found) != self._superblock.inodes:
            raise damaged("it does not have as many inodes as it says")
        check_disjoint(record for record, _ in self._found.values())
        root_nid = self._superblock.root_nid
        root = self._inode(root_nid)[1]
        if not root.is_directory:
            raise damaged("its root is not a directory")
        self._names[root_nid] = 2
        pending = [(root_nid, root_nid)]
        while pending:
            nid, parent = pending.pop()
            pending += self._fill_directory(nid, parent)
        self._check_links()
        return Tree(root)

    def _read_inode(self, record: Record) -> Inode:
        inode = Inode(record.mode, record.uid, record.gid, record.mtime_ns)
        start, end = record.xattrs
        if end > start:
            inode.xattrs = self._shared_xattrs.read(self._image[start:end])
        kind = stat.S_IFMT(record.mode)
        if kind == stat.S_IFREG:
            inode.size_bytes = record.size_bytes
            inode.extents = self._read_extents(record)
            inode.is_cut_at_pages = is_cut_at_pages(record)
        elif kind == stat.S_IFLNK:
            inode.target = b"".join(data_blocks(self._image, record))
            if b"\0" in inode.target:
                raise damaged("a link leads to what cannot be a path")
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            inode.rdev = decode_device_number(record.union)
        return inode

    def _read_extents(self, record: Record) -> tuple[Extent, ...]:
        """Extents as long as they can be."""
        unit_bytes = BLOCK_BYTES if is_cut_at_pages(record) else CHUNK_BYTES
        runs: list[tuple[int, list[Chunk]]] = []
        end_bytes = -1
        for slot, index in self._blob.chunks_of(self._image, record):
            chunk = self._table[index]
            if slot * unit_bytes != end_bytes:
                runs.append((slot * unit_bytes, []))
            runs[-1][1].append(chunk)
            end_bytes = slot * unit_bytes + chunk.size_bytes
        return tuple(Extent(offset, tuple(chunks)) for offset, chunks in runs)

    def _fill_directory(self, nid: int, parent: int) -> list[tuple[int, int]]:
        """Hang a directory's entries into it; returns the directories among them, with their parent."""
        record, inode = self._inode(nid)
        below: list[tuple[int, int]] = []
        own: dict[bytes, int] = {}
        for name, child_nid, kind in decode_blocks(data_blocks(self._image, record)):
            child_record, child = self._inode(child_nid)
            if kind != FILE_TYPES[stat.S_IFMT(child_record.mode)]:
                raise damaged("a name is of another kind than what it leads to")
            if name in (b".", b".."):
                own[name] = child_nid
                continue
            if child.is_directory:
                if child_nid in self._names:
                    raise damaged("a directory hangs at two places")
                self._names[child_nid] = 2
                self._names[nid] += 1
                below.append((child_nid, nid))
            else:
                self._names[child_nid] = self._names.get(child_nid, 0) + 1
            inode.children[name] = child
        if own != {b".": nid, b"..": parent}:
            raise damaged("a directory does not know itself or its parent")
        return below

    def _inode(self, nid: int) -> tuple[Record, Inode]:
        if nid not in self._found:
            raise damaged("a name leads to no inode")
        return self._found[nid]

    def _check_links(self) -> None:
        for nid, (record, _) in self._found.items():
            if self._names.get(nid) != record.nlink:
                raise damaged("an inode does not have as many names as it says")


def check_disjoint(records: Iterable[Record]) -> None:
    """Raise InvalidInput if directories or links share blocks: a small image could stand for a huge tree."""
    spans = sorted(
        (record.union * BLOCK_BYTES, outside_bytes)
        for record in records
        if stat.S_IFMT(record.mode) in (stat.S_IFDIR, stat.S_IFLNK)
        and (outside_bytes := record.size_bytes - (record.tail[1] - record.tail[0]))
    )
    end = 0
    for start, size_bytes in spans:
        if start < end:
            raise damaged("two inodes have the same blocks")
        end = start + size_bytes
