"""The small files of a graduated image as one file, so that the kernel reads them ahead of their readers.

Mounted from packs with ``directio``, every small file costs a disk request of its own, and its reader waits
for it: read-ahead ends where a file ends. So the image's smallest chunks are *gathered*: a second, tiny EROFS
image has a single file that is made of them, in the order of the image's own table, which is that of its tree
(or of a trace). Nothing is copied; the file's blocks are where the chunks lie in the packs. The image itself
is then mounted with that file as one more device, in which small files are neighbours.

EROFS files cannot be read with O_DIRECT, so what is read through the gathered file is in the page cache
twice. :data:`SHARE` bounds that, for as long as the image is mounted, whatever is read in whatever order; and
the kernel drops the copy that nobody reads any more first.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glowplug.chunks.chunk import aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    CHUNK_INDEX,
    CHUNK_INDEX_BYTES,
    CHUNK_INDEXES,
    CHUNKED,
    COMPACT,
    EXTENDED,
    FILE_TYPES,
    INLINE,
    SLOT_BYTES,
    Superblock,
    blocks_of,
    head_blocks,
    padded,
)
from glowplug.image.index.erofs_dirs import encode_block

CONTENT_NAME = "content"
_ROOT_NID, _FILE_NID = 0, 4  # the root takes 32 bytes and a directory of 48
SHARE = 1 / 12  # of the image's blocks: how much more page cache a read of everything takes


@dataclass(frozen=True)
class Gathered:
    """The gathered image, and where in its file each chunk begins, in bytes, by index in the table."""

    image: bytes
    offsets: dict[int, int]
    blocks: int  # length of the file


def gather(
    table: ChunkTable, places: Sequence[tuple[int, int]], packs: Mapping[int, int], share: float = SHARE
) -> Gathered:
    """Gather the smallest chunks, of each size all or none, as far as they fit into ``share``: maybe none.

    Chunk ``index`` lies at ``places[index]``: the number of its pack, and the byte in it. ``packs`` are
    number to length in blocks; by ascending number they are the devices, as they are the image's own.
    """
    slots = {number: slot for slot, number in enumerate(sorted(packs), 1)}
    limit_bytes = _limit_bytes(table, share)
    offsets: dict[int, int] = {}
    entries = bytearray()
    for index, size_bytes in enumerate(table.sizes):
        if size_bytes > limit_bytes:
            continue
        pack, offset_bytes = places[index]
        offsets[index] = len(entries) // CHUNK_INDEX_BYTES * BLOCK_BYTES
        first = offset_bytes // BLOCK_BYTES
        for block in range(first, first + blocks_of(size_bytes)):
            entries += CHUNK_INDEX.pack(0, slots[pack], block)
    blocks = len(entries) // CHUNK_INDEX_BYTES
    devices = tuple(packs[number] for number in sorted(packs))
    return Gathered(_write(devices, blocks * BLOCK_BYTES, bytes(entries)), offsets, blocks)


def _limit_bytes(table: ChunkTable, share: float) -> int:
    """The largest size, in whole blocks, of which all chunks together with all smaller ones fit."""
    left_bytes = int(share * table.blob_bytes)
    limit_bytes = 0
    for size_bytes, count in sorted(Counter(map(aligned, table.sizes)).items()):
        left_bytes -= size_bytes * count
        if left_bytes < 0:
            break
        limit_bytes = size_bytes
    return limit_bytes


def _write(devices: tuple[int, ...], size_bytes: int, entries: bytes) -> bytes:
    inodes = _inodes(size_bytes) + entries
    meta_block = head_blocks(len(devices))
    head = Superblock(
        root_nid=_ROOT_NID,
        inodes=2,
        mtime_ns=0,
        blocks=meta_block + blocks_of(len(inodes)),
        meta_block=meta_block,
        xattr_block=meta_block,
        devices=devices,
    )
    return head.encode() + inodes.ljust(padded(len(inodes), BLOCK_BYTES), b"\0")


def _inodes(size_bytes: int) -> bytes:
    """The root folder, and its file up to its chunk index, whose chunks are of one block (format bits 0)."""
    folder, file = FILE_TYPES[stat.S_IFDIR], FILE_TYPES[stat.S_IFREG]
    names = [b".", b"..", CONTENT_NAME.encode()]
    block = encode_block(names, [_ROOT_NID, _ROOT_NID, _FILE_NID], [folder, folder, file])
    mode = stat.S_IFDIR | 0o500
    root = COMPACT.pack(INLINE << 1, 0, mode, 2, len(block), 0, 0, 1, 0, 0, 0) + block
    mode = stat.S_IFREG | 0o400
    content = EXTENDED.pack(CHUNKED << 1 | 1, 0, mode, 0, size_bytes, CHUNK_INDEXES, 2, 0, 0, 0, 0, 1)
    return root.ljust((_FILE_NID - _ROOT_NID) * SLOT_BYTES, b"\0") + content
