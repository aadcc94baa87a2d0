"""Walks the inodes of an index one after the other as they lie there, and believes nothing that they say.

No pointer is followed, so there is nothing to loop in, and no byte is counted twice: the work and the memory
are bounded by the image's length, whatever it holds. An inode that is not sound raises InvalidInput.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from glowplug.chunks.chunk import CHUNK_BYTES
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
    MAX_CHUNK_BITS,
    MAX_FILE_BYTES,
    MAX_OWNER,
    PAGE_BITS,
    PLAIN,
    SLOT_BYTES,
    Superblock,
    blocks_of,
    damaged,
    padded,
)
from glowplug.image.index.erofs_xattrs import HEADER as XATTR_HEADER
from glowplug.image.index.erofs_xattrs import UNIT_BYTES as XATTR_UNIT_BYTES
from glowplug.image.index.tree import MAX_SYMLINK_BYTES

UNION_OFFSET = 16  # in both forms of an inode
_EMPTY_SLOT = bytes(SLOT_BYTES)


class Record(NamedTuple):
    """One inode as it lies in the image. Offsets are bytes of the image."""

    start: int
    mode: int
    layout: int
    size_bytes: int
    union: int  # first block, device number or chunk format
    xattrs: tuple[int, int]  # where they start and end
    tail: tuple[int, int]  # the same of inline data, or of a chunk index
    uid: int
    gid: int
    mtime_ns: int
    nlink: int


def scan_inodes(image: memoryview, superblock: Superblock) -> Iterator[Record]:
    """Every inode, by address. Its node id is ``(start - zone start) / SLOT_BYTES``."""
    at = superblock.meta_block * BLOCK_BYTES
    zone_end = superblock.blocks * BLOCK_BYTES
    while at < zone_end:
        if image[at : at + SLOT_BYTES] == _EMPTY_SLOT:
            at += SLOT_BYTES
            continue
        record = _read_inode(image, at, zone_end, superblock)
        yield record
        at = padded(record.tail[1], SLOT_BYTES)


def _read_inode(image: memoryview, at: int, zone_end: int, superblock: Superblock) -> Record:
    layout = image[at]
    if layout & 1:
        if at + EXTENDED.size > zone_end:
            raise damaged("an inode is cut off")
        layout, icount, mode, zero, size_bytes, union, _, uid, gid, seconds, nanoseconds, nlink = (
            EXTENDED.unpack_from(image, at)
        )
        if zero or nanoseconds >= 10**9 or uid > MAX_OWNER or gid > MAX_OWNER:
            raise damaged("an inode has an impossible time or owner")
        mtime_ns = seconds * 10**9 + nanoseconds
        behind = at + EXTENDED.size
    else:
        layout, icount, mode, nlink, size_bytes, zero, union, _, uid, gid, zero_2 = COMPACT.unpack_from(
            image, at
        )
        if zero or zero_2:
            raise damaged("an inode uses what no index uses")
        mtime_ns = superblock.mtime_ns
        behind = at + COMPACT.size
    layout >>= 1
    xattrs_end = behind
    if icount:
        xattrs_end += XATTR_HEADER.size + XATTR_UNIT_BYTES * (icount - 1)
    tail = _find_tail(image, mode, layout, size_bytes, union, xattrs_end, superblock)
    if tail[1] > zone_end:
        raise damaged("an inode is cut off")
    return Record(
        at, mode, layout, size_bytes, union, (behind, xattrs_end), tail, uid, gid, mtime_ns, nlink
    )  # fmt: skip


def _find_tail(
    image: memoryview, mode: int, layout: int, size_bytes: int, union: int, end: int, superblock: Superblock
) -> tuple[int, int]:
    """What follows an inode and its xattrs, after checking that it is what its kind may have."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFREG:
        if layout == PLAIN and size_bytes == 0:
            return end, end
        if layout == CHUNKED and 0 < size_bytes <= MAX_FILE_BYTES:
            return _find_chunk_index(size_bytes, union, end)
    elif kind in (stat.S_IFDIR, stat.S_IFLNK):
        if layout in (PLAIN, INLINE) and size_bytes > 0:
            if kind == stat.S_IFLNK and size_bytes > MAX_SYMLINK_BYTES:
                raise damaged("a link is too long")
            return _find_inline(size_bytes, layout == INLINE, union, end, superblock)
    elif kind in FILE_TYPES and layout == PLAIN and size_bytes == 0:
        return end, end
    raise damaged("an inode is of no kind that an index has")


def _find_chunk_index(size_bytes: int, chunk_format: int, end: int) -> tuple[int, int]:
    bits = chunk_format & ~CHUNK_INDEXES
    is_known = bits == PAGE_BITS or CHUNK_BITS <= bits <= MAX_CHUNK_BITS
    if not chunk_format & CHUNK_INDEXES or not is_known:
        raise damaged("a file is cut in an impossible way")
    start = padded(end, CHUNK_INDEX_BYTES)
    chunk_bytes = BLOCK_BYTES << bits
    entries = (size_bytes + chunk_bytes - 1) // chunk_bytes
    if bits > CHUNK_BITS and entries != 1:
        raise damaged("a file is cut in an impossible way")
    return start, start + entries * CHUNK_INDEX_BYTES


def _find_inline(
    size_bytes: int, is_inline: bool, block: int, end: int, superblock: Superblock
) -> tuple[int, int]:
    blocks = blocks_of(size_bytes) - is_inline
    if blocks and not superblock.first_block <= block <= superblock.xattr_block - blocks:
        raise damaged("an inode's blocks lie where they cannot")
    if not is_inline:
        return end, end
    tail_end = end + size_bytes - blocks * BLOCK_BYTES
    if end // BLOCK_BYTES != (tail_end - 1) // BLOCK_BYTES:
        raise damaged("an inode's data crosses a block")
    return end, tail_end


def data_blocks(image: memoryview, record: Record) -> list[memoryview]:
    """The data of a directory or symlink, in blocks: those outside of the inode, then what is inline."""
    end, tail_end = record.tail
    outside_bytes = record.size_bytes - (tail_end - end)
    start = record.union * BLOCK_BYTES
    blocks = [
        image[start + offset : start + min(offset + BLOCK_BYTES, outside_bytes)]
        for offset in range(0, outside_bytes, BLOCK_BYTES)
    ]
    if tail_end > end:
        blocks.append(image[end:tail_end])
    return blocks


class BlobMap:
    """Which chunk of the blob an entry of a file's chunk index is."""

    def __init__(self, superblock: Superblock, table: ChunkTable) -> None:
        """Raises InvalidInput for an image that is not of this blob."""
        starts = table.starts
        if superblock.devices != (starts[-1],):
            raise damaged("it is not of this table of chunks")
        self._index_of: dict[tuple[int, ...], int] = {
            (0, BLOB_SLOT, start): index for index, start in enumerate(starts[:-1])
        }
        self._sizes = table.sizes

    def chunks_of(self, image: memoryview, record: Record) -> list[tuple[int, int]]:
        """A regular file's chunks: the number of its (first) entry in the chunk index, and which it is.

        Entries that none of them has are holes. Every chunk is exactly as long as its place in the file: no
        byte of another chunk can be read.
        """
        start, end = record.tail
        entries = list(CHUNK_INDEX.iter_unpack(image[start:end]))
        if is_cut_at_pages(record):
            return self._chunks_at_pages(entries, record.size_bytes)
        found = [
            (slot, self._chunk(entry, min(record.size_bytes - slot * CHUNK_BYTES, CHUNK_BYTES)))
            for slot, entry in enumerate(entries)
            if entry != HOLE
        ]
        if record.layout == CHUNKED and record.union != CHUNK_BITS | CHUNK_INDEXES and found:
            raise damaged("a file is cut in an impossible way")
        return found

    def _chunks_at_pages(self, entries: list[tuple[int, ...]], size_bytes: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        page = 0
        while page < len(entries):
            if entries[page] == HOLE:
                page += 1
                continue
            left_bytes = size_bytes - page * BLOCK_BYTES
            index = self._index_of.get(entries[page], -1)
            chunk_bytes = self._sizes[index] if index >= 0 else left_bytes + 1
            if chunk_bytes > left_bytes or (chunk_bytes % BLOCK_BYTES and chunk_bytes != left_bytes):
                raise damaged("a file's chunk is not in its table")
            _, _, block = entries[page]
            pages = blocks_of(chunk_bytes)
            if any(
                entry != (0, BLOB_SLOT, block + number)
                for number, entry in enumerate(entries[page : page + pages])
            ):
                raise damaged("a file's chunk is not whole")
            found.append((page, index))
            page += pages
        return found

    def _chunk(self, entry: tuple[int, ...], size_bytes: int) -> int:
        index = self._index_of.get(entry, -1)
        if index < 0 or self._sizes[index] != size_bytes:
            raise damaged("a file's chunk is not in its table")
        return index


def is_cut_at_pages(record: Record) -> bool:
    """Whether a regular file has an entry per page, and chunks of any number of those."""
    return record.layout == CHUNKED and record.union == PAGE_BITS | CHUNK_INDEXES
