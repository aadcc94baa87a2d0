"""Makes trees that were made at different times comparable: times after a given one become that one."""

from __future__ import annotations

from glowplug.image.index.tree import Tree

_NANOSECONDS = 1_000_000_000


def clamp_mtimes(tree: Tree, newest_s: int) -> None:
    """No file of ``tree`` is newer than ``newest_s`` (Unix time) afterwards, as with SOURCE_DATE_EPOCH."""
    newest_ns = newest_s * _NANOSECONDS
    for _, inode in tree.walk():
        inode.mtime_ns = min(inode.mtime_ns, newest_ns)
