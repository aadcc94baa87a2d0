"""The words of ``/dev/fuse``: what the kernel asks and how it wants to be answered, as pure functions.

Spoken directly rather than through libfuse: a file descriptor can then be handed from process to process,
which is what lets a filesystem outlive its server. Layouts are those of ``include/uapi/linux/fuse.h``
7.31 (Linux 5.4), which later kernels only add to. Nothing here reads or writes; requests come from the
kernel, yet every length is checked, because one parser that trusts is one too many.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from glowplug.types.errors import InvalidInput

MAJOR = 7
MINOR = 38
OLDEST_MINOR = 31
ROOT_NODE = 1
MAX_READ_BYTES = 1 << 20
MAX_NAME_BYTES = 1024  # FUSE_NAME_MAX
MAX_WRITE_BYTES = 4096  # the least the kernel takes; nothing here is ever written to
REQUEST_BUFFER_BYTES = 1 << 16  # longer than any request to a read-only filesystem
NOTIFY_RESEND = 7  # Linux 6.9: ask again all that was read from the device and not answered

_PAGES_OF_A_READ = MAX_READ_BYTES // 4096
_MAX_BACKGROUND = 512
"""Asynchronous reads that the kernel keeps in flight. Many, so that reads which wait for the network do not
use up the places of reads that need not."""


class Opcode(IntEnum):
    """What the kernel may ask of a read-only filesystem."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


class InitFlag(IntEnum):
    """Abilities that both sides agree on in INIT."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24


DEFAULT_FLAGS = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
)


class OpenFlag(IntEnum):
    """How the kernel is to treat an open file."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NO_FLUSH = 1 << 5


_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
_READ_IN = struct.Struct("<QQIIQII")
_OPEN_IN = struct.Struct("<II")
_OPEN_OUT = struct.Struct("<QIi")
_GETXATTR_IN = struct.Struct("<II")
_GETXATTR_OUT = struct.Struct("<II")
_ATTR = struct.Struct("<QQQqqqIIIIIIIIII")
_ATTR_OUT = struct.Struct("<QII")
_ENTRY_OUT = struct.Struct("<QQQQII")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_DIRENT = struct.Struct("<QQII")

HEADER_BYTES = _IN.size
ANSWER_HEADER_BYTES = _OUT.size
RESEND_NOTICE = _OUT.pack(_OUT.size, NOTIFY_RESEND, 0)


class Header(NamedTuple):
    """What every request begins with. ``unique`` names it in the answer."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


class InitAsked(NamedTuple):
    """The kernel's side of INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class ReadAsked(NamedTuple):
    """A range of a file, or of a folder's entries."""

    handle: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """A file's metadata. Times are ``(seconds, nanoseconds)``; seconds may be negative."""

    inode: int
    mode: int
    size_bytes: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    device: int = 0
    modified: tuple[int, int] = (0, 0)


class DirectoryEntry(NamedTuple):
    """One name of a folder. ``next_offset`` is where reading goes on after it."""

    inode: int
    next_offset: int
    mode: int
    name: bytes


def parse_header(buffer: bytes | bytearray | memoryview, received: int) -> Header:
    """The head of a request of which ``received`` bytes came. Raises InvalidInput."""
    if received < HEADER_BYTES or received > len(buffer):
        raise _malformed("shorter than its header")
    length, opcode, unique, node, uid, gid, pid, _, _ = _IN.unpack_from(buffer)
    if length != received:
        raise _malformed("not as long as it says")
    return Header(length, opcode, unique, node, uid, gid, pid)


def parse_init(body: memoryview) -> InitAsked:
    """Raises InvalidInput."""
    return InitAsked(*_unpack(_INIT_IN, body))


def parse_read(body: memoryview) -> ReadAsked:
    """READ, READDIR and READDIRPLUS. Raises InvalidInput."""
    handle, offset, size, *_ = _unpack(_READ_IN, body)
    if size > MAX_READ_BYTES or offset >= 1 << 63:
        raise _malformed("a read beyond all bounds")
    return ReadAsked(handle, offset, size)


def parse_open_flags(body: memoryview) -> int:
    """The ``O_*`` flags of OPEN and OPENDIR. Raises InvalidInput."""
    flags: int = _unpack(_OPEN_IN, body)[0]
    return flags


def parse_name(body: memoryview) -> bytes:
    """The name of LOOKUP. Raises InvalidInput."""
    raw = bytes(body[: MAX_NAME_BYTES + 1])
    name, ended, _ = raw.partition(b"\0")
    if not ended or not name:
        raise _malformed("a name without an end, or empty")
    return name


def parse_get_xattr(body: memoryview) -> tuple[int, bytes]:
    """Room for the value (0: only its size is asked) and the name. Raises InvalidInput."""
    return parse_list_xattr(body), parse_name(body[_GETXATTR_IN.size :])


def parse_list_xattr(body: memoryview) -> int:
    """Room for the list of names (0: only its size is asked). Raises InvalidInput."""
    room_bytes: int = _unpack(_GETXATTR_IN, body)[0]
    return room_bytes


def pack_answer_header(unique: int, body_bytes: int) -> bytes:
    """What stands before the body of a good answer."""
    return _OUT.pack(_OUT.size + body_bytes, 0, unique)


def pack_error(unique: int, code: int) -> bytes:
    """An answer that says ``code`` (an errno, positive) and nothing else."""
    return _OUT.pack(_OUT.size, -code, unique)


def pack_init(asked: InitAsked, flags: int) -> bytes:
    """Our side of INIT: ``flags`` as far as the kernel has them. Raises InvalidInput for an old kernel."""
    if asked.major < MAJOR or (asked.major == MAJOR and asked.minor < OLDEST_MINOR):
        raise InvalidInput(
            f"This kernel speaks FUSE {asked.major}.{asked.minor}, older than {MAJOR}.{OLDEST_MINOR}.",
            remedy="Use Linux 5.4 or newer.",
        )
    return _INIT_OUT.pack(
        MAJOR,
        min(MINOR, asked.minor) if asked.major == MAJOR else MINOR,
        asked.max_readahead,
        asked.flags & flags,
        _MAX_BACKGROUND,
        _MAX_BACKGROUND * 3 // 4,
        MAX_WRITE_BYTES,
        1,  # nanoseconds that times are multiples of
        _PAGES_OF_A_READ,
        0,
        0,
        0,
    )


def pack_attributes(attributes: Attributes, valid_s: int) -> bytes:
    """The answer to GETATTR; the kernel may keep it ``valid_s`` seconds."""
    return _ATTR_OUT.pack(valid_s, 0, 0) + _attr(attributes)


def pack_entry(node: int, attributes: Attributes, valid_s: int) -> bytes:
    """The answer to LOOKUP."""
    return _ENTRY_OUT.pack(node, 0, valid_s, valid_s, 0, 0) + _attr(attributes)


def pack_open(handle: int, flags: int) -> bytes:
    """The answer to OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, flags, 0)


def pack_xattr_size(size_bytes: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR when only the size was asked."""
    return _GETXATTR_OUT.pack(size_bytes, 0)


def pack_statfs(blocks: int, files: int, block_bytes: int = 4096, name_bytes: int = 255) -> bytes:
    """The answer to STATFS of a filesystem that is full, as a read-only one is."""
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, block_bytes, name_bytes, block_bytes, 0)


def pack_directory(entries: Iterable[DirectoryEntry], room_bytes: int) -> bytes:
    """As many entries as fit ``room_bytes``: the answer to READDIR."""
    packed = bytearray()
    for entry in entries:
        record = _dirent(entry)
        if len(packed) + len(record) > room_bytes:
            break
        packed += record
    return bytes(packed)


def pack_directory_plus(
    entries: Iterable[tuple[DirectoryEntry, Attributes]], valid_s: int, room_bytes: int
) -> bytes:
    """The answer to READDIRPLUS: entries with what LOOKUP would say; the node is the inode.

    The kernel counts each of these, ``.`` and ``..`` excepted, as a LOOKUP.
    """
    packed = bytearray()
    for entry, attributes in entries:
        is_self = entry.name in (b".", b"..")
        record = pack_entry(0 if is_self else entry.inode, attributes, 0 if is_self else valid_s)
        record += _dirent(entry)
        if len(packed) + len(record) > room_bytes:
            break
        packed += record
    return bytes(packed)


def _dirent(entry: DirectoryEntry) -> bytes:
    kind = stat.S_IFMT(entry.mode) >> 12
    record = _DIRENT.pack(entry.inode, entry.next_offset, len(entry.name), kind) + entry.name
    return record + bytes(-len(record) % 8)


def _attr(attributes: Attributes) -> bytes:
    seconds, nanoseconds = attributes.modified
    return _ATTR.pack(
        attributes.inode,
        attributes.size_bytes,
        (attributes.size_bytes + 511) // 512,
        seconds, seconds, seconds,
        nanoseconds, nanoseconds, nanoseconds,
        attributes.mode,
        attributes.links,
        attributes.uid,
        attributes.gid,
        attributes.device,
        4096,
        0,
    )  # fmt: skip


def _unpack(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    if len(body) < layout.size:
        raise _malformed("shorter than its kind needs")
    return layout.unpack_from(body)


def _malformed(why: str) -> InvalidInput:
    return InvalidInput(
        f"A FUSE request is {why}.", remedy="Report it with the kernel's version.", errno=errno.EINVAL
    )
