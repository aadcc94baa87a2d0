"""A root filesystem in memory: origins produce it, the index writer writes it, the reader reads it back.

Paths and names are bytes, as on disk. A tree is complete and consistent once :meth:`Tree.check` passes: every
parent is a directory that comes before its children, hard links share one :class:`Inode` object.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from glowplug.chunks.chunk import Chunk
from glowplug.types.errors import InvalidInput

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_SYMLINK_BYTES = 4095
MAX_XATTR_NAME_BYTES = 255
MAX_XATTR_VALUE_BYTES = 65535


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file's content: ``chunks`` placed one after the other from byte ``offset`` of the file.

    Every chunk but a file's last is CHUNK_BYTES long and starts at a multiple of it; in a file that is cut at
    pages, every chunk but the last is some multiple of ALIGN_BYTES long. What no extent covers is a hole and
    reads as zeros.
    """

    offset: int
    chunks: tuple[Chunk, ...]


@dataclass(slots=True, eq=False)
class Inode:
    """One file of any kind. ``mode`` has the type bits (``stat.S_IFMT``); ``mtime_ns`` may be negative.

    ``xattrs`` maps full names (``b"security.capability"``) to values. ``rdev`` is an ``os.makedev`` number
    and matters for devices only, ``target`` for symlinks only, ``extents`` and ``size_bytes`` for regular
    files only, ``children`` (by name, unordered) for directories only. ``nlink`` is derived, not stored.
    ``is_cut_at_pages`` matters for regular files with content only.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    extents: tuple[Extent, ...] = ()
    is_cut_at_pages: bool = False
    target: bytes = b""
    rdev: int = 0
    children: dict[bytes, Inode] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """It can have children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """It can have content."""
        return stat.S_ISREG(self.mode)


@dataclass(slots=True, eq=False)
class Tree:
    """A whole root filesystem, by its root directory."""

    root: Inode

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode: parents first, names of a directory in byte order, ``b"/"`` the root.

        A hard-linked inode comes once per path.
        """
        pending: list[tuple[bytes, Inode]] = [(b"/", self.root)]
        while pending:
            path, inode = pending.pop()
            yield path, inode
            prefix = path if path == b"/" else path + b"/"
            pending.extend(
                (prefix + name, inode.children[name]) for name in sorted(inode.children, reverse=True)
            )

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at an absolute path; symlinks are not followed."""
        inode: Inode | None = self.root
        for name in path.split(b"/"):
            if not name:
                continue
            if inode is None:
                return None
            inode = inode.children.get(name)
        return inode

    def check(self) -> None:
        """Raise InvalidInput for what no filesystem could hold: bad names, too long paths, dir links."""
        seen: set[int] = set()
        if not self.root.is_directory:
            raise _unfit(b"/", "is not a directory")
        for path, inode in self.walk():
            name = path.rpartition(b"/")[2]
            if path != b"/" and (name in (b"", b".", b"..") or b"\0" in name or len(name) > MAX_NAME_BYTES):
                raise _unfit(path, "is not a name that a file can have")
            if len(path) >= MAX_PATH_BYTES:
                raise _unfit(path, f"is longer than {MAX_PATH_BYTES} bytes")
            if inode.is_directory:
                if id(inode) in seen:
                    raise _unfit(path, "is a directory that appears twice")
                seen.add(id(inode))
            elif inode.children:
                raise _unfit(path, "has children and is not a directory")
            if stat.S_ISLNK(inode.mode) and not 0 < len(inode.target) <= MAX_SYMLINK_BYTES:
                raise _unfit(path, "is a link whose target is empty or too long")
            if b"\0" in inode.target:
                raise _unfit(path, "is a link with a null byte in its target")


def _unfit(path: bytes, why: str) -> InvalidInput:
    return InvalidInput(
        f"{path[:200].decode(errors='backslashreplace')} {why}.",
        remedy="Fix the source of the image.",
        path=path.decode(errors="backslashreplace"),
    )
