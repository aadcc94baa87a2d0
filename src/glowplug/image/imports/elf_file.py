"""What the dynamic linker reads of a program or library: other libraries, and which of its own bytes.

Of a large library it reads little of the code: headers, symbols, relocations, all that is relocated, and
the functions of ``DT_INIT_ARRAY`` with those that they call. Layouts: ``elf(5)``, the gABI ("Program Loading
and Dynamic Linking"). The file may be anything: nothing is read beyond it, and what does not make sense is
left out.

Calls are found without disassembling: whatever looks like ``call rel32``, ``jmp rel32`` or ``lea reg,
[rip + rel32]`` and leads to code of the file. Of the 117 MiB of 415 that ``import torch`` reads of
``libtorch_cpu.so``, tables and constructors are 23, with what these call 90, and 36 are named that are not
read; one step further would name 141. x86-64 only: elsewhere constructors alone are told.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

HEAD_BYTES = 64
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT = 1, 2
_EXECUTABLE, _WRITABLE = 1, 2
_X86_64 = 62
_NEEDED, _PLT_SIZE, _STRINGS, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_SIZE, _STRINGS_SIZE = 1, 2, 5, 6, 7, 8, 10
_PLT, _INIT, _INIT_SIZE, _HASH, _VERSIONS = 23, 25, 27, 0x6FFFFEF5, 0x6FFFFFF0
_TABLES = (_STRINGS, _SYMBOLS, _RELOCATIONS, _PLT, _HASH, _VERSIONS)
_MAX_HEADERS, _MAX_DYNAMIC_BYTES, _MAX_STRINGS_BYTES, _MAX_INIT_BYTES = 64, 64 << 10, 64 << 20, 1 << 20
_MAX_NAME_BYTES = 255
_FUNCTION_BYTES = 16 << 10  # that is looked at
_MAX_CODE_BYTES = 64 << 20  # the same of all functions of a file
_MAX_CALLED = 1 << 17
_TOLD_BYTES = 64 << 10  # calls are told as blocks of this size
_REFERENCE = re.compile(rb"(?:[\xe8\xe9]|[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d])(....)", re.DOTALL)
_RETURN = re.compile(rb"\xc3(?:\x66|\x0f\x1f|\x90|\xcc|\Z)")  # and what the next function is aligned with


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
    told = _told(size_bytes, read)
    told.read = [
        (start, min(size, size_bytes - start)) for start, size in told.read if size > 0 and start < size_bytes
    ]
    return told


def _told(size_bytes: int, read: Callable[[int, int], bytes]) -> LinkedFile:
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
    (machine,) = struct.unpack_from("<H", head, 18)
    constructors = _constructors(values, offset_of, read)
    code = [one for one in segments if one.kind == _LOAD and one.flags & _EXECUTABLE]
    called = _called(constructors, code, offset_of, read) if machine == _X86_64 else []
    blocks = (
        offset // _TOLD_BYTES
        for address in constructors + called
        if (offset := offset_of(address)) is not None
    )
    told.read += [(block * _TOLD_BYTES, _TOLD_BYTES) for block in dict.fromkeys(blocks)]
    strings_at = offset_of(values[_STRINGS]) if _STRINGS in values else None
    if strings_at is not None:
        strings = read(strings_at, min(sizes[_STRINGS], _MAX_STRINGS_BYTES))
        told.needed = [name for tag, value in entries if tag == _NEEDED and (name := _string(strings, value))]
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
) -> list[int]:
    """Addresses of functions that run when it is loaded; linkers leave them in the file, too."""
    at = offset_of(values[_INIT]) if _INIT in values else None
    if at is None:
        return []
    array = read(at, min(values.get(_INIT_SIZE, 0), _MAX_INIT_BYTES))
    return list(
        dict.fromkeys(address for (address,) in struct.iter_unpack("<Q", array[: len(array) // 8 * 8]))
    )


def _called(
    functions: list[int],
    code: list[_Segment],
    offset_of: Callable[[int], int | None],
    read: Callable[[int, int], bytes],
) -> list[int]:
    """Addresses of code that these functions refer to, in their order."""
    found: dict[int, None] = {}
    for address in functions[: _MAX_CODE_BYTES // _FUNCTION_BYTES]:
        at = offset_of(address)
        if at is None:
            continue
        body = read(at, _FUNCTION_BYTES)
        end = _RETURN.search(body)
        for reference in _REFERENCE.finditer(body, 0, end.end() if end is not None else len(body)):
            (relative,) = struct.unpack("<i", reference[1])
            target = address + reference.end() + relative
            if len(found) < _MAX_CALLED and any(
                one.address <= target < one.address + one.size_bytes for one in code
            ):
                found[target] = None
    return list(found)


def _string(strings: bytes, at: int) -> str:
    end = strings.find(b"\0", at, at + _MAX_NAME_BYTES + 1) if at < len(strings) else -1
    return strings[at:end].decode(errors="replace") if end >= 0 else ""
