"""Damages indexes, as chance does and as somebody does who knows the format; for tests and the fuzzer."""

from __future__ import annotations

import random

from tests.image.index.trees import describe, directory, file, hole, memory, symlink, tree_of

from glowplug.chunks.table import ChunkTable
from glowplug.image.index.erofs_read import read_index
from glowplug.image.index.relocate import relocate
from glowplug.image.index.tree import Tree
from glowplug.types.errors import InvalidInput

BLOCK_BYTES = 4096
INTERESTING = (0, 1, 2, 4, 8, 0x20, 0x28, 0x7F, 0x80, 0xFF)


def seed_tree() -> Tree:
    """Small, with each form that an index has for something."""
    shared = file(5000, seed=3)
    label = {b"security.selinux": b"label" * 60}
    return tree_of(
        {
            b"a": shared,
            b"again": shared,
            b"big": file((1 << 21) + 5, seed=7),
            b"dir": directory(children={b"n" * 200 + b"%d" % n: file(xattrs=label) for n in range(30)}),
            b"empty": directory(uid=70_000),
            b"hole": hole(1 << 33),
            b"link": symlink(b"somewhere"),
            b"memory": memory(3 << 12, -(2 << 12), 1 << 12, 5),
            b"long": symlink(b"l" * 4090),
            b"owned": file(9, uid=70_000, xattrs={b"user.a": b"b" * 30}),
        }
    )


def mutate(image: bytes, generator: random.Random) -> bytes:
    """The image with one to four small changes, most of them where there is something to change."""
    data = bytearray(image)
    filled = [position for position in range(1024, len(data)) if data[position]]
    for _ in range(generator.randint(1, 4)):
        position = generator.choice(filled) if generator.random() < 0.8 else generator.randrange(len(data))
        kind = generator.randrange(4)
        if kind == 0:
            data[position] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[position] = generator.choice(INTERESTING)
        elif kind == 2:
            start = generator.choice(filled) & ~31
            data[position & ~31 : (position & ~31) + 32] = data[start : start + 32]
        else:
            data[position] = (data[position] + generator.choice((1, -1))) & 0xFF
    return bytes(data[: len(image)])


def check_survives(image: bytes, table: ChunkTable) -> bool:
    """Whether it is still an index. One that is can be relocated, and neither says more than is there."""
    try:
        tree = read_index(image, table)
    except InvalidInput:
        check_relocation(image, table)
        return False
    names = sum(1 for _ in tree.walk())
    assert names * 12 < len(image)
    assert len(describe(tree)) == names
    check_relocation(image, table)
    return True


def check_relocation(image: bytes, table: ChunkTable) -> None:
    try:
        moved = relocate(image, lambda index: (1, table.offset(index)), table, {1: table.starts[-1]})
    except InvalidInput:
        return
    assert len(moved) == len(image)
