"""A tree laid out for answering a kernel's questions: nodes by number, content as slots of the blob.

Numbers are given in the order of the tree's walk, so two processes that serve one index agree on them. The
tree itself is not kept: 60,000 files take about 40 MB here.
"""

from __future__ import annotations

import stat
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from glowplug.chunks.chunk import ALIGN_BYTES, CHUNK_BYTES
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import encode_device_number
from glowplug.image.index.tree import Inode, Tree
from glowplug.image.lazy.fuse_protocol import ROOT_NODE, Attributes

_HOLE = 0xFFFFFFFF
_FOLDER_BYTES = 4096  # what folders say their size is


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file: what lies in the blob from ``start`` on, or, with None, zeros."""

    start: int | None
    size_bytes: int


@dataclass(eq=False)
class PlainNodes:
    """All files of an image by node number. Immutable once :meth:`of` made it."""

    table: ChunkTable
    attributes: dict[int, Attributes] = field(default_factory=dict)
    parents: dict[int, int] = field(default_factory=dict)  # of folders
    children: dict[int, dict[bytes, int]] = field(default_factory=dict)  # of folders, in byte order
    targets: dict[int, bytes] = field(default_factory=dict)  # of links
    xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    # Of files: bytes of a slot, and the page of the blob that each slot begins at.
    _slots: dict[int, tuple[int, array[int]]] = field(default_factory=dict)

    @classmethod
    def of(cls, tree: Tree, table: ChunkTable) -> PlainNodes:
        """The nodes of ``tree``, whose chunks are those of ``table``."""
        nodes = cls(table)
        chunks = {chunk.id: index for index, chunk in enumerate(table)}
        numbers: dict[int, int] = {}  # by id() of the inode: hard links share one
        links: Counter[int] = Counter()
        folders: dict[bytes, int] = {}
        inodes: list[Inode] = []
        for path, inode in tree.walk():
            number = numbers.setdefault(id(inode), len(numbers) + ROOT_NODE)
            links[number] += 1
            if links[number] == 1:
                inodes.append(inode)
            folder, _, name = path.rpartition(b"/")
            parent = folders.get(folder or b"/", ROOT_NODE)
            if inode.is_directory:
                folders[path] = number
                nodes.parents[number] = parent
                nodes.children[number] = {}
            if number != ROOT_NODE:
                nodes.children[parent][name] = number
        for number, inode in enumerate(inodes, start=ROOT_NODE):
            nodes._add(number, inode, links[number], chunks)
        return nodes

    def spans(self, node: int, offset: int, size_bytes: int) -> Iterator[Span]:
        """Where bytes ``offset`` and on of a file come from, up to its end; neighbours in the blob as one."""
        end = min(offset + size_bytes, self.attributes[node].size_bytes)
        merged: Span | None = None
        for span in self._pieces(node, offset, end):
            if merged is None:
                merged = span
            elif _follows(merged, span):
                merged = Span(merged.start, merged.size_bytes + span.size_bytes)
            else:
                yield merged
                merged = span
        if merged is not None:
            yield merged

    def _pieces(self, node: int, offset: int, end: int) -> Iterator[Span]:
        slot_bytes, slots = self._slots.get(node, (CHUNK_BYTES, array("I")))
        while offset < end:
            slot, inside = divmod(offset, slot_bytes)
            size_bytes = min(end - offset, slot_bytes - inside)
            page = slots[slot] if slot < len(slots) else _HOLE
            start = None if page == _HOLE else page * ALIGN_BYTES + inside
            yield Span(start, size_bytes)
            offset += size_bytes

    def _add(self, number: int, inode: Inode, links: int, chunks: dict[bytes, int]) -> None:
        size_bytes = inode.size_bytes
        if inode.is_directory:
            size_bytes = _FOLDER_BYTES
            links = 2 + sum(child.is_directory for child in inode.children.values())
        elif stat.S_ISLNK(inode.mode):
            size_bytes = len(inode.target)
            self.targets[number] = inode.target
        elif inode.extents:
            self._slots[number] = _slots(inode, chunks, self.table)
        self.attributes[number] = Attributes(
            inode=number,
            mode=inode.mode,
            size_bytes=size_bytes,
            links=links,
            uid=inode.uid,
            gid=inode.gid,
            device=encode_device_number(inode.rdev) if stat.S_IFMT(inode.mode) in _DEVICES else 0,
            modified=divmod(inode.mtime_ns, 1_000_000_000),
        )
        if inode.xattrs:
            self.xattrs[number] = dict(inode.xattrs)


_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


def _slots(inode: Inode, chunks: dict[bytes, int], table: ChunkTable) -> tuple[int, array[int]]:
    slot_bytes = ALIGN_BYTES if inode.is_cut_at_pages else CHUNK_BYTES
    slots = array("I", [_HOLE]) * -(-inode.size_bytes // slot_bytes)
    for extent in inode.extents:
        offset = extent.offset
        for chunk in extent.chunks:
            first, start = offset // slot_bytes, table.starts[chunks[chunk.id]]
            for number in range(-(-chunk.size_bytes // slot_bytes)):
                slots[first + number] = start + number
            offset += chunk.size_bytes
    return slot_bytes, slots


def _follows(before: Span, after: Span) -> bool:
    if before.start is None or after.start is None:
        return before.start is after.start
    return before.start + before.size_bytes == after.start
