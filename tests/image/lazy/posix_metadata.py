"""Cases about names, attributes and directories."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import subprocess
from pathlib import Path

from tests.image.lazy.posix_observe import TIMEOUT_S, Case, Observation, below, outcome, paths_below
from tests.image.lazy.posix_tree import MANY


def every_attribute_of_every_file(root: Path) -> Observation:
    seen = []
    for path in paths_below(root):
        is_folder = stat.S_ISDIR((found := os.lstat(below(root, path))).st_mode)
        size = None if is_folder else found.st_size
        seen.append(
            (
                path,
                found.st_mode,
                found.st_nlink,
                found.st_uid,
                found.st_gid,
                size,
                found.st_rdev,
                found.st_mtime_ns,
            )
        )
    assert len(seen) > MANY
    return seen


def hard_links_share_one_inode(root: Path) -> Observation:
    files = [root / "hello.txt", root / "links/hard-1", root / "links/hard-2"]
    assert len({file.stat().st_ino for file in files}) == 1
    links = [root / "links/relative", root / "links/hard-link-of-a-link"]
    assert len({link.lstat().st_ino for link in links}) == 1
    return [file.stat().st_nlink for file in files], [link.lstat().st_nlink for link in links]


def all_inode_numbers_are_distinct_and_on_one_device(root: Path) -> Observation:
    found = [os.lstat(below(root, path)) for path in paths_below(root)]
    assert len({entry.st_dev for entry in found}) == 1
    numbers = {entry.st_ino for entry in found if entry.st_nlink == 1 or stat.S_ISDIR(entry.st_mode)}
    return len(numbers) == len([e for e in found if e.st_nlink == 1 or stat.S_ISDIR(e.st_mode)])


def links_are_read_and_followed(root: Path) -> Observation:
    links = sorted((root / "links").iterdir())
    return (
        [os.fsencode(link.readlink()) for link in links if link.is_symlink()],
        (root / "links/relative").read_text(),
        (root / "links/folder/deepest/leaf").stat().st_size,
        outcome(lambda: (root / "hello.txt").readlink()),
    )


def extended_attributes_are_listed_and_read(root: Path) -> Observation:
    seen = []
    for path in paths_below(root):
        whole = below(root, path)
        names = sorted(os.listxattr(whole, follow_symlinks=False))
        if names:
            seen.append((path, [(name, os.getxattr(whole, name, follow_symlinks=False)) for name in names]))
    assert len(seen) >= 4
    return seen


def extended_attributes_answer_bad_requests_as_they_should(root: Path) -> Observation:
    libc = ctypes.CDLL(None, use_errno=True)
    file = bytes(root / "hello.txt")

    def get(name: bytes, room: int) -> object:
        got = libc.getxattr(file, name, ctypes.create_string_buffer(max(room, 1)), room)
        return got if got >= 0 else errno.errorcode[ctypes.get_errno()]

    def list_names(room: int) -> object:
        got = libc.listxattr(file, ctypes.create_string_buffer(max(room, 1)), room)
        return got if got >= 0 else errno.errorcode[ctypes.get_errno()]

    return (
        get(b"user.none", 100), get(b"user.long", 10), get(b"user.long", 0), get(b"user.empty", 10),
        get(b"user.", 10), get(b"nonsense", 10), list_names(0), list_names(5), list_names(1000),
        outcome(lambda: os.getxattr(root / "links/dangling", "user.x")),
        outcome(lambda: os.getxattr(root / "empty", "system.posix_acl_access")),
    )  # fmt: skip


def statfs_tells_a_read_only_filesystem_of_4k_blocks(root: Path) -> Observation:
    found = os.statvfs(root)
    assert found.f_blocks > 0
    return found.f_namemax, found.f_frsize, bool(found.f_flag & os.ST_RDONLY)


# --- directories ---


class _Entry(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


class _Folder:
    """opendir(3) and its seek, which Python hides."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.opendir.restype = ctypes.c_void_p
        self._libc.readdir.restype = ctypes.POINTER(_Entry)
        self._libc.telldir.restype = ctypes.c_long
        self._stream = ctypes.c_void_p(self._libc.opendir(bytes(path)))
        assert self._stream.value

    def read(self, most: int = 1 << 30) -> list[bytes]:
        names: list[bytes] = []
        while len(names) < most and (entry := self._libc.readdir(self._stream)):
            names.append(entry.contents.name)
        return names

    def tell(self) -> int:
        return int(self._libc.telldir(self._stream))

    def seek(self, where: int) -> None:
        self._libc.seekdir(self._stream, ctypes.c_long(where))

    def close(self) -> None:
        self._libc.closedir(self._stream)


def a_large_directory_lists_every_name_once(root: Path) -> Observation:
    names = [entry.name for entry in (root / "many").iterdir()]
    assert len(names) == MANY
    return sorted(names)


def a_directory_can_be_read_on_from_any_position(root: Path) -> Observation:
    folder = _Folder(root / "many")
    marks = []
    everything: list[bytes] = []
    for _ in range(7):
        marks.append((folder.tell(), len(everything)))
        everything += folder.read(701)
    everything += folder.read()
    for position, already in (marks[5], marks[0], marks[3], marks[6], marks[1]):
        folder.seek(position)
        assert folder.read() == everything[already:]
    folder.close()
    return sorted(everything)


def a_directory_read_twice_at_once_does_not_mix(root: Path) -> Observation:
    first, second = _Folder(root / "many"), _Folder(root / "many")
    a: list[bytes] = []
    b: list[bytes] = []
    while (x := first.read(333)) + (y := second.read(777)):
        a += x
        b += y
    first.close()
    second.close()
    assert a == b
    return sorted(a)


def entries_know_their_types_and_inodes(root: Path) -> Observation:
    seen = []
    for folder in ("special", "links", "."):
        for entry in os.scandir(root / folder):
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
            kind = (
                entry.is_dir(follow_symlinks=False),
                entry.is_file(follow_symlinks=False),
                entry.is_symlink(),
            )
            seen.append((os.fsencode(entry.name), kind))
    return sorted(seen)


def dot_and_dot_dot_are_listed(root: Path) -> Observation:
    folder = _Folder(root / "nested/deeper")
    names = sorted(folder.read())
    folder.close()
    return names


def a_working_directory_can_be_inside(root: Path) -> Observation:
    done = subprocess.run(
        ["/bin/sh", "-c", "cd nested/deeper/deepest && pwd -P && wc -c < leaf && cd ../.. && ls"],
        cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    return done.stdout.replace(str(root.resolve()), "ROOT")


METADATA: list[Case] = [
    every_attribute_of_every_file,
    hard_links_share_one_inode,
    all_inode_numbers_are_distinct_and_on_one_device,
    links_are_read_and_followed,
    extended_attributes_are_listed_and_read,
    extended_attributes_answer_bad_requests_as_they_should,
    statfs_tells_a_read_only_filesystem_of_4k_blocks,
    a_large_directory_lists_every_name_once,
    a_directory_can_be_read_on_from_any_position,
    a_directory_read_twice_at_once_does_not_mix,
    entries_know_their_types_and_inodes,
    dot_and_dot_dot_are_listed,
    a_working_directory_can_be_inside,
]
