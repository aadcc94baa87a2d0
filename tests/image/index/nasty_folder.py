"""A folder with everything in it that a root filesystem can hold and a careless copy loses."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from pathlib import Path

from glowplug.chunks.chunk import CHUNK_BYTES

LONG_BEFORE_1970_NS = -11_644_473_600 * 10**9 + 1
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
ACL_VERSION = struct.pack("<I", 2)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it: (tag, permissions, id)."""
    return ACL_VERSION + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL = acl(
    (0x01, 6, 0xFFFFFFFF),
    (0x02, 4, 1000),
    (0x04, 4, 0xFFFFFFFF),
    (0x10, 4, 0xFFFFFFFF),
    (0x20, 0, 0xFFFFFFFF),
)


def make_nasty_folder(root: Path) -> None:
    root.mkdir()
    _make_names(root)
    _make_content(root / "content")
    _make_special_files(root / "special")
    _make_links(root / "links")
    _make_xattrs(root / "xattrs")
    _make_owners_and_times(root / "owners")


def _make_names(root: Path) -> None:
    names = root / "names"
    names.mkdir()
    for name in (
        b"x" * 255, b"\xff\xfe not utf-8 \x80", b"new\nline", b" ", b"-", b"!before the dot", b"...", b"..a",
        b"\x01", "größe".encode(), b"\xff" * 255,
    ):  # fmt: skip
        (names / os.fsdecode(name)).write_bytes(name)
    deep = names
    for depth in range(40):
        deep = deep / f"level {depth}"
    deep.mkdir(parents=True)
    many = root / "many"
    many.mkdir()
    for number in range(1500):  # several directory blocks
        (many / f"{number:04} {'n' * (number % 100)}").symlink_to("target")


def _make_content(folder: Path) -> None:
    folder.mkdir()
    generator = random.Random(7)
    for size_bytes in (
        0,
        1,
        4095,
        4096,
        4097,
        CHUNK_BYTES - 1,
        CHUNK_BYTES,
        CHUNK_BYTES + 1,
        3 * CHUNK_BYTES + 5,
    ):
        (folder / f"{size_bytes} bytes").write_bytes(generator.randbytes(size_bytes))
    (folder / "same as 4097").write_bytes((folder / "4097 bytes").read_bytes())
    (folder / "zeros").write_bytes(bytes(5000))
    with (folder / "sparse").open("wb") as file:
        file.seek(5 << 30)
        file.write(b"behind 5 GiB")
        file.seek(2 * CHUNK_BYTES + 17)
        file.write(b"between holes")
        file.truncate((5 << 30) + 10 * CHUNK_BYTES + 3)
    for name, size_bytes in (("all hole", 100), ("big hole", 3 << 40)):
        with (folder / name).open("wb") as file:
            file.truncate(size_bytes)


def _make_special_files(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o620)
    os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(folder / "big numbers", 0o600 | stat.S_IFBLK, os.makedev(4095, 1048575))
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket may have 107 bytes
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    for mode in (0o4755, 0o2755, 0o6711, 0o000, 0o1777):
        path = folder / f"mode {mode:o}"
        path.write_bytes(b"")
        path.chmod(mode)
    (folder / "sticky").mkdir()
    (folder / "sticky").chmod(0o1777)


def _make_links(folder: Path) -> None:
    folder.mkdir()
    first = folder / "first"
    first.write_bytes(b"one inode")
    (folder / "below").mkdir()
    for name in ("second", "below/third"):
        os.link(first, folder / name)
    for length in (1, 100, 4000, 4063, 4064, 4065, 4095):
        (folder / f"link of {length}").symlink_to("t" * length)
    os.link(folder / "link of 100", folder / "second link of 100", follow_symlinks=False)
    os.mkfifo(folder / "fifo")
    os.link(folder / "fifo", folder / "the same fifo")
    (folder / "loop").symlink_to("loop")


def _make_xattrs(folder: Path) -> None:
    folder.mkdir()
    for number in range(300):
        labelled = folder / f"labelled {number}"
        labelled.write_bytes(b"")
        os.setxattr(labelled, "security.selinux", b"system_u:object_r:usr_t:s0\0")
    big = folder / "many"
    big.write_bytes(b"content")
    for number in range(20):
        os.setxattr(big, f"user.attribute {number}", bytes([number]) * 100)
    os.setxattr(big, "trusted.overlay.opaque", b"y")
    os.setxattr(big, "user.empty", b"")
    program = folder / "ping"
    program.write_bytes(b"#!")
    os.setxattr(program, "security.capability", CAPABILITY)
    guarded = folder / "guarded"
    guarded.mkdir()
    os.setxattr(guarded, "system.posix_acl_access", ACL)
    os.setxattr(guarded, "system.posix_acl_default", ACL)
    for number in range(150):  # xattrs, blocks and inline entries in one directory
        (guarded / f"entry {number} {'e' * 40}").write_bytes(b"")
    (folder / "link").symlink_to("nowhere")
    os.setxattr(folder / "link", "trusted.on.link", b"1", follow_symlinks=False)


def _make_owners_and_times(folder: Path) -> None:
    folder.mkdir()
    for owner in (1000, 65535, 65536, 4_294_967_294):
        path = folder / f"owned by {owner}"
        path.write_bytes(b"")
        os.chown(path, owner, owner)
    for time_ns in (0, -1, -1_500_000_000, 1, 999_999_999, 4_102_444_800 * 10**9 + 5):
        path = folder / f"from {time_ns}"
        path.write_bytes(b"")
        os.utime(path, ns=(time_ns, time_ns))
    (folder / "old link").symlink_to("x")
    os.utime(folder / "old link", ns=(-5, -5), follow_symlinks=False)
    os.utime(folder, ns=(123_456_789, 123_456_789))
