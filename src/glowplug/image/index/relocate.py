"""Graduation's core: the same image, its content now in the local packs instead of in the lazy blob.

Every start block is rewritten to where the chunk lies in a pack, and the packs become the image's devices.
The kernel then reads other images' packs on behalf of this one, so nothing unchecked may reach it: each inode
that any name leads to is one that was rewritten, and no file is longer than its own chunks.
"""

from __future__ import annotations

import stat
import struct
from array import array
from collections.abc import Callable, Mapping

from typing_extensions import Buffer

from glowplug.chunks.chunk import ALIGN_BYTES, aligned
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs import (
    BLOCK_BYTES,
    MAX_BLOCKS,
    SLOT_BYTES,
    Device,
    Superblock,
    damaged,
    head_blocks,
)
from glowplug.image.index.erofs_dirs import decode_blocks
from glowplug.image.index.erofs_scan import (
    UNION_OFFSET,
    BlobMap,
    Record,
    data_blocks,
    find_chunk_entries,
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
        self._image = image
        self._old = Superblock.parse(image)
        self._blob = BlobMap(self._old, table)
        self._shift = head_blocks(len(packs)) - self._old.first_block
        self._devices = _line_up(packs, self._old.blocks + self._shift)
        self._new_blocks = _new_blocks(place, table, packs, self._devices)
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
            devices=tuple(self._devices.values()),
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
        self._blob.chunks_of(self._image, record)  # raises if it is not sound
        for at, block in find_chunk_entries(self._image, record):
            new_block = self._new_blocks[self._blob.index_of[block]]
            self._write(at, new_block)

    def _move_data(self, record: Record) -> None:
        """Blocks of directories and links move by what the device table grew."""
        if self._shift and record.size_bytes > record.tail[1] - record.tail[0]:
            self._write(record.start + UNION_OFFSET, record.union + self._shift)

    def _write(self, at: int, block: int) -> None:
        struct.pack_into("<I", self._moved, at + self._shift * BLOCK_BYTES, block)

    def _check_names(self, nids: set[int], directories: list[Record]) -> None:
        """Names may only lead to inodes that were scanned, and so moved."""
        leading = {self._old.root_nid}
        for record in directories:
            leading.update(nid for _, nid, _ in decode_blocks(data_blocks(self._image, record)))
        if not leading <= nids:
            raise damaged("a name leads to no inode")


def _line_up(packs: Mapping[int, int], first_block: int) -> dict[int, Device]:
    """The packs one after the other in the unified address space, behind the image."""
    devices: dict[int, Device] = {}
    block = first_block
    for number in sorted(packs):
        devices[number] = Device(blocks=packs[number], start=block)
        block += packs[number]
    if block > MAX_BLOCKS:
        raise _unplaced("its packs have more than 16 TiB")
    return devices


def _new_blocks(
    place: Place, table: ChunkTable, packs: Mapping[int, int], devices: Mapping[int, Device]
) -> array[int]:
    """The new start block of each chunk."""
    blocks = array("I")
    for index, size_bytes in enumerate(table.sizes):
        pack, offset_bytes = place(index)
        end_bytes = offset_bytes + aligned(size_bytes)
        if pack not in packs or offset_bytes % ALIGN_BYTES or not 0 <= offset_bytes <= end_bytes:
            raise _unplaced(f"chunk {index} has no place")
        if end_bytes > packs[pack] * BLOCK_BYTES:
            raise _unplaced(f"chunk {index} lies behind the end of pack {pack}")
        blocks.append(devices[pack].start + offset_bytes // BLOCK_BYTES)
    return blocks


def _unplaced(why: str) -> InvalidInput:
    return InvalidInput(
        f"This image cannot be mounted from local packs: {why}.",
        remedy="It stays mounted through the blob daemon; `glowplug image verify` checks the packs.",
    )
