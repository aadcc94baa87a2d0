"""POSIX ACLs, from the text that tar archives hold to the bytes that the kernel takes as an attribute.

Text is ``user::rwx,user:1001:r--,group::r-x,mask::r-x,other::---``. Names of users mean nothing outside the
machine that wrote them, so a named entry needs its number: as qualifier, or as star writes it, in a fourth
field.
"""

from __future__ import annotations

import re
import struct

from glowplug.types.errors import InvalidInput

_VERSION = 2
_NO_ID = 0xFFFFFFFF
_MAX_ENTRIES = 1024
# include/uapi/linux/posix_acl.h: the tags without and with a qualifier
_OWN = {b"user": 0x01, b"group": 0x04, b"mask": 0x10, b"other": 0x20}
_NAMED = {b"user": 0x02, b"group": 0x08}
_PERMISSIONS = re.compile(rb"[r-][w-][x-]")
_SHORT = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}


def pack_acl(text: bytes) -> bytes:
    """The value of ``system.posix_acl_access`` or ``_default``. Raises InvalidInput."""
    lines = [line.partition(b"#")[0].strip() for line in text.replace(b",", b"\n").split(b"\n")]
    entries = sorted(_entry(line) for line in lines if line)
    if not 0 < len(entries) <= _MAX_ENTRIES:
        raise _unclear(text)
    return struct.pack("<I", _VERSION) + b"".join(
        struct.pack("<HHI", tag, permissions, qualifier) for tag, qualifier, permissions in entries
    )


def _entry(line: bytes) -> tuple[int, int, int]:
    """Tag, qualifier and permissions, in the order in which the kernel wants entries sorted."""
    fields = line.split(b":")
    if not 3 <= len(fields) <= 4:
        raise _unclear(line)
    kind = _SHORT.get(fields[0], fields[0])
    qualifier = fields[3] if len(fields) == 4 else fields[1]
    permissions = _permissions(fields[2].strip())
    if kind in _OWN and not fields[1] and not qualifier:
        return _OWN[kind], _NO_ID, permissions
    if kind in _NAMED and qualifier.isdigit() and len(qualifier) <= 10 and int(qualifier) < _NO_ID:
        return _NAMED[kind], int(qualifier), permissions
    raise _unclear(line)


def _permissions(letters: bytes) -> int:
    if len(letters) != 3 or any(
        letter not in (want, 0x2D) for letter, want in zip(letters, b"rwx", strict=True)
    ):
        raise _unclear(letters)
    return sum(bit for letter, bit in zip(letters, (4, 2, 1), strict=True) if letter != 0x2D)


def _unclear(text: bytes) -> InvalidInput:
    return InvalidInput(
        f"The archive has an access control list that says nothing here: {text[:100]!r}.",
        remedy="Names mean nothing here: make it with `tar --xattrs`, which keeps numbers, or without ACLs.",
    )
