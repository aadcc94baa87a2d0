"""Writes an image's index: the tree as EROFS metadata, its content as blocks of one further device, the blob.

The same tree gives the same bytes, always: no clock, no randomness, and the UUID is a hash of the content.
Every file is chunk-based and names its device, even one of a single chunk, which EROFS could keep in half the
bytes by mapping the blob into the image's own address space: of files kept so, the kernel reads each page
alone (fs/erofs/fileio.c merges what it has no device to look up for).
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import blake3

from glowplug.chunks.chunk import Chunk, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOB_SLOT,
    BLOCK_BYTES,
    CHUNK_BITS,
    CHUNK_INDEX,
    CHUNK_INDEX_BYTES,
    CHUNK_INDEXES,
    CHUNKED,
    COMPACT,
    EXTENDED,
    FILE_TYPES,
    HOLE,
    INLINE,
    MAX_BLOCKS,
    MAX_INDEX_BYTES,
    NO_BLOCK,
    PAGE_BITS,
    PLAIN,
    SLOT_BYTES,
    UUID_OFFSET,
    Superblock,
    blocks_of,
    encode_device_number,
    head_blocks,
    padded,
    too_big,
)
from glowplug.image.index.erofs_dirs import encode_block
from glowplug.image.index.erofs_nodes import INDEX_TOO_BIG, DirectoryNode, Node, number_nodes
from glowplug.image.index.erofs_xattrs import UNIT_BYTES, XattrPool
from glowplug.image.index.layout import InodeZone
from glowplug.image.index.tree import Tree


def write_index(tree: Tree, order: Iterable[Chunk] | None = None) -> tuple[bytes, bytes]:
    """``index.erofs`` and ``chunks.bin`` of a tree. Raises InvalidInput for what they cannot hold.

    The blob has the chunks of ``order`` first (those that the tree has), then the others as the walk meets
    them, each once.
    """
    tree.check()
    nodes = number_nodes(tree)
    chunks = _blob_order(nodes, order or ())
    writer = _IndexWriter(nodes, chunks)
    image = writer.write()
    table = ChunkTable.pack(chunks)
    uuid = blake3.blake3(image).update(table).digest(16)
    image[UUID_OFFSET : UUID_OFFSET + 16] = uuid
    return bytes(image), table


def _blob_order(nodes: Sequence[Node], order: Iterable[Chunk]) -> list[Chunk]:
    met: dict[bytes, Chunk] = {}
    for node in nodes:
        for chunk in node.slots:
            if chunk is not None and met.setdefault(chunk.id, chunk).size_bytes != chunk.size_bytes:
                raise node.unfit("has a chunk that is elsewhere given another length")
    first = {chunk.id: met[chunk.id] for chunk in order if chunk.id in met}
    return list((first | met).values())


class _IndexWriter:
    """One image being written: places everything, then fills it in."""

    def __init__(self, nodes: Sequence[Node], chunks: Sequence[Chunk]) -> None:
        self._nodes = nodes
        self._mtime_ns = Counter(node.inode.mtime_ns for node in nodes).most_common(1)[0][0]
        self._pool = self._pool_xattrs()
        self._next_block = self._first_block = head_blocks(devices=1)
        zone = InodeZone()
        for node in nodes:
            self._place(node, zone)
        self._xattr_block = self._next_block
        self._meta_block = self._xattr_block + len(self._pool.area) // BLOCK_BYTES
        self._blocks = self._meta_block + blocks_of(zone.end)
        if self._blocks * BLOCK_BYTES > MAX_INDEX_BYTES:
            raise too_big(INDEX_TOO_BIG)
        self._block_of: dict[bytes, int] = {}
        self._blob_blocks = 0
        for chunk in chunks:
            self._block_of[chunk.id] = self._blob_blocks
            self._blob_blocks += aligned(chunk.size_bytes) // BLOCK_BYTES
        if self._blob_blocks > MAX_BLOCKS:
            raise too_big("its content has more than 16 TiB")
        self._image = bytearray()

    def write(self) -> bytearray:
        """The image, its UUID zero."""
        superblock = Superblock(
            root_nid=self._nodes[0].at // SLOT_BYTES,
            inodes=len(self._nodes),
            mtime_ns=self._mtime_ns,
            blocks=self._blocks,
            meta_block=self._meta_block,
            xattr_block=self._xattr_block,
            devices=(self._blob_blocks,),
        )
        self._image = bytearray(self._blocks * BLOCK_BYTES)
        self._put(0, superblock.encode())
        self._put(self._xattr_block * BLOCK_BYTES, self._pool.area)
        for number, node in enumerate(self._nodes, 1):
            self._write_node(node, number)
        return self._image

    def _pool_xattrs(self) -> XattrPool:
        """Also gives every node its xattrs, so that it can be placed."""
        having = [node for node in self._nodes if node.inode.xattrs]
        for node in having:
            try:
                node.xattrs = XattrPool([node.inode.xattrs]).body(node.inode.xattrs)
            except ValueError as problem:
                raise node.unfit(str(problem)) from problem
        pool = XattrPool(node.inode.xattrs for node in having)
        for node in having:
            node.xattrs = pool.body(node.inode.xattrs)
        return pool

    def _place(self, node: Node, zone: InodeZone) -> None:
        inode = node.inode
        kind = stat.S_IFMT(inode.mode)
        size_bytes = inode.size_bytes if kind == stat.S_IFREG else 0
        if isinstance(node, DirectoryNode):
            size_bytes = node.size_bytes
        elif kind == stat.S_IFLNK:
            size_bytes = len(inode.target)
        node.is_extended = (
            inode.mtime_ns != self._mtime_ns
            or inode.uid > 0xFFFF
            or inode.gid > 0xFFFF
            or node.nlink > 0xFFFF
            or size_bytes > 0xFFFFFFFF
        )
        whole_bytes = EXTENDED.size if node.is_extended else COMPACT.size
        behind_bytes = whole_bytes + len(node.xattrs)
        if kind == stat.S_IFREG:
            entries = _index_entries(node)
            if entries:
                behind_bytes = padded(behind_bytes, CHUNK_INDEX_BYTES) + entries * CHUNK_INDEX_BYTES
        elif size_bytes:
            tail_bytes = node.last_bytes if isinstance(node, DirectoryNode) else size_bytes
            node.is_inline = behind_bytes + tail_bytes <= BLOCK_BYTES
            node.block = self._next_block
            self._next_block += blocks_of(size_bytes) - node.is_inline
            if node.is_inline:
                whole_bytes = behind_bytes = behind_bytes + tail_bytes
        node.at = zone.place(behind_bytes, whole_bytes)

    def _write_node(self, node: Node, number: int) -> None:
        inode = node.inode
        kind = stat.S_IFMT(inode.mode)
        start = self._meta_block * BLOCK_BYTES + node.at
        behind = start + (EXTENDED.size if node.is_extended else COMPACT.size)
        layout, size_bytes, union = PLAIN, 0, NO_BLOCK
        if node.xattrs:
            self._put(behind, node.xattrs)
            behind += len(node.xattrs)
        if kind == stat.S_IFREG:
            size_bytes = inode.size_bytes
            if _index_entries(node):
                layout, union = CHUNKED, self._write_chunk_index(node, behind)
        elif isinstance(node, DirectoryNode):
            layout, size_bytes, union = self._write_data(node, behind, _directory_blocks(node))
        elif kind == stat.S_IFLNK:
            layout, size_bytes, union = self._write_data(node, behind, [inode.target])
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            union = encode_device_number(inode.rdev)
        else:
            union = 0
        icount = (len(node.xattrs) - 8) // UNIT_BYTES if node.xattrs else 0  # 12 bytes count as one
        if node.is_extended:
            seconds, nanoseconds = divmod(inode.mtime_ns, 10**9)
            EXTENDED.pack_into(
                self._image, start, layout << 1 | 1, icount, inode.mode, 0, size_bytes, union, number,
                inode.uid, inode.gid, seconds, nanoseconds, node.nlink,
            )  # fmt: skip
        else:
            COMPACT.pack_into(
                self._image, start, layout << 1, icount, inode.mode, node.nlink, size_bytes, 0, union, number,
                inode.uid, inode.gid, 0,
            )  # fmt: skip

    def _write_chunk_index(self, node: Node, behind: int) -> int:
        """Fill in where each mebibyte, or page, is; returns the chunk format."""
        at = padded(behind, CHUNK_INDEX_BYTES)
        if not node.slots:
            CHUNK_INDEX.pack_into(self._image, at, *HOLE)
            return _hole_bits(node.inode.size_bytes) | CHUNK_INDEXES
        is_cut_at_pages = node.inode.is_cut_at_pages
        page = 0  # within its chunk
        for slot, chunk in enumerate(node.slots):
            entry = HOLE if chunk is None else (0, BLOB_SLOT, self._block_of[chunk.id] + page)
            CHUNK_INDEX.pack_into(self._image, at + slot * CHUNK_INDEX_BYTES, *entry)
            if is_cut_at_pages and chunk is not None:
                page = (page + 1) % blocks_of(chunk.size_bytes)
        return (PAGE_BITS if is_cut_at_pages else CHUNK_BITS) | CHUNK_INDEXES

    def _write_data(self, node: Node, behind: int, blocks: list[bytes]) -> tuple[int, int, int]:
        """Put a directory's or link's data where it was placed; returns layout, size and first block."""
        size_bytes = (len(blocks) - 1) * BLOCK_BYTES + len(blocks[-1])
        in_blocks = blocks[:-1] if node.is_inline else blocks
        for number, block in enumerate(in_blocks):
            self._put((node.block + number) * BLOCK_BYTES, block)
        if node.is_inline:
            self._put(behind, blocks[-1])
        return INLINE if node.is_inline else PLAIN, size_bytes, node.block if in_blocks else NO_BLOCK

    def _put(self, at: int, data: bytes) -> None:
        self._image[at : at + len(data)] = data


def _directory_blocks(node: DirectoryNode) -> list[bytes]:
    targets = node.targets()
    nids = [target.at // SLOT_BYTES for target in targets]
    types = [FILE_TYPES[stat.S_IFMT(target.inode.mode)] for target in targets]
    starts = [0, *node.block_ends]
    return [
        encode_block(node.names[begin:end], nids[begin:end], types[begin:end])
        for begin, end in pairwise(starts)
    ]


def _index_entries(node: Node) -> int:
    """Entries of a file's chunk index; an empty file has none, and a hole has one, however long it is."""
    return len(node.slots) or (1 if node.inode.size_bytes else 0)


def _hole_bits(size_bytes: int) -> int:
    """The smallest chunk, a mebibyte or more, that holds the whole file."""
    return max(CHUNK_BITS, (blocks_of(size_bytes) - 1).bit_length())
