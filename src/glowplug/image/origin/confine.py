"""Builds a tree from the entries of archives, none of which is trusted.

Nothing is ever unpacked to disk, so nothing can be written outside; what is left to guard is that the tree
means what a careful ``tar`` would have made of it. No name leads out of the root or *through* anything but a
directory, nothing refers to what is not there, and the work and memory that entries cost is bounded.

The tree may be made in layers: within one, the last entry of a name wins; :meth:`TreeBuilder.remove` and
:meth:`TreeBuilder.clear` take away what *earlier* layers brought, wherever in the layer they come.
"""

from __future__ import annotations

import stat

from glowplug.image.index.tree import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_SYMLINK_BYTES,
    MAX_XATTR_NAME_BYTES,
    MAX_XATTR_VALUE_BYTES,
    Inode,
    Tree,
)
from glowplug.image.origin.limits import ArchiveLimits, over_limit
from glowplug.types.errors import InvalidInput

IMPLICIT_DIRECTORY_MODE = stat.S_IFDIR | 0o755


class TreeBuilder:
    """A tree under construction. Paths are bytes as they stand in an archive: ``./usr/bin/x``, ``/usr``.

    Every method raises InvalidInput for an entry that cannot be meant well. Not for use by several threads.
    """

    def __init__(self, limits: ArchiveLimits | None = None) -> None:
        self._limits = limits or ArchiveLimits()
        self._root = Inode(mode=IMPLICIT_DIRECTORY_MODE)
        self._entries = 0
        self._metadata_bytes = 0
        self._logical_bytes = 0
        self.begin_layer()

    def begin_layer(self) -> None:
        """What is there by now counts as earlier layers from here on."""
        self._fresh: dict[Inode, set[bytes]] = {}  # by directory, the names that this layer gave
        self._touched: set[Inode] = set()  # directories with something fresh at any depth below
        self._cleared: set[Inode] = set()  # directories with nothing of earlier layers left below

    def add(self, path: bytes, inode: Inode) -> None:
        """Put ``inode`` at ``path``, whatever was there; parents that are missing are made, 0755 of root.

        A directory joins one that is there and takes over its attributes. Anything else that is replaced
        goes with all below it.
        """
        names = split(path)
        self._admit(path, inode)
        if not names:
            self._dress_root(path, inode)
            return
        parent = self._parent(names, path)
        present = parent.children.get(names[-1])
        if present is not None and present.is_directory and inode.is_directory:
            _dress(present, inode)
        else:
            parent.children[names[-1]] = inode
        self._fresh.setdefault(parent, set()).add(names[-1])

    def link(self, path: bytes, target: bytes) -> Inode:
        """Make ``path`` a second name of what is at ``target``, and return that."""
        names = split(path)
        inode = self.lookup(target)
        if inode is None:
            raise refused(path, f"is a hard link to {shown(target)}, which is not in the archive before it")
        if inode.is_directory:
            raise refused(path, f"is a hard link to the directory {shown(target)}")
        if not names:
            raise refused(path, "would replace the root by a hard link")
        self._count(len(names[-1]))
        parent = self._parent(names, path)
        if self.lookup(target) is not inode:
            raise refused(path, f"is a hard link to {shown(target)}, which it would replace itself")
        parent.children[names[-1]] = inode
        self._fresh.setdefault(parent, set()).add(names[-1])
        return inode

    def remove(self, path: bytes) -> None:
        """Forget what earlier layers have at ``path``; nothing there is no error."""
        names = split(path)
        if not names:
            raise refused(path, "would remove the root")
        parent = self._find(names[:-1])
        child = parent.children.get(names[-1]) if parent is not None else None
        if parent is None or child is None:
            return
        if self._is_new(parent, names[-1], child):
            self._clear(child)
        else:
            del parent.children[names[-1]]

    def clear(self, path: bytes) -> None:
        """Forget what earlier layers have below the directory ``path``; nothing there is no error."""
        inode = self._find(split(path))
        if inode is not None:
            self._clear(inode)

    def lookup(self, path: bytes) -> Inode | None:
        """What is at ``path``, None if nothing is; links are not followed."""
        return self._find(split(path))

    def finish(self) -> Tree:
        """The tree, checked."""
        tree = Tree(self._root)
        tree.check()
        return tree

    def _parent(self, names: list[bytes], path: bytes) -> Inode:
        """The directory that holds ``names[-1]``, made if missing.

        What an earlier layer has in the way gives place to a directory, as it does for every container
        runtime that stacks layers; in one layer a file that is also a directory is a trick.
        """
        inode = self._root
        self._touched.add(inode)
        for name in names[:-1]:
            child = inode.children.get(name)
            if child is None or not child.is_directory:
                fresh = self._fresh.setdefault(inode, set())
                if child is not None and name in fresh:
                    raise refused(path, f"leads through {shown(name)}, which is not a directory")
                self._count(len(name))
                child = inode.children[name] = Inode(mode=IMPLICIT_DIRECTORY_MODE)
                fresh.add(name)
            inode = child
            self._touched.add(inode)
        return inode

    def _find(self, names: list[bytes]) -> Inode | None:
        inode = self._root
        for name in names:
            child = inode.children.get(name)
            if child is None:
                return None
            inode = child
        return inode

    def _is_new(self, parent: Inode, name: bytes, child: Inode) -> bool:
        return name in self._fresh.get(parent, ()) or child in self._touched

    def _clear(self, top: Inode) -> None:
        """Visits a directory at most once a layer, so that a thousand clearings cost no more than one."""
        pending = [top]
        while pending:
            directory = pending.pop()
            if directory in self._cleared:
                continue
            self._cleared.add(directory)
            for name, child in list(directory.children.items()):
                if not self._is_new(directory, name, child):
                    del directory.children[name]
                elif child.is_directory:
                    pending.append(child)

    def _dress_root(self, path: bytes, inode: Inode) -> None:
        if not inode.is_directory:
            raise refused(path, "would make the root something else than a directory")
        _dress(self._root, inode)

    def _admit(self, path: bytes, inode: Inode) -> None:
        """Check what the inode says of itself, and count it."""
        if inode.children:
            raise refused(path, "comes with children")
        if stat.S_ISLNK(inode.mode) and not 0 < len(inode.target) <= MAX_SYMLINK_BYTES:
            raise refused(path, "is a symbolic link without a target, or with one that is too long")
        if b"\0" in inode.target:
            raise refused(path, "is a symbolic link to what cannot be a path")
        for name, value in inode.xattrs.items():
            if not 0 < len(name) <= MAX_XATTR_NAME_BYTES or b"\0" in name:
                raise refused(path, "has an extended attribute with an impossible name")
            if len(value) > MAX_XATTR_VALUE_BYTES:
                raise refused(path, f"has an extended attribute of {len(value)} bytes")
        xattr_bytes = sum(len(name) + len(value) for name, value in inode.xattrs.items())
        self._count(len(path) + len(inode.target) + xattr_bytes)
        self._logical_bytes += inode.size_bytes
        if self._logical_bytes > self._limits.logical_bytes:
            raise over_limit("bytes in its files, holes counted", self._limits.logical_bytes)

    def _count(self, metadata_bytes: int) -> None:
        self._entries += 1
        self._metadata_bytes += metadata_bytes
        if self._entries > self._limits.entries:
            raise over_limit("entries", self._limits.entries)
        if self._metadata_bytes > self._limits.metadata_bytes:
            raise over_limit("bytes of names, link targets and attributes", self._limits.metadata_bytes)


def split(path: bytes) -> list[bytes]:
    """The names of an archive's path, none for the root. Leading slashes fall away, as ``tar`` does it."""
    if len(path) >= MAX_PATH_BYTES:
        raise refused(path, f"is longer than {MAX_PATH_BYTES} bytes")
    if b"\0" in path:
        raise refused(path, "cannot be a path")
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise refused(path, "leads upwards")
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise refused(path, f"has a name longer than {MAX_NAME_BYTES} bytes")
    return names


def _dress(directory: Inode, attributes: Inode) -> None:
    directory.mode = attributes.mode
    directory.uid = attributes.uid
    directory.gid = attributes.gid
    directory.mtime_ns = attributes.mtime_ns
    directory.xattrs = attributes.xattrs


def shown(path: bytes) -> str:
    """A hostile path, fit for a terminal and a log."""
    text = path[:200].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def refused(path: bytes, why: str) -> InvalidInput:
    """The error for an entry that no well-meant archive has."""
    return InvalidInput(
        f"The archive's entry {shown(path) or '(no name)'} {why}.",
        remedy="Nothing of it was kept. Make the archive again, or get it from somebody you trust.",
        path=shown(path),
    )
