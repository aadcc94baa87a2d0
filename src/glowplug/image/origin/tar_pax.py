"""Extended headers of POSIX tar: records ``<length> <key>=<value>\\n``, values being any bytes."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from glowplug.image.origin.acl_text import pack_acl
from glowplug.image.origin.tar_headers import MAX_FILE_BYTES, MAX_ID, MAX_TIME_S
from glowplug.types.errors import InvalidInput

MAX_RECORDS_BYTES = 1 << 20  # of one header; Docker's reader draws the same line
_NUMBER = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_XATTR = b"SCHILY.xattr."
_BSD_XATTR = b"LIBARCHIVE.xattr."
_ACLS = {
    b"SCHILY.acl.access": b"system.posix_acl_access",
    b"SCHILY.acl.default": b"system.posix_acl_default",
}
_SPARSE = b"GNU.sparse."


@dataclass(slots=True)
class Extended:
    """What extended headers say of an entry; None where they say nothing.

    ``sparse`` has the records of GNU's sparse formats in order, since format 0.0 repeats its keys.
    """

    path: bytes | None = None
    target: bytes | None = None
    size_bytes: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[tuple[bytes, bytes]] = field(default_factory=list)


def parse_extended(data: bytes) -> Extended:
    """Read the body of an ``x`` or ``g`` entry. Raises InvalidInput."""
    found = Extended()
    bsd_xattrs: dict[bytes, bytes] = {}
    acls: dict[bytes, bytes] = {}
    for key, value in _records(data):
        if key.startswith(_XATTR):
            found.xattrs[key[len(_XATTR) :]] = value
        elif key.startswith(_BSD_XATTR):
            name, plain = _bsd_xattr(key, value)
            bsd_xattrs[name] = plain
        elif key in _ACLS:
            acls[_ACLS[key]] = value
        elif key.startswith(_SPARSE):
            found.sparse.append((key, value))
        elif value:  # an empty value takes a setting back
            _set(found, key, value)
    found.xattrs = bsd_xattrs | found.xattrs
    for name, text in acls.items():
        if text and name not in found.xattrs:  # as an attribute it has numbers for certain
            found.xattrs[name] = pack_acl(text)
    return found


def number(value: bytes, what: str, maximum: int) -> int:
    """A decimal number of an extended header. Raises InvalidInput."""
    if not _NUMBER.fullmatch(value) or int(value) > maximum:
        raise damaged(f"{what} is no possible number")
    return int(value)


def _set(found: Extended, key: bytes, value: bytes) -> None:
    match key:
        case b"path":
            found.path = value
        case b"linkpath":
            found.target = value
        case b"size":
            found.size_bytes = number(value, "a size", MAX_FILE_BYTES)
        case b"uid":
            found.uid = number(value, "a uid", MAX_ID)
        case b"gid":
            found.gid = number(value, "a gid", MAX_ID)
        case b"mtime":
            found.mtime_ns = _time_ns(value)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 10)
        if space < 0 or not _NUMBER.fullmatch(data, at, space):
            if not data[at:].strip(b"\0"):
                return  # some writers pad
            raise damaged("a record has no length")
        end = at + int(data[at:space])
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise damaged("a record has a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise damaged("a record has no key")
        yield key, value
        at = end


def _time_ns(value: bytes) -> int:
    match = _TIME.fullmatch(value)
    if match is None or int(match[2]) > MAX_TIME_S:
        raise damaged("a time is no possible number")
    fraction_ns = int((match[3] or b"")[:9].ljust(9, b"0"))
    time_ns = int(match[2]) * 1_000_000_000 + fraction_ns
    return -time_ns if match[1] else time_ns


def _bsd_xattr(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """libarchive's own form: the name percent-encoded, the value in base64 without its padding."""
    try:
        plain = b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except ValueError as problem:
        raise damaged("an extended attribute is not base64") from problem
    return unquote_to_bytes(key[len(_BSD_XATTR) :]), plain


def damaged(why: str) -> InvalidInput:
    """The error for an archive that contradicts itself."""
    return InvalidInput(f"This tar archive is damaged: {why}.", remedy="Get it again, or make it again.")
