"""What programs may expect of a read-only root filesystem, as observations that must not depend on the kind.

Each case looks at a folder made by :func:`posix_tree.make_posix_tree`, through the system calls a program
would use, and returns what it saw. ``test_posix_suite.py`` compares that between a read-only bind mount of
the folder itself and every way of mounting its image.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

Observation = object
Case = Callable[[Path], Observation]
TIMEOUT_S = 60


def outcome(call: Callable[[], object]) -> object:
    """What a call returns, or the name of the error number that it raises."""
    try:
        return call()
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def paths_below(root: Path) -> list[bytes]:
    """Relative to it, the root itself first as the empty path."""
    found = [b""]
    for folder, folders, files in os.walk(bytes(root)):
        folders.sort()
        prefix = folder[len(bytes(root)) + 1 :]
        found += sorted(prefix + b"/" * bool(prefix) + name for name in folders + files)
    return found


def below(root: Path, path: bytes) -> bytes:
    return bytes(root) + b"/" + path


def open_and_close(path: Path | bytes, flags: int = os.O_RDONLY) -> object:
    os.close(os.open(path, flags | os.O_CLOEXEC))
    return "opened"
