"""Reads the entries of a tar archive one after the other, from a stream that cannot go back.

v7, ustar, GNU, star and POSIX (pax) archives; every entry comes with all that its extended headers say of it.
What programs might understand differently (an unknown type, two long names, a file named like a directory) is
refused, so that what was scanned or signed elsewhere is what is stored here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from glowplug.image.index.tree import Inode
from glowplug.image.origin.attributes import belongs_to_image
from glowplug.image.origin.confine import refused
from glowplug.image.origin.port import ByteStream, Range
from glowplug.image.origin.tar_headers import BLOCK_BYTES, Header, parse_header
from glowplug.image.origin.tar_pax import MAX_RECORDS_BYTES, Extended, damaged, parse_extended
from glowplug.image.origin.tar_sparse import Take, read_extended_map, read_old_map

_READ_BYTES = 256 << 10
_END = bytes(BLOCK_BYTES)
_REGULAR = (b"0", b"\0", b"7", b"S")
_MODES = {
    b"2": stat.S_IFLNK, b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"5": stat.S_IFDIR, b"D": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}  # fmt: skip
_NANOSECONDS = 1_000_000_000


class ExactReader:
    """Gives exactly as many bytes of a stream as asked for, and knows how many it gave."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0
        self.position = 0

    def take(self, size: int) -> bytes:
        """Raises InvalidInput if the stream ends before that."""
        data = self.take_up_to(size)
        if len(data) < size:
            raise damaged("it is cut off")
        return data

    def take_up_to(self, size: int) -> bytes:
        """Fewer than ``size`` only at the stream's end."""
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        if len(data) < size:
            parts = [data]
            missing = size - len(data)
            while missing and (more := self._stream.read(max(missing, _READ_BYTES))):
                parts.append(more[:missing])
                self._buffer, self._at = more, len(parts[-1])
                missing -= len(parts[-1])
            data = b"".join(parts)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Pass over so many bytes."""
        while size > 0:
            size -= len(self.take(min(size, _READ_BYTES)))


class Body:
    """The stored bytes of one entry: a :class:`ByteStream` that ends with it."""

    def __init__(self, reader: ExactReader, size_bytes: int) -> None:
        self._reader = reader
        self.left_bytes = size_bytes

    def read(self, size: int, /) -> bytes:
        """Exactly ``size`` bytes, or what is left. Raises InvalidInput if the archive is cut off."""
        data = self._reader.take(min(size, self.left_bytes))
        self.left_bytes -= len(data)
        return data


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the archive: a hard link to ``link_to``, or ``inode``, lacking its extents.

    A regular file's content is in ``body``, which is good until the next entry is asked for.
    """

    path: bytes
    inode: Inode
    link_to: bytes | None
    body: Body
    data_ranges: list[Range] | None


def read_entries(stream: ByteStream, *, may_just_stop: bool) -> Iterator[Entry]:
    """All entries of an unpacked archive. Raises InvalidInput.

    The archive ends with a block of zeros; with ``may_just_stop`` its end between two entries will do.
    """
    reader = ExactReader(stream)
    defaults = Extended()
    while True:
        announced = _read_announcements(reader, defaults, may_just_stop)
        if announced is None:
            return
        entry, padded = _read_entry(reader, announced, defaults)
        if entry is not None:
            yield entry
        reader.skip(padded - reader.position)


@dataclass(slots=True)
class _Announced:
    """What stood before an entry's own header, and that header."""

    header: Header
    block: bytes
    long_name: bytes | None
    long_target: bytes | None
    extended: Extended | None


def _read_announcements(reader: ExactReader, defaults: Extended, may_just_stop: bool) -> _Announced | None:
    """Read up to and with the header of the next entry proper; None at the end of the archive."""
    extended: Extended | None = None
    long: dict[bytes, bytes] = {}
    while True:
        block = reader.take_up_to(BLOCK_BYTES)
        is_between = extended is None and not long
        if is_between and (block == _END or (may_just_stop and not block)):
            return None
        if len(block) < BLOCK_BYTES:
            raise damaged("it is cut off")
        header = parse_header(block)
        match header.type:
            case b"x" | b"X" if extended is None:
                extended = parse_extended(_short_body(reader, header))
            case b"L" | b"K" if header.type not in long:
                long[header.type] = _short_body(reader, header).partition(b"\0")[0]
            case b"x" | b"X" | b"L" | b"K":
                raise damaged("an entry has two extended headers of a kind")
            case b"g":
                _join_defaults(defaults, parse_extended(_short_body(reader, header)))
            case _:
                return _Announced(header, block, long.get(b"L"), long.get(b"K"), extended)


def _join_defaults(defaults: Extended, found: Extended) -> None:
    """What a global header may say: never a name, a size or a map, which would be the same for all files."""
    for name in ("uid", "gid", "mtime_ns"):
        if getattr(found, name) is not None:
            setattr(defaults, name, getattr(found, name))
    defaults.xattrs = defaults.xattrs | found.xattrs
    if sum(len(name) + len(value) for name, value in defaults.xattrs.items()) > MAX_RECORDS_BYTES:
        raise damaged("its global headers are too long")


def _short_body(reader: ExactReader, header: Header) -> bytes:
    if header.size_bytes > MAX_RECORDS_BYTES:
        raise damaged(f"an extended header is longer than {MAX_RECORDS_BYTES} bytes")
    return reader.take(_padded(header.size_bytes))[: header.size_bytes]


def _read_entry(reader: ExactReader, announced: _Announced, defaults: Extended) -> tuple[Entry | None, int]:
    """The entry (None for a volume's label), and where in the archive the next header starts."""
    header = announced.header
    extended = announced.extended or Extended()
    path = _one_of(announced.long_name, extended.path, header.name)
    target = _one_of(announced.long_target, extended.target, header.target)
    kind = _kind(header.type, path)
    if kind == b"V":
        return None, reader.position
    stored_bytes = header.size_bytes if extended.size_bytes is None else extended.size_bytes
    if kind not in _REGULAR and kind != b"D":
        stored_bytes = 0  # links, devices and directories have no body, whatever the field says
    sparse = read_old_map(announced.block, reader.take) if kind == b"S" else None
    end = reader.position + _padded(stored_bytes)
    if kind in _REGULAR and sparse is None:
        sparse = read_extended_map(extended.sparse, _bounded(reader, stored_bytes))
    if sparse is not None:
        stored_bytes -= sparse.map_bytes
        sparse.check(stored_bytes)
        path = sparse.name or path
    inode = _inode(header, kind, extended, defaults)
    if kind in _REGULAR:
        inode.size_bytes = stored_bytes if sparse is None else sparse.size_bytes
    if kind == b"2":
        inode.target = target
    entry = Entry(
        path=path,
        inode=inode,
        link_to=target if kind == b"1" else None,
        body=Body(reader, stored_bytes),
        data_ranges=None if sparse is None else sparse.ranges,
    )
    return entry, end


def _bounded(reader: ExactReader, size_bytes: int) -> Take:
    body = Body(reader, size_bytes)

    def take(size: int) -> bytes:
        if size > body.left_bytes:
            raise damaged("the map of a sparse file is longer than the file")
        return body.read(size)

    return take


def _kind(kind: bytes, path: bytes) -> bytes:
    """The entry's type; directories were once files whose name ends in a slash."""
    if kind in (b"0", b"\0") and path.endswith(b"/"):
        return b"5"
    if kind in _REGULAR or kind in _MODES or kind in (b"1", b"V"):
        return kind
    raise refused(path, f"is of a kind that is not known here ({kind!r})")


def _one_of(long: bytes | None, extended: bytes | None, short: bytes) -> bytes:
    if long is not None and extended is not None and long != extended:
        raise refused(extended, "has two long names that differ")
    if long is not None:
        return long
    return short if extended is None else extended


def _inode(header: Header, kind: bytes, extended: Extended, defaults: Extended) -> Inode:
    mtime_ns = _first(extended.mtime_ns, defaults.mtime_ns, header.mtime_s * _NANOSECONDS)
    xattrs = defaults.xattrs | extended.xattrs if defaults.xattrs else extended.xattrs
    return Inode(
        mode=_MODES.get(kind, stat.S_IFREG) | header.mode,
        uid=_first(extended.uid, defaults.uid, header.uid),
        gid=_first(extended.gid, defaults.gid, header.gid),
        mtime_ns=mtime_ns,
        xattrs={name: xattrs[name] for name in sorted(xattrs) if belongs_to_image(name)},
        rdev=os.makedev(header.major, header.minor) if kind in (b"3", b"4") else 0,
    )


def _first(own: int | None, default: int | None, plain: int) -> int:
    if own is not None:
        return own
    return plain if default is None else default


def _padded(size_bytes: int) -> int:
    return (size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
