"""Everything about a folder but its files' content: the first half of reading one, on a few threads."""

from __future__ import annotations

import fnmatch
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from glowplug.image.index.tree import Inode
from glowplug.image.job import Job
from glowplug.image.origin.attributes import KeepXattr, belongs_to_folder
from glowplug.image.origin.folder_access import (
    Signature,
    describe,
    directory,
    signature_of,
    steadily,
)
from glowplug.image.origin.workers import Workers

_STAGE = "looking through the folder"
_SAY_EVERY_ENTRIES = 10_000


@dataclass(slots=True)
class FoundFile:
    """A regular file that has content. ``path`` is relative to the folder, ``inode`` lacks its extents."""

    folder: bytes
    name: bytes
    inode: Inode
    signature: Signature
    has_other_names: bool

    @property
    def path(self) -> bytes:
        """For errors."""
        return join(self.folder, self.name)


@dataclass(slots=True)
class Scan:
    """A folder's tree, and its files that are to be read; of a file with several names only one."""

    root: Inode
    files: list[FoundFile] = field(default_factory=list)


class FolderPolicy:
    """What of a folder is meant."""

    def __init__(self, exclude: Sequence[str] = (), one_filesystem: bool = True) -> None:
        """``exclude`` are shell patterns: without a slash for names anywhere, else for paths from the folder.

        With ``one_filesystem`` a mount point stays as an empty directory.
        """
        self.one_filesystem = one_filesystem
        self.keep_xattr = belongs_to_folder()
        self._names = _any_of([pattern for pattern in exclude if "/" not in pattern.strip("/")])
        self._paths = _any_of([pattern for pattern in exclude if "/" in pattern.strip("/")])

    def excludes(self, path: bytes) -> bool:
        """True for a path, relative to the folder, that is to be left out with all below it."""
        text = os.fsdecode(path)
        if self._names is not None and self._names.match(text.rpartition("/")[2]):
            return True
        return self._paths is not None and self._paths.match(text) is not None


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    return re.compile("|".join(f"(?:{fnmatch.translate(pattern.strip('/'))})" for pattern in patterns))


def join(folder: bytes, name: bytes) -> bytes:
    """A path below the folder, where the folder itself is the empty path."""
    return folder + b"/" + name if folder else name


class FolderScan:
    """One scan. Directories are looked through at once, each by one thread."""

    def __init__(self, root: int, policy: FolderPolicy, job: Job) -> None:
        """``root`` is a descriptor of the folder."""
        self._root = root
        self._policy = policy
        self._job = job
        self._device = os.fstat(root).st_dev
        self._lock = threading.Lock()
        self._linked: dict[tuple[int, int], Inode] = {}

    def run(self, workers: int) -> Scan:
        """Look through everything. Raises InvalidInput, Conflict, or as :meth:`Job.check`."""
        scan = Scan(steadily(b"", self._look_at_root))
        entries = said = 0
        with Workers[_Found](workers, self._job, _STAGE) as pool:
            pool.submit(partial(self._look_through, b"", scan.root))
            for found in pool.results():
                scan.files.extend(found.files)
                for path, inode in found.directories:
                    pool.submit(partial(self._look_through, path, inode))
                entries += found.entries
                if entries - said >= _SAY_EVERY_ENTRIES:
                    said = entries
                    self._job.say(f"{_STAGE}: {entries} entries")
        scan.files.sort(key=lambda file: (file.folder, file.name))
        return scan

    def _look_at_root(self) -> Inode:
        return describe(self._root, b".", os.fstat(self._root), self._policy.keep_xattr)

    def _look_through(self, path: bytes, inode: Inode) -> _Found:
        found = _Found()
        with directory(self._root, path) as descriptor, os.scandir(descriptor) as entries:
            for entry in entries:
                self._add(found, path, descriptor, inode, os.fsencode(entry.name))
        return found

    def _add(self, found: _Found, folder: bytes, parent: int, parent_inode: Inode, name: bytes) -> None:
        path = join(folder, name)
        if self._policy.excludes(path):
            return
        looked = steadily(path, lambda: _look(parent, name, self._policy.keep_xattr))
        if looked is None:
            return  # removed since it was listed
        status, inode = looked
        if self._is_foreign(status) and not inode.is_directory:
            return
        if status.st_nlink > 1 and not inode.is_directory:
            with self._lock:
                known = self._linked.setdefault((status.st_dev, status.st_ino), inode)
            parent_inode.children[name] = known
            if known is not inode:
                return
        parent_inode.children[name] = inode
        found.entries += 1
        if inode.is_directory:
            if not self._is_foreign(status):
                found.directories.append((path, inode))
        elif inode.is_regular and inode.size_bytes:
            found.files.append(FoundFile(folder, name, inode, signature_of(status), status.st_nlink > 1))

    def _is_foreign(self, status: os.stat_result) -> bool:
        return self._policy.one_filesystem and status.st_dev != self._device


@dataclass(slots=True)
class _Found:
    """What one directory holds."""

    files: list[FoundFile] = field(default_factory=list)
    directories: list[tuple[bytes, Inode]] = field(default_factory=list)
    entries: int = 0


def _look(parent: int, name: bytes, keep: KeepXattr) -> tuple[os.stat_result, Inode] | None:
    """A file's status and all that goes with it. None if it has gone."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status, describe(parent, name, status, keep)
