"""Fuzz the parser of FUSE requests: ``python fuzz/fuzz_fuse_protocol.py -max_total_time=60``.

An input is a request as read from the device. Parsers return or raise InvalidInput, nothing else.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["glowplug.image.lazy.fuse_protocol"]):
    from glowplug.image.lazy import fuse_protocol as protocol
    from glowplug.types.errors import InvalidInput

PARSERS: dict[int, Callable[[memoryview], object]] = {
    protocol.Opcode.INIT: lambda body: protocol.pack_init(protocol.parse_init(body), protocol.DEFAULT_FLAGS),
    protocol.Opcode.READ: protocol.parse_read,
    protocol.Opcode.READDIR: protocol.parse_read,
    protocol.Opcode.OPEN: protocol.parse_open_flags,
    protocol.Opcode.LOOKUP: protocol.parse_name,
    protocol.Opcode.GETXATTR: protocol.parse_get_xattr,
    protocol.Opcode.LISTXATTR: protocol.parse_list_xattr,
}


def fuzz(data: bytes) -> None:
    """One input: as it is, and with a length that is right, so that bodies are reached too."""
    _parse(data)
    if len(data) >= protocol.HEADER_BYTES:
        _parse(struct.pack("<I", len(data)) + data[4:])


def _parse(data: bytes) -> None:
    view = memoryview(data)
    try:
        header = protocol.parse_header(view, len(data))
        parse = PARSERS.get(header.opcode)
        if parse is not None:
            parse(view[protocol.HEADER_BYTES :])
    except InvalidInput as refused:
        if not str(refused):
            raise AssertionError("a refusal without words") from refused


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
