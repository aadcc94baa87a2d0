"""A tree made ready for writing: one node per inode, in the order of the walk, with what EROFS derives.

That is the number of links, the parent of each directory, and every file's content as one chunk or hole per
mebibyte. What EROFS cannot hold is refused here, by path.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from glowplug.chunks.chunk import CHUNK_BYTES, ID_BYTES, Chunk
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    CHUNK_INDEX_BYTES,
    FILE_TYPES,
    MAX_FILE_BYTES,
    MAX_INDEX_BYTES,
    MAX_OWNER,
    blocks_of,
    encode_device_number,
    too_big,
)
from glowplug.image.index.erofs_dirs import split_names
from glowplug.image.index.tree import Inode, Tree
from glowplug.types.errors import InvalidInput

INDEX_TOO_BIG = "its index has more than 256 MiB"
_MAX_SECONDS = 1 << 63


class Node:
    """An inode, its first name, and where it goes once that is known."""

    __slots__ = (
        "at", "block", "inode", "is_extended", "is_inline", "name", "nlink", "parent", "slots", "xattrs",
    )  # fmt: skip

    def __init__(self, inode: Inode, name: bytes, parent: DirectoryNode | None) -> None:
        self.inode = inode
        self.name = name
        self.parent = parent
        self.nlink = 1
        self.slots: tuple[Chunk | None, ...] = ()  # of a file, per mebibyte or page; None is a hole
        self.xattrs = b""
        self.is_extended = False
        self.is_inline = False
        self.at = 0  # offset in the inode zone
        self.block = 0  # its first block among the blocks of directories and links

    def unfit(self, why: str) -> InvalidInput:
        """The error of a file that an index cannot hold."""
        path = b"/" + b"/".join(reversed(list(self._names_up())))
        shown = path.decode(errors="backslashreplace")
        return InvalidInput(f"{shown[:200]} {why}.", remedy="Fix the source of the image.", path=shown)

    def _names_up(self) -> Iterator[bytes]:
        node = self
        while node.parent is not None:
            yield node.name
            node = node.parent


class DirectoryNode(Node):
    """A directory: its entries in order, ``.`` and ``..`` among them, and how they fall into blocks."""

    __slots__ = ("block_ends", "children", "last_bytes", "names")

    def __init__(self, inode: Inode, name: bytes, parent: DirectoryNode | None) -> None:
        super().__init__(inode, name, parent)
        self.nlink = 2
        self.names = sorted((*inode.children, b".", b".."))
        self.children: list[Node] = []  # without those two
        self.block_ends, self.last_bytes = split_names(self.names)

    @property
    def size_bytes(self) -> int:
        """As ``stat`` will show it."""
        return (len(self.block_ends) - 1) * BLOCK_BYTES + self.last_bytes

    def targets(self) -> list[Node]:
        """What each of its names leads to."""
        own = {b".": self, b"..": self.parent or self}
        children = iter(self.children)
        return [own.get(name) or next(children) for name in self.names]


def number_nodes(tree: Tree) -> list[Node]:
    """All inodes of a checked tree, in the order of their first paths. Raises InvalidInput."""
    slots = 0
    nodes: list[Node] = []
    linked: dict[int, Node] = {}
    pending: list[tuple[bytes, Inode, DirectoryNode | None]] = [(b"", tree.root, None)]
    while pending:
        name, inode, parent = pending.pop()
        node: Node | None
        if inode.is_directory:
            node = directory = DirectoryNode(inode, name, parent)
            nodes.append(node)
            _check(node)
            below = inode.children
            pending += [(name, below[name], directory) for name in reversed(directory.names) if name in below]
            if parent is not None:
                parent.nlink += 1
        elif (node := linked.get(id(inode))) is not None:
            node.nlink += 1
        else:
            node = linked[id(inode)] = Node(inode, name, parent)
            nodes.append(node)
            _check(node)
            slots += len(node.slots)
            if slots * CHUNK_INDEX_BYTES > MAX_INDEX_BYTES:  # before many sparse files fill the memory
                raise too_big(INDEX_TOO_BIG)
        if parent is not None:
            parent.children.append(node)
    return nodes


def _check(node: Node) -> None:
    inode = node.inode
    kind = stat.S_IFMT(inode.mode)
    if kind not in FILE_TYPES or inode.mode > 0xFFFF:
        raise node.unfit("is of no kind that a file can be")
    if not (0 <= inode.uid <= MAX_OWNER and 0 <= inode.gid <= MAX_OWNER):
        raise node.unfit("has an owner that is no number a user can have")
    if not -_MAX_SECONDS <= inode.mtime_ns // 10**9 < _MAX_SECONDS:
        raise node.unfit("has a time that cannot be kept")
    if kind == stat.S_IFREG:
        node.slots = _file_slots(node)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        try:
            encode_device_number(inode.rdev)
        except (ValueError, OverflowError) as error:
            raise node.unfit("has a device number that cannot be kept") from error


def _file_slots(node: Node) -> tuple[Chunk | None, ...]:
    """What is in each mebibyte (or page) of a file; only one that has content somewhere has slots."""
    inode = node.inode
    size_bytes = inode.size_bytes
    if not 0 <= size_bytes <= MAX_FILE_BYTES:
        raise node.unfit("has a size that cannot be kept")
    extents = inode.extents
    if inode.is_cut_at_pages:
        return _page_slots(node)
    if len(extents) == 1 and extents[0].offset == 0 and len(extents[0].chunks) == 1:
        chunk = extents[0].chunks[0]  # most files: one chunk
        if chunk.size_bytes == size_bytes <= CHUNK_BYTES and size_bytes and len(chunk.id) == ID_BYTES:
            return extents[0].chunks
    if not any(extent.chunks for extent in extents):
        return ()
    slots: list[Chunk | None] = [None] * ((size_bytes + CHUNK_BYTES - 1) // CHUNK_BYTES)
    end = 0
    for extent in extents:
        first, remainder = divmod(extent.offset, CHUNK_BYTES)
        if remainder or first < end or first + len(extent.chunks) > len(slots):
            raise node.unfit("has extents that overlap or lie outside of it")
        for slot, chunk in enumerate(extent.chunks, first):
            expected_bytes = min(CHUNK_BYTES, size_bytes - slot * CHUNK_BYTES)
            if chunk.size_bytes != expected_bytes or len(chunk.id) != ID_BYTES:
                raise node.unfit("has a chunk that is not as long as its place")
            slots[slot] = chunk
        end = first + len(extent.chunks)
    return tuple(slots)


def _page_slots(node: Node) -> tuple[Chunk | None, ...]:
    """The chunk that each page of a file is in."""
    size_bytes = node.inode.size_bytes
    if not any(extent.chunks for extent in node.inode.extents):
        return ()
    slots: list[Chunk | None] = [None] * blocks_of(size_bytes)
    end_bytes = 0
    for extent in node.inode.extents:
        if extent.offset % BLOCK_BYTES or extent.offset < end_bytes:
            raise node.unfit("has extents that overlap or lie outside of it")
        end_bytes = extent.offset
        for chunk in extent.chunks:
            left_bytes = size_bytes - end_bytes
            is_whole_pages = chunk.size_bytes % BLOCK_BYTES == 0 or chunk.size_bytes == left_bytes
            is_chunk = 0 < chunk.size_bytes <= CHUNK_BYTES and len(chunk.id) == ID_BYTES
            if not is_chunk or not is_whole_pages or chunk.size_bytes > left_bytes:
                raise node.unfit("has a chunk that is not as long as its place")
            first, pages = end_bytes // BLOCK_BYTES, blocks_of(chunk.size_bytes)
            slots[first : first + pages] = [chunk] * pages
            end_bytes += chunk.size_bytes
    return tuple(slots)
