"""Reads a folder that others may be changing, without ever being led out of it.

Every file is reached from an open directory, every directory from the root's descriptor one name at a time
and never through a symbolic link, so what somebody swaps meanwhile cannot point us elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.tree import Inode
from glowplug.image.origin.attributes import KeepXattr
from glowplug.image.origin.confine import shown
from glowplug.image.origin.port import Range
from glowplug.types.errors import Conflict, InvalidInput

T = TypeVar("T")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SWAPPED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE})
_ATTEMPTS = 5


class Signature(NamedTuple):
    """What changes whenever a file's content or attributes do."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class Changed(Exception):
    """A file is not what it was a moment ago: look again."""


def signature_of(status: os.stat_result) -> Signature:
    """The signature of a file that was looked at."""
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_root(path: bytes) -> int:
    """A descriptor of the folder. Raises InvalidInput; a link that the user names is followed."""
    try:
        return os.open(path, _DIRECTORY & ~os.O_NOFOLLOW)
    except OSError as error:
        raise unreadable(path, error) from error


@contextmanager
def directory(root: int, path: bytes) -> Iterator[int]:
    """A descriptor of the directory at ``path``, relative to ``root``. Raises Conflict, InvalidInput."""
    descriptor = os.open(b".", _DIRECTORY, dir_fd=root)
    try:
        for name in path.split(b"/") if path else ():
            below = os.open(name, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    except OSError as error:
        if error.errno in _SWAPPED:
            raise changing(path) from error
        raise unreadable(path, error) from error
    finally:
        os.close(descriptor)


@contextmanager
def regular_file(parent: int, name: bytes) -> Iterator[int]:
    """A descriptor of a file. Raises Changed if it is none (any more)."""
    try:
        descriptor = os.open(name, _FILE, dir_fd=parent)
    except OSError as error:
        if error.errno in _SWAPPED:
            raise Changed from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def describe(parent: int, name: bytes, status: os.stat_result, keep: KeepXattr) -> Inode:
    """An inode with everything but content and children. Raises Changed, InvalidInput."""
    try:
        target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else b""
        return Inode(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=_xattrs(parent, name, keep),
            size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            target=target,
            rdev=status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
        )
    except OSError as error:
        if error.errno in (*_SWAPPED, errno.EINVAL):
            raise Changed from error
        raise


def _xattrs(parent: int, name: bytes, keep: KeepXattr) -> dict[bytes, bytes]:
    """There is no ``listxattrat``, but /proc leads from a descriptor on, and that link cannot be swapped."""
    path = b"/proc/self/fd/%d/%s" % (parent, name)
    try:
        listed = os.listxattr(path, follow_symlinks=False)
        if not listed:
            return {}
        names = sorted(name for name in map(os.fsencode, listed) if keep(name))
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Changed from error
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def data_ranges(descriptor: int, size_bytes: int) -> list[Range]:
    """Where a file has data, in whole chunks: a file with a million small holes asks no million questions."""
    ranges: list[Range] = []
    at = 0
    while at < size_bytes:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            raise
        start = max(at, data // CHUNK_BYTES * CHUNK_BYTES)
        hole = os.lseek(descriptor, max(data, start), os.SEEK_HOLE)
        end = min(size_bytes, (hole + CHUNK_BYTES - 1) // CHUNK_BYTES * CHUNK_BYTES)
        if end <= start:
            break  # it shrank meanwhile: whoever reads it will notice
        if ranges and sum(ranges[-1]) == start:
            ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
        else:
            ranges.append((start, end - start))
        at = end
    return ranges


def steadily(path: bytes, attempt: Callable[[], T]) -> T:
    """The result of an attempt that was not disturbed. Raises Conflict after some that were."""
    for _ in range(_ATTEMPTS):
        try:
            return attempt()
        except Changed:
            continue
        except OSError as error:
            raise unreadable(path, error) from error
    raise changing(path)


def unreadable(path: bytes, error: OSError) -> InvalidInput:
    """The error for a file that we may not or cannot read."""
    return InvalidInput(
        f"{shown(path) or 'The folder'} cannot be read: {error.strerror}.",
        remedy="Run this as a user who may read it, or leave it out with --exclude.",
        path=shown(path),
    )


def changing(path: bytes) -> Conflict:
    """The error for a file that somebody writes to while we read it."""
    return Conflict(
        f"{shown(path) or 'The folder'} keeps changing while it is read.",
        remedy="Stop what writes to it, or leave it out with --exclude, and try again.",
        path=shown(path),
    )
