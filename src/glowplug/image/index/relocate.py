"""Graduation's core: the same image, its content now in the local packs instead of in the lazy blob.

The packs become the image's devices, and every entry of a file's chunk index is rewritten to the device and
block where the chunk lies.
The kernel then reads other images' packs on behalf of this one, so nothing unchecked may reach it: each inode
that any name leads to is one that was rewritten, and no file is longer than its own chunks.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Mapping

from typing_extensions import Buffer

from glowplug.chunks.chunk import ALIGN_BYTES, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    CHUNK_INDEX,
    CHUNK_INDEX_BYTES,
    MAX_BLOCKS,
    SLOT_BYTES,
    Superblock,
    blocks_of,
    damaged,
    head_blocks,
)
from glowplug.image.index.erofs_dirs import decode_blocks
from glowplug.image.index.erofs_scan import (
    UNION_OFFSET,
    BlobMap,
    Record,
    data_blocks,
    is_cut_at_pages,
    scan_inodes,
)
from glowplug.types.errors import InvalidInput

MAX_PACKS = 0xFFFF  # what the superblock can count

Place = Callable[[int], tuple[int, int]]
"""Where chunk ``index`` lies: the number of its pack, and the byte in it, a multiple of ALIGN_BYTES."""


def relocate(index: Buffer, place: Place, table: ChunkTable, packs: Mapping[int, int]) -> bytes:
    """The image with its content in ``packs`` (number to length in blocks), which become its devices.

    Device slots are the packs by ascending number; mount it with their files in that order. Inodes keep
    their numbers. Raises InvalidInput for an unsound index, a chunk outside of its pack, or too many packs.
    """
    return _Relocation(memoryview(index).cast("B"), place, table, packs).run()


class _Relocation:
    def __init__(self, image: memoryview, place: Place, table: ChunkTable, packs: Mapping[int, int]) -> None:
        if len(packs) > MAX_PACKS:
            raise _unplaced(f"it lies in {len(packs)} packs, and an image can have {MAX_PACKS}")
        if any(blocks > MAX_BLOCKS for blocks in packs.values()):
            raise _unplaced("a pack has more than 16 TiB")
        self._image = image
        self._old = Superblock.parse(image)
        self._blob = BlobMap(self._old, table)
        self._shift = head_blocks(len(packs)) - self._old.first_block
        self._devices = tuple(packs[number] for number in sorted(packs))
        self._sizes = table.sizes
        self._entries = _new_entries(place, table, packs)
        self._moved = bytearray()

    def run(self) -> bytes:
        old, shift = self._old, self._shift
        head = Superblock(
            root_nid=old.root_nid,
            inodes=old.inodes,
            mtime_ns=old.mtime_ns,
            blocks=old.blocks + shift,
            meta_block=old.meta_block + shift,
            xattr_block=old.xattr_block + shift,
            devices=self._devices,
            uuid=old.uuid,
        ).encode()
        self._moved = bytearray(head)
        self._moved += self._image[old.first_block * BLOCK_BYTES :]
        zone = old.meta_block * BLOCK_BYTES
        nids: set[int] = set()
        directories: list[Record] = []
        for record in scan_inodes(self._image, old):
            nids.add((record.start - zone) // SLOT_BYTES)
            kind = stat.S_IFMT(record.mode)
            if kind == stat.S_IFREG:
                self._move_file(record)
            elif kind in (stat.S_IFDIR, stat.S_IFLNK):
                self._move_data(record)
                if kind == stat.S_IFDIR:
                    directories.append(record)
        self._check_names(nids, directories)
        return bytes(self._moved)

    def _move_file(self, record: Record) -> None:
        first = record.tail[0] + self._shift * BLOCK_BYTES
        has_pages = is_cut_at_pages(record)
        for slot, index in self._blob.chunks_of(self._image, record):
            device, block = self._entries[index]
            at = first + slot * CHUNK_INDEX_BYTES
            for page in range(blocks_of(self._sizes[index]) if has_pages else 1):
                CHUNK_INDEX.pack_into(self._moved, at + page * CHUNK_INDEX_BYTES, 0, device, block + page)

    def _move_data(self, record: Record) -> None:
        """Blocks of directories and links move by what the device table grew."""
        if self._shift and record.size_bytes > record.tail[1] - record.tail[0]:
            at = record.start + UNION_OFFSET + self._shift * BLOCK_BYTES
            struct.pack_into("<I", self._moved, at, record.union + self._shift)

    def _check_names(self, nids: set[int], directories: list[Record]) -> None:
        """Names may only lead to inodes that were scanned, and so moved."""
        leading = {self._old.root_nid}
        for record in directories:
            leading.update(nid for _, nid, _ in decode_blocks(data_blocks(self._image, record)))
        if not leading <= nids:
            raise damaged("a name leads to no inode")


def _new_entries(place: Place, table: ChunkTable, packs: Mapping[int, int]) -> list[tuple[int, int]]:
    """Where each chunk will be: the slot of its device, and the block in that."""
    slots = {number: slot for slot, number in enumerate(sorted(packs), 1)}
    entries: list[tuple[int, int]] = []
    for index, size_bytes in enumerate(table.sizes):
        pack, offset_bytes = place(index)
        end_bytes = offset_bytes + aligned(size_bytes)
        if pack not in slots or offset_bytes % ALIGN_BYTES or not 0 <= offset_bytes <= end_bytes:
            raise _unplaced(f"chunk {index} has no place")
        if end_bytes > packs[pack] * BLOCK_BYTES:
            raise _unplaced(f"chunk {index} lies behind the end of pack {pack}")
        entries.append((slots[pack], offset_bytes // BLOCK_BYTES))
    return entries


def _unplaced(why: str) -> InvalidInput:
    return InvalidInput(
        f"This image cannot be mounted from local packs: {why}.",
        remedy="It stays mounted through the blob daemon; `glowplug image verify` checks the packs.",
    )
