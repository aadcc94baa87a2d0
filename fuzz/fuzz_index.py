"""Fuzz the index reader, the chunk table and relocation. Run as :mod:`fuzz.engine` says.

Inputs are: a byte that chooses what is fuzzed, then a table, a manifest, an image, or changes to a sound
image. Whatever comes in, the code under test returns or raises InvalidInput; anything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable

from fuzz.engine import instrumented, run

with instrumented(__name__, "glowplug.chunks", "glowplug.image.index"):
    from tests.image.index.mutations import check_survives, seed_tree

    from glowplug.chunks.table import ChunkTable
    from glowplug.image.index.erofs_write import write_index
    from glowplug.image.index.manifest import ImageConfig, ImageManifest
    from glowplug.types.errors import InvalidInput

IMAGE, PACKED = write_index(seed_tree())
TABLE = ChunkTable(PACKED)
MANIFEST = ImageManifest.of(IMAGE, PACKED, 10, ImageConfig()).canonical()
SOUND = [b"t" + PACKED, b"m" + MANIFEST, b"i" + IMAGE, b"c"]


def fuzz(data: bytes) -> bool:
    """One input."""
    kind, rest = data[:1], data[1:]
    if kind == b"t":
        return _is_parsed(ChunkTable, rest)
    if kind == b"m":
        return _is_parsed(ImageManifest.parse, rest)
    return check_survives(rest if kind == b"i" else _changed(rest), TABLE)


def _is_parsed(parse: Callable[[bytes], object], data: bytes) -> bool:
    try:
        parse(data)
    except InvalidInput:
        return False
    return True


def _changed(changes: bytes) -> bytes:
    """The sound image after changes of {position, length, bytes}: fuzzing starts inside the format."""
    image = bytearray(IMAGE)
    at = 0
    while at + 4 <= len(changes):
        position = int.from_bytes(changes[at : at + 3], "little") % len(image)
        length = 1 + changes[at + 3] % 8
        image[position : position + length] = changes[at + 4 : at + 4 + length].ljust(length, b"\0")
        at += 4 + length
    return bytes(image[: len(IMAGE)])


if __name__ == "__main__":
    run(fuzz)
