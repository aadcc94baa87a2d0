"""Fuzz the index reader, the chunk table and relocation: ``python fuzz/fuzz_index.py -max_total_time=60``.

Inputs are: a byte that chooses what is fuzzed, then a table, a manifest, an image, or changes to a sound
image. Whatever comes in, the code under test returns or raises InvalidInput; anything else is a finding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["glowplug.chunks", "glowplug.image.index"]):
    from tests.image.index.mutations import check_survives, seed_tree

    from glowplug.chunks.table import ChunkTable
    from glowplug.image.index.erofs_write import write_index
    from glowplug.image.index.manifest import ImageManifest
    from glowplug.types.errors import InvalidInput

IMAGE, PACKED = write_index(seed_tree())
TABLE = ChunkTable(PACKED)


def fuzz(data: bytes) -> None:
    """One input."""
    kind, rest = data[:1], data[1:]
    if kind == b"t":
        _parse(ChunkTable, rest)
    elif kind == b"m":
        _parse(ImageManifest.parse, rest)
    elif kind == b"i":
        check_survives(rest, TABLE)
    else:
        check_survives(_changed(rest), TABLE)


def _parse(parse: object, data: bytes) -> None:
    try:
        parse(data)  # type: ignore[operator]
    except InvalidInput:
        return


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
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
