"""Directories as EROFS keeps them: blocks of entries, sorted by name over the whole directory.

The kernel finds a name by binary search, first over the blocks and then in one, so order is not a nicety.
A block is its entries (12 bytes each) followed by their names; the last one is as long as it needs to be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from typing_extensions import Buffer

from glowplug.image.index.erofs import BLOCK_BYTES, damaged
from glowplug.image.index.tree import MAX_NAME_BYTES

ENTRY = struct.Struct("<QHBx")  # node id, where its name starts in the block, file type
ENTRY_BYTES = ENTRY.size


def split_names(names: Sequence[bytes]) -> tuple[list[int], int]:
    """How sorted names fall into blocks: where each block ends in ``names``; bytes used in the last one."""
    ends: list[int] = []
    used = 0
    for position, name in enumerate(names):
        need = ENTRY_BYTES + len(name)
        if used + need > BLOCK_BYTES:
            ends.append(position)
            used = 0
        used += need
    ends.append(len(names))
    return ends, used


def encode_block(names: Sequence[bytes], nids: Sequence[int], types: Sequence[int]) -> bytes:
    """One block, not padded."""
    name_at = ENTRY_BYTES * len(names)
    block = bytearray(name_at)
    entry_at = 0
    for name, nid, kind in zip(names, nids, types, strict=True):
        ENTRY.pack_into(block, entry_at, nid, name_at, kind)
        name_at += len(name)
        entry_at += ENTRY_BYTES
    return bytes(block) + b"".join(names)


def decode_blocks(blocks: Sequence[Buffer]) -> Iterator[tuple[bytes, int, int]]:
    """Every (name, node id, file type) of a directory. Raises InvalidInput for what the kernel could misread.

    That is: a name that no file can have, entries out of order or twice, names that are not exactly one
    behind the other, anything behind the last name.
    """
    before = b""
    for block in blocks:
        content = bytes(block)
        for name, nid, kind in _decode_block(content):
            if name <= before:
                raise damaged("a directory is not in order")
            before = name
            yield name, nid, kind


def _decode_block(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    count, remainder = divmod(int.from_bytes(content[8:10], "little"), ENTRY_BYTES)
    if not count or remainder or count * ENTRY_BYTES > len(content):
        raise damaged("a directory's block does not say how many entries it has")
    entries = list(ENTRY.iter_unpack(content[: count * ENTRY_BYTES]))
    starts = [entry[1] for entry in entries]
    end = content.find(b"\0", starts[-1])
    starts.append(len(content) if end < 0 else end)
    if end >= 0 and content.count(b"\0", end) != len(content) - end:
        raise damaged("a directory's block has something behind its names")
    expected = count * ENTRY_BYTES
    for number, (nid, start, kind) in enumerate(entries):
        end = starts[number + 1]
        name = content[start:end]
        if start != expected or not 0 < len(name) <= MAX_NAME_BYTES or b"/" in name or b"\0" in name:
            raise damaged("a directory has a name that no file can have")
        expected = end
        yield name, nid, kind
