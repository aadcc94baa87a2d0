"""What the dynamic linker reads of a program or library: other libraries, and which of its own bytes.

Of a large library it reads little of the code: headers, symbols, relocations, all that is relocated, and
the functions of ``DT_INIT_ARRAY``. Layouts: ``elf(5)``, the gABI ("Program Loading and Dynamic Linking").
The file may be anything: nothing is read beyond it, and what does not make sense is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

HEAD_BYTES = 64
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT = 1, 2
_WRITABLE = 2
_NEEDED, _PLT_SIZE, _STRINGS, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_SIZE, _STRINGS_SIZE = 1, 2, 5, 6, 7, 8, 10
_PLT, _INIT, _INIT_SIZE, _HASH, _VERSIONS = 23, 25, 27, 0x6FFFFEF5, 0x6FFFFFF0
_TABLES = (_STRINGS, _SYMBOLS, _RELOCATIONS, _PLT, _HASH, _VERSIONS)
_MAX_HEADERS, _MAX_DYNAMIC_BYTES, _MAX_STRINGS_BYTES, _MAX_INIT_BYTES = 64, 64 << 10, 64 << 20, 1 << 20
_MAX_NAME_BYTES = 255
_FUNCTION_BYTES = 256  # of a constructor's, at least


@dataclass
class LinkedFile:
    """``needed``: names of libraries (``libc.so.6``), in order. ``read``: (offset, size) in the file."""

    needed: list[str] = field(default_factory=list)
    read: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    size_bytes: int


def is_elf(head: bytes) -> bool:
    """Whether a file that begins so can be told something of."""
    return head.startswith(_MAGIC) and len(head) >= HEAD_BYTES


def linked(size_bytes: int, read: Callable[[int, int], bytes]) -> LinkedFile:
    """What loading it takes. ``read(offset, size)`` gives that much of the file, or what there is."""
    head = read(0, HEAD_BYTES)
    told = LinkedFile(read=[(0, min(size_bytes, 4096))])
    if not is_elf(head):
        return told
    segments = _segments(head, read)
    dynamic = next((one for one in segments if one.kind == _DYNAMIC_SEGMENT), None)
    told.read += [
        (one.offset, one.size_bytes) for one in segments if one.flags & _WRITABLE and one.kind == _LOAD
    ]
    if dynamic is None:
        return told
    entries = _entries(read(dynamic.offset, min(dynamic.size_bytes, _MAX_DYNAMIC_BYTES)))
    values: dict[int, int] = {}
    for tag, value in entries:
        values.setdefault(tag, value)

    def offset_of(address: int) -> int | None:
        for one in segments:
            if one.kind == _LOAD and one.address <= address < one.address + one.size_bytes:
                return one.offset + address - one.address
        return None

    tables = sorted(values[tag] for tag in _TABLES if tag in values)
    sizes = {
        _STRINGS: values.get(_STRINGS_SIZE, 0),
        _RELOCATIONS: values.get(_RELOCATIONS_SIZE, 0),
        _PLT: values.get(_PLT_SIZE, 0),
    }
    for tag in _TABLES:
        at = offset_of(values[tag]) if tag in values else None
        if at is None:
            continue
        # Of some only the start is told: they end where another one begins, at the latest.
        behind = next((table for table in tables if table > values[tag]), values[tag])
        told.read.append((at, sizes.get(tag, behind - values[tag])))
    told.read += _constructors(values, offset_of, read)
    strings_at = offset_of(values[_STRINGS]) if _STRINGS in values else None
    if strings_at is not None:
        strings = read(strings_at, min(sizes[_STRINGS], _MAX_STRINGS_BYTES))
        told.needed = [name for tag, value in entries if tag == _NEEDED and (name := _string(strings, value))]
    told.read = [
        (start, min(size, size_bytes - start)) for start, size in told.read if size > 0 and start < size_bytes
    ]
    return told


def _segments(head: bytes, read: Callable[[int, int], bytes]) -> list[_Segment]:
    (at,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size != _PROGRAM_HEADER.size:
        return []
    headers = read(at, min(count, _MAX_HEADERS) * size)
    found = []
    for start in range(0, len(headers) - size + 1, size):
        kind, flags, offset, address, _, size_bytes, _, _ = _PROGRAM_HEADER.unpack_from(headers, start)
        found.append(_Segment(kind, flags, offset, address, size_bytes))
    return found


def _entries(section: bytes) -> list[tuple[int, int]]:
    found = []
    for start in range(0, len(section) - _DYNAMIC.size + 1, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(section, start)
        if tag == 0:
            break
        found.append((tag, value))
    return found


def _constructors(
    values: dict[int, int], offset_of: Callable[[int], int | None], read: Callable[[int, int], bytes]
) -> list[tuple[int, int]]:
    """Functions that run when it is loaded; linkers leave their addresses in the file, too."""
    at = offset_of(values[_INIT]) if _INIT in values else None
    if at is None:
        return []
    array = read(at, min(values.get(_INIT_SIZE, 0), _MAX_INIT_BYTES))
    addresses = [address for (address,) in struct.iter_unpack("<Q", array[: len(array) // 8 * 8])]
    offsets = dict.fromkeys(offset_of(address) for address in addresses)
    return [(offset, _FUNCTION_BYTES) for offset in offsets if offset is not None]


def _string(strings: bytes, at: int) -> str:
    end = strings.find(b"\0", at, at + _MAX_NAME_BYTES + 1) if at < len(strings) else -1
    return strings[at:end].decode(errors="replace") if end >= 0 else ""
