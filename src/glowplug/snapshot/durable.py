"""Files that are either wholly there after a crash or not there at all, and errors in words.

Reading never follows a symbolic link, never blocks on a pipe and never takes more than it was told to.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glowplug.types.errors import ResourceExhausted, SnapshotInvalid

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def open_regular(path: Path) -> int:
    """A descriptor to read the regular file at ``path``. Raises OSError for anything that is not one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def read_limited(path: Path, limit_bytes: int) -> bytes:
    """The content of a small regular file, cut off one byte after ``limit_bytes`` so that excess shows."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(limit_bytes + 1)


def write_durably(path: Path, data: bytes) -> None:
    """Replace the file at ``path``: a reader, or a crash, sees the old content or the new, on disk."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Return once the names in the directory at ``path`` are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a file, link or whole directory; what is gone already is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_free_bytes(directory: Path, needed_bytes: int, snapshot_id: str) -> None:
    """Raise ResourceExhausted unless the filesystem of ``directory`` has room for ``needed_bytes``."""
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise ResourceExhausted(
            f"Snapshot {snapshot_id} needs about {needed_bytes / 1e9:.1f} GB in {directory}, "
            f"where {free_bytes / 1e9:.1f} GB are free.",
            remedy="Remove snapshots nobody needs (`glowplug snapshot ls`, `glowplug snapshot rm ID`) "
            "or put GLOWPLUG_STATE on a larger disk.",
            snapshot_id=snapshot_id,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )


@contextmanager
def full_disk_as_resource_exhausted(snapshot_id: str) -> Iterator[None]:
    """Turn "no space" and "over quota" inside the block into ResourceExhausted; pass the rest on."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceExhausted(
            f"The disk is full: snapshot {snapshot_id} could not be written.",
            remedy="Nothing was lost and nothing was left behind. Remove snapshots nobody needs "
            "(`glowplug snapshot rm ID`) or free space elsewhere; the next cold start captures again.",
            snapshot_id=snapshot_id,
            file=str(error.filename or ""),
        ) from error


@contextmanager
def io_error_as_snapshot_invalid(snapshot_id: str, doing: str) -> Iterator[None]:
    """Turn any other failure of the disk inside the block into SnapshotInvalid; a full disk passes on."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise SnapshotInvalid(
            f"Snapshot {snapshot_id} failed while {doing}: {error}.",
            remedy="If the kernel log (`dmesg`) tells of disk errors, replace the disk; otherwise remove "
            f"the snapshot with `glowplug snapshot rm {snapshot_id}` and let it be captured anew.",
            snapshot_id=snapshot_id,
            file=str(error.filename or ""),
        ) from error
