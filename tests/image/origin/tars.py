"""Tar archives for tests, the well-meant ones and those that no program would write."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tests.image.origin.origin_kit import OpenStore, read

from glowplug.image.index.tree import Tree
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.tar import TarOrigin

Member = tuple[tarfile.TarInfo, bytes]
END = bytes(1024)
NEW_SPARSE = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100"))


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def folder(name: str, **fields: object) -> Member:
    return member(name, kind=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.LNKTYPE, linkname=target)


def pack(members: Iterable[Member], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def block(
    name: bytes = b"file", kind: bytes = b"0", size: bytes = b"00000000000\0", **fields: bytes
) -> bytes:
    """A header with whatever in it, and a right checksum. Fields are by their offset: ``at124=b"..."``."""
    header = bytearray(512)
    header[0:100] = name[:100].ljust(100, b"\0")
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = size
    header[136:148] = b"00000000000\0"
    header[156:157] = kind
    header[257:265] = b"ustar\00000"
    for offset, value in fields.items():
        at = int(offset.removeprefix("at"))
        header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def octal(number: int) -> bytes:
    return b"%011o\0" % number


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header and its body."""
    body = b"".join(record(key, value) for key, value in records)
    return block(b"pax", kind, octal(len(body))) + padded(body)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def sound_archives() -> list[bytes]:
    """One of each kind, all small: to be damaged."""
    pax_headers = {"SCHILY.xattr.user.x": "y", "mtime": "1.5"}
    members = [
        folder("a"), member("a/b", b"content" * 200, pax_headers=pax_headers), hard_link("c", "a/b"),
        link("d", "n" * 150), member("e", kind=tarfile.FIFOTYPE), member("a/.wh.b"), member("f/.wh..wh..opq"),
    ]  # fmt: skip
    map_in_data = padded(b"1\n50\n5\n") + padded(b"12345")
    old_map = {"at386": octal(7) + octal(5), "at483": octal(100)}
    return [
        pack(members),
        pax(*NEW_SPARSE) + block(size=octal(517)) + map_in_data + END,
        block(kind=b"S", size=octal(5), **old_map) + padded(b"12345") + END,
        pack([member("n" * 120, b"x")], tarfile.GNU_FORMAT),
        pax((b"SCHILY.acl.access", b"user::rw-,user:5:r--,mask::r--"), (b"uid", b"5"), kind=b"g")
        + block()
        + END,
    ]


def unpack(packed: bytes, limits: ArchiveLimits | None = None) -> tuple[Tree, OpenStore]:
    return read(TarOrigin(io.BytesIO(packed), limits=limits))


def unpack_file(path: Path) -> tuple[Tree, OpenStore]:
    return read(TarOrigin(path))
