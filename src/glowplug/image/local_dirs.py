"""Host folders that a specification places in an image (``add_local_dir``): checked, identified, bound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from glowplug.image.inside import check_destination
from glowplug.image.record import BindRecord
from glowplug.types.errors import InvalidInput
from glowplug.types.spec import LocalDir

MAX_ENTRIES = 50_000  # about half a second of stat calls
# Written by merely running or committing the code: no reason for another image.
IGNORED_NAMES = frozenset({"__pycache__", ".git"})


def check_local_dirs(local_dirs: Sequence[LocalDir]) -> list[BindRecord]:
    """The binds of ``local_dirs``, parents before children. Raises InvalidInput for folders not there."""
    binds: dict[str, BindRecord] = {}
    for local_dir in local_dirs:
        check_destination(local_dir.remote_path, "remote path of a local folder")
        if local_dir.remote_path in binds:
            raise InvalidInput(
                f"Two local folders are placed at {local_dir.remote_path}.",
                remedy="Give each its own remote path.",
                path=local_dir.remote_path,
            )
        source = real_folder(local_dir.local_path, "local folder")
        binds[local_dir.remote_path] = BindRecord(source=str(source), destination=local_dir.remote_path)
    return [binds[destination] for destination in sorted(binds)]


def real_folder(path: str, what: str) -> Path:
    """The canonical path of an existing folder; raises InvalidInput saying what is wrong with it."""
    try:
        real = Path(os.path.realpath(path, strict=True))
        problem = "" if real.is_dir() else "it is not a folder"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise InvalidInput(
            f"The {what} {path} cannot be used on this node: {problem}.",
            remedy="Name a folder that exists on the machine that runs the replicas.",
            path=path,
        )
    return real


def content_digest(folder: Path) -> str:
    """Changes when a file of ``folder`` does, judged by name, size and time of change.

    Memory snapshots hold what was read from it, so changed content must be another image. Raises
    InvalidInput for a folder that is too large to look at each time.
    """
    digest = hashlib.sha256()
    for count, path in enumerate(_entries(folder)):
        if count == MAX_ENTRIES:
            raise InvalidInput(
                f"The local folder {folder} holds more than {MAX_ENTRIES} files.",
                remedy="Place a smaller folder in the image, and show data as a volume.",
                path=str(folder),
            )
        try:
            status = path.lstat()
        except FileNotFoundError:  # deleted while we look: as if it had never been
            continue
        line = f"{path.relative_to(folder)}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _entries(folder: Path) -> Iterator[Path]:
    """Files and links below ``folder``, sorted. Folders themselves do not count: their times change idly."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in IGNORED_NAMES)
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in sorted([*files, *links]):
            yield Path(parent, name)
