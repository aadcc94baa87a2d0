"""Extended attributes behind inodes, and those that many inodes have in one area that they share.

An entry is {name length, prefix, value length} + the name without its prefix + the value, padded to 4 bytes.
Entries that at least two inodes have go to the shared area where that makes the image smaller: every file
of a labelled system (SELinux) carries one of a handful.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from glowplug.image.index.erofs import BLOCK_BYTES, damaged, padded
from glowplug.image.index.tree import MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES

HEADER = struct.Struct("<IB7x")  # name filter (unused), shared count; then the shared ids
ENTRY = struct.Struct("<BBH")
UNIT_BYTES = 4
MAX_SHARED = 255
MAX_BODY_BYTES = HEADER.size + UNIT_BYTES * (0xFFFF - 1)
PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_WHOLE_NAMES = (2, 3)
_PREFIX_OF = {index: prefix for prefix, index in PREFIXES}


class XattrPool:
    """Lays out the xattrs of all inodes: ``area`` is the shared area, :meth:`body` what follows an inode.

    Raises ValueError, with the reason, for names and values that EROFS has no room for.
    """

    def __init__(self, all_xattrs: Iterable[Mapping[bytes, bytes]]) -> None:
        uses = Counter(encode_entry(*item) for xattrs in all_xattrs for item in xattrs.items())
        shared = sorted(entry for entry, count in uses.items() if count > 1)
        saved = sum((uses[entry] - 1) * len(entry) - uses[entry] * UNIT_BYTES for entry in shared)
        if saved <= BLOCK_BYTES:  # the area takes whole blocks
            shared = []
        self._ids: dict[bytes, int] = {}
        area = bytearray()
        for entry in shared:
            self._ids[entry] = len(area) // UNIT_BYTES
            area += entry
        self.area = bytes(area.ljust(padded(len(area), BLOCK_BYTES), b"\0"))

    def body(self, xattrs: Mapping[bytes, bytes]) -> bytes:
        """What follows the inode: nothing if it has no xattrs."""
        if not xattrs:
            return b""
        shared: list[int] = []
        inline: list[bytes] = []
        for name in sorted(xattrs):
            entry = encode_entry(name, xattrs[name])
            if entry in self._ids and len(shared) < MAX_SHARED:
                shared.append(self._ids[entry])
            else:
                inline.append(entry)
        ids = struct.pack(f"<{len(shared)}I", *shared)
        body = HEADER.pack(0, len(shared)) + ids + b"".join(inline)
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"has more than {MAX_BODY_BYTES} bytes of extended attributes")
        return body


def encode_entry(name: bytes, value: bytes) -> bytes:
    """One xattr. Raises ValueError."""
    shown = name[:100].decode(errors="backslashreplace")
    if len(name) > MAX_XATTR_NAME_BYTES or len(value) > MAX_XATTR_VALUE_BYTES or b"\0" in name:
        raise ValueError(f"has an extended attribute that is too long: {shown}")
    for prefix, index in PREFIXES:
        if name.startswith(prefix) and (len(name) > len(prefix)) != (index in _WHOLE_NAMES):
            rest = name[len(prefix) :]
            entry = ENTRY.pack(len(rest), index, len(value)) + rest + value
            return entry.ljust(padded(len(entry), UNIT_BYTES), b"\0")
    raise ValueError(f"has an extended attribute that cannot be kept: {shown}")


class SharedXattrs:
    """Reads xattrs back. What inodes share is one object here, too: ids cannot multiply memory."""

    def __init__(self, area: memoryview) -> None:
        self._entries: dict[int, tuple[bytes, bytes]] = {}
        at = 0
        while at < len(area) and area[at + 1]:
            name, value, end = _decode_entry(area, at)
            self._entries[at // UNIT_BYTES] = (name, value)
            at = end
        if any(area[at:]):
            raise damaged("its shared xattrs have something behind them")

    def read(self, body: memoryview) -> dict[bytes, bytes]:
        """The xattrs of an inode, from what follows it."""
        if len(body) == 0:
            return {}
        if len(body) <= HEADER.size:
            raise damaged("an inode's xattrs are cut off")
        _, count = HEADER.unpack_from(body)
        at = HEADER.size + count * UNIT_BYTES
        if at > len(body):
            raise damaged("an inode's xattrs are cut off")
        found: dict[bytes, bytes] = {}
        items = 0
        for (number,) in struct.iter_unpack("<I", body[HEADER.size : at]):
            if number not in self._entries:
                raise damaged("an inode has a shared xattr that does not exist")
            name, value = self._entries[number]
            found[name] = value
            items += 1
        while at < len(body):
            name, value, at = _decode_entry(body, at)
            found[name] = value
            items += 1
        if len(found) != items:
            raise damaged("an inode has an xattr twice")
        return found


def _decode_entry(data: memoryview, at: int) -> tuple[bytes, bytes, int]:
    """The name, the value, and where the next entry starts."""
    name_bytes, index, value_bytes = ENTRY.unpack_from(data, at)
    start = at + ENTRY.size
    end = start + name_bytes + value_bytes
    next_at = padded(end, UNIT_BYTES)
    prefix = _PREFIX_OF.get(index)
    rest = bytes(data[start : start + name_bytes])
    if prefix is None or next_at > len(data) or bool(rest) == (index in _WHOLE_NAMES):
        raise damaged("an xattr is not sound")
    name = prefix + rest
    if b"\0" in rest or len(name) > MAX_XATTR_NAME_BYTES or any(data[end:next_at]):
        raise damaged("an xattr is not sound")
    return name, bytes(data[start + name_bytes : end]), next_at
