"""EROFS on disk, as much of it as an index uses: no compression, no inline file data, 4 KiB blocks.

After the kernel's ``fs/erofs/erofs_fs.h``; everything here is understood by each kernel since 5.16, which
brought the device table. What newer kernels read into fields that used to be reserved is written as zero.

An image is three zones (``docs/image-format.md``): superblock and device table; blocks of directories, long
symlinks and shared xattrs; inodes. Inodes come last and one after the other, so that they can be walked
without following a single pointer, which is what makes reading and relocating hostile images safe.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from glowplug.types.errors import InvalidInput

BLOCK_BYTES = 4096
BLOCK_BITS = 12
SLOT_BYTES = 32  # what a node id counts in
SUPER_OFFSET = 1024
SUPER = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQB23x")
UUID_OFFSET = SUPER_OFFSET + 48
MAGIC = 0xE0F5E1E2
COMPAT_MTIME = 0x2  # a compact inode's time, the build time, is its mtime
INCOMPAT = 0x4 | 0x8  # chunk-based files, a device table
VOLUME = b"glowplug"

DEVICE = struct.Struct("<64sII56x")  # tag, blocks, 0: it has no place in the image's own address space
DEVICES_OFFSET = SUPER_OFFSET + SUPER.size

COMPACT = struct.Struct("<HHHHIIIIHHI")  # format xattrs mode nlink size 0 union ino uid gid 0
EXTENDED = struct.Struct("<HHHHQIIIIqII16x")  # format xattrs mode 0 size union ino uid gid mtime ns nlink
PLAIN, INLINE, CHUNKED = 0, 2, 4  # where an inode's data is: in blocks, behind it, in chunks of a device

CHUNK_INDEX_BYTES = 8
CHUNK_INDEX = struct.Struct("<HHI")  # 0, device slot from 1, block within that device; HOLE
HOLE = (0, 0, 0xFFFFFFFF)
BLOB_SLOT = 1  # before graduation there is no other device
CHUNK_INDEXES = 0x20  # format flag: entries are CHUNK_INDEX
CHUNK_BITS = 8  # 1 MiB = BLOCK_BYTES << 8
PAGE_BITS = 0  # of a file that is cut at pages: an entry per block
MAX_CHUNK_BITS = 31
NO_BLOCK = 0xFFFFFFFF  # of an inode without blocks

MAX_BLOCKS = 0xFFFFFFFE  # of a device: no block of it is numbered as a hole is
MAX_FILE_BYTES = BLOCK_BYTES << MAX_CHUNK_BITS  # 8 TiB: a hole of one index entry
MAX_INDEX_BYTES = 1 << 28  # two million files; bounds what a hostile index can make us do
MAX_OWNER = 0xFFFFFFFE  # -1 means "no id" to the kernel
MAX_MAJOR, MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1

FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
"""The directory entry's type of each ``stat.S_IFMT``."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an image says about itself. Zones: ``[1, meta_block)`` blocks, ``[meta_block, blocks)`` inodes.

    With so many devices that their table outgrows the first block, the blocks begin that much later.
    """

    root_nid: int
    inodes: int
    mtime_ns: int  # of every compact inode
    blocks: int
    meta_block: int
    xattr_block: int
    devices: tuple[int, ...]  # blocks of each
    uuid: bytes = bytes(16)

    @property
    def first_block(self) -> int:
        """Where the blocks begin: behind superblock and device table."""
        return head_blocks(len(self.devices))

    def encode(self) -> bytes:
        """Everything before the blocks: ``first_block`` blocks."""
        seconds, nanoseconds = divmod(self.mtime_ns, 10**9)
        head = bytearray(self.first_block * BLOCK_BYTES)
        SUPER.pack_into(
            head, SUPER_OFFSET, MAGIC, 0, COMPAT_MTIME, BLOCK_BITS, 0, self.root_nid, self.inodes, seconds,
            nanoseconds, self.blocks, self.meta_block, self.xattr_block, self.uuid, VOLUME, INCOMPAT, 0,
            len(self.devices), DEVICES_OFFSET // DEVICE.size, 0, 0, 0, 0, 0,
        )  # fmt: skip
        for number, device_blocks in enumerate(self.devices):
            DEVICE.pack_into(head, DEVICES_OFFSET + number * DEVICE.size, b"", device_blocks, 0)
        return bytes(head)

    @staticmethod
    def parse(image: memoryview) -> Superblock:
        """Raises InvalidInput for an image that an index writer could not have begun."""
        if not BLOCK_BYTES <= len(image) <= MAX_INDEX_BYTES or len(image) % BLOCK_BYTES:
            raise damaged("its length is impossible")
        (
            magic, checksum, compat, block_bits, extensions, root_nid, inodes, seconds, nanoseconds, blocks,
            meta_block, xattr_block, uuid, volume, incompat, *rest,
        ) = SUPER.unpack_from(image, SUPER_OFFSET)  # fmt: skip
        device_count = rest[1]
        expected = (MAGIC, 0, COMPAT_MTIME, BLOCK_BITS, 0, VOLUME, INCOMPAT)
        if (magic, checksum, compat, block_bits, extensions, volume.rstrip(b"\0"), incompat) != expected:
            raise damaged("it does not start as an index does")
        if rest != [0, device_count, DEVICES_OFFSET // DEVICE.size, 0, 0, 0, 0, 0] or nanoseconds >= 10**9:
            raise damaged("its superblock uses what no index uses")
        first_block = head_blocks(device_count)
        if blocks != len(image) // BLOCK_BYTES or not first_block <= xattr_block <= meta_block < blocks:
            raise damaged("its zones are not where they can be")
        slots = [
            DEVICE.unpack_from(image, DEVICES_OFFSET + number * DEVICE.size) for number in range(device_count)
        ]
        if any(start or device_blocks > MAX_BLOCKS for _, device_blocks, start in slots):
            raise damaged("its devices are not as they can be")
        devices = tuple(device_blocks for _, device_blocks, _ in slots)
        mtime_ns = seconds * 10**9 + nanoseconds
        return Superblock(root_nid, inodes, mtime_ns, blocks, meta_block, xattr_block, devices, uuid)


def head_blocks(devices: int) -> int:
    """Blocks that superblock and device table take."""
    return blocks_of(DEVICES_OFFSET + devices * DEVICE.size)


def blocks_of(size_bytes: int) -> int:
    """Blocks that so many bytes take."""
    return (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES


def padded(size_bytes: int, unit_bytes: int) -> int:
    """``size_bytes`` rounded up to whole units."""
    return (size_bytes + unit_bytes - 1) // unit_bytes * unit_bytes


def encode_device_number(rdev: int) -> int:
    """``os.makedev``'s number as the kernel's ``new_encode_dev`` has it. Raises ValueError if it has none."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major > MAX_MAJOR or minor > MAX_MINOR:
        raise ValueError(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_device_number(encoded: int) -> int:
    """The inverse of :func:`encode_device_number`."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | ((encoded >> 12) & 0xFFF00))


def too_big(why: str) -> InvalidInput:
    """The error of a tree that no index can hold as a whole."""
    return InvalidInput(f"This image is too big: {why}.", remedy="Split it, or mount its data as a volume.")


def damaged(why: str) -> InvalidInput:
    """The error of an image that is not an index, or not a sound one."""
    return InvalidInput(
        f"This is not an image index: {why}.",
        remedy="Pull or import the image again (docs/image-format.md).",
    )
