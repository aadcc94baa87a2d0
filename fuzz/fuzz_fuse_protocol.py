"""Fuzz the parser of FUSE requests. Run as :mod:`fuzz.engine` says.

An input is a request as read from the device. Parsers return or raise InvalidInput, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from fuzz.engine import instrumented, run

with instrumented(__name__, "glowplug.image.lazy.fuse_protocol"):
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


def _request(opcode: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", protocol.HEADER_BYTES + len(body), opcode, 7, 1, 0, 0, 0, 0, 0) + body


SOUND = [
    _request(protocol.Opcode.INIT, struct.pack("<IIII", 7, 41, 1 << 20, 0)),
    _request(protocol.Opcode.READ, struct.pack("<QQIIQII", 0, 4096, 8192, 0, 0, 0, 0)),
    _request(protocol.Opcode.OPEN, struct.pack("<II", 0, 0)),
    _request(protocol.Opcode.LOOKUP, b"name\0"),
    _request(protocol.Opcode.GETXATTR, struct.pack("<II", 100, 0) + b"user.name\0"),
    _request(protocol.Opcode.LISTXATTR, struct.pack("<II", 100, 0)),
]


def fuzz(data: bytes) -> bool:
    """One input: as it is, and with a length that is right, so that bodies are reached too."""
    is_parsed = _is_parsed(data)
    if len(data) >= protocol.HEADER_BYTES:
        return _is_parsed(struct.pack("<I", len(data)) + data[4:]) or is_parsed
    return is_parsed


def _is_parsed(data: bytes) -> bool:
    view = memoryview(data)
    try:
        header = protocol.parse_header(view, len(data))
        parse = PARSERS.get(header.opcode)
        if parse is not None:
            parse(view[protocol.HEADER_BYTES :])
    except InvalidInput as refused:
        if not str(refused):
            raise AssertionError("a refusal without words") from refused
        return False
    return True


if __name__ == "__main__":
    run(fuzz)
