"""A folder that holds one of everything a root filesystem can hold, made the same way every time."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import struct
from pathlib import Path

MIB = 1 << 20
MANY = 5_000
BIG_BYTES = 3 * MIB + 12_345
LONG_NAME = b"n" * 255
ODD_NAME = b"not-\xff\xfe-utf8"

# Version 2 ACL, entries (tag, permissions, id): user::rw-, user:1234:r--, group::r--, mask::r--, other::---
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 6, 0xFFFFFFFF),
        (2, 4, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)
# Version 2 capability, effective: cap_net_bind_service permitted.
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def make_posix_tree(root: Path) -> None:
    """Fill the empty folder ``root``. Needs root, and a filesystem with xattrs such as ext4."""
    make_regular_files(root)
    _make_programs(root / "bin")
    _make_links(root)
    _make_special_files(root / "special")
    _make_owners_and_times(root)
    _set_attributes(root)
    _make_many(root / "many")


def make_regular_files(root: Path) -> None:
    """Content only: what even somebody who is not root can make."""
    noise = random.Random(3)
    (root / "hello.txt").write_text("hello, world\n" * 20)
    (root / "big.bin").write_bytes(noise.randbytes(BIG_BYTES))
    (root / "page.bin").write_bytes(noise.randbytes(4096))
    (root / "mebibyte.bin").write_bytes(noise.randbytes(MIB))
    (root / "empty").touch()
    with (root / "sparse.bin").open("wb") as file:
        file.truncate(5 * MIB + 77)
        file.seek(2 * MIB + 5)
        file.write(noise.randbytes(70_000))
    nested = root / "nested/deeper/deepest"
    nested.mkdir(parents=True)
    (nested / "leaf").write_bytes(noise.randbytes(10_000))


def _make_programs(folder: Path) -> None:
    folder.mkdir()
    shutil.copy2("/bin/true", folder / "true")
    shutil.copy2("/bin/echo", folder / "echo")
    script = folder / "script.sh"
    script.write_text('#!/bin/sh\necho "ran $1"\n')
    script.chmod(0o755)
    shutil.copy2("/bin/true", folder / "setuid")
    (folder / "setuid").chmod(0o4755)
    (folder / "locked").write_text("nobody else reads this\n")
    (folder / "locked").chmod(0o600)


def _make_links(root: Path) -> None:
    folder = root / "links"
    folder.mkdir()
    for name, target in {
        "relative": "../hello.txt",
        "absolute": "/nowhere/at/all",
        "folder": "../nested/deeper",
        "dangling": "missing",
        "loop-a": "loop-b",
        "loop-b": "loop-a",
        "self": "self",
        "long": "x" * 4000,
    }.items():
        (folder / name).symlink_to(target)
    for name in ("hard-1", "hard-2"):
        os.link(root / "hello.txt", folder / name)
    os.link(folder / "relative", folder / "hard-link-of-a-link", follow_symlinks=False)
    Path(os.fsdecode(bytes(folder) + b"/" + LONG_NAME)).write_text("a long name")
    Path(os.fsdecode(bytes(folder) + b"/" + ODD_NAME)).write_text("an odd name")


def _make_special_files(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "large-numbers", stat.S_IFCHR | 0o600, os.makedev(511, 70_000))
    os.mknod(folder / "block", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    here = Path.cwd()
    os.chdir(folder)  # a socket's address holds 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(here)


def _make_owners_and_times(root: Path) -> None:
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.chown(root / "page.bin", 123_456, 3_000_000_000)
    os.utime(root / "empty", ns=(-1_500_000_001, -1_500_000_001))
    os.utime(root / "page.bin", ns=(1_234_567_890_123_456_789, 1_234_567_890_123_456_789))
    os.utime(root / "nested", ns=(0, 0))


def _set_attributes(root: Path) -> None:
    os.setxattr(root / "hello.txt", "user.short", b"value")
    os.setxattr(root / "hello.txt", "user.empty", b"")
    os.setxattr(root / "hello.txt", "user.long", b"v" * 1500)
    os.setxattr(root / "hello.txt", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "bin/true", "security.capability", _CAPABILITY)
    os.setxattr(root / "big.bin", "system.posix_acl_access", _ACL)
    os.setxattr(root / "nested", "user.of-a-folder", b"\0\1\2\xff")


def _make_many(folder: Path) -> None:
    folder.mkdir()
    for number in range(MANY):
        (folder / f"entry-{number:05d}").touch()
