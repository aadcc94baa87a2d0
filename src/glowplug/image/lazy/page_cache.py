"""Whether part of a file is in page cache, asked without making it so; and how it gets out of there.

A read that must not wait (``RWF_NOWAIT``) does not do for that: where it finds nothing, the kernel begins to
read ahead for it all the same. Whoever then reads past the page cache has the disk read everything twice.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

_CACHESTAT = 451  # Linux 6.5, the same on every architecture (include/uapi/asm-generic/unistd.h)
_PAGE_BYTES = 4096
_LIBC = ctypes.CDLL(None)


def is_cached(file: int, offset: int, size_bytes: int) -> bool:
    """Whether all of it is; True where the kernel cannot tell."""
    asked, counts = (ctypes.c_uint64 * 2)(offset, size_bytes), (ctypes.c_uint64 * 5)()
    if _LIBC.syscall(_CACHESTAT, file, asked, counts, 0) != 0:
        return True
    pages = (offset + size_bytes - 1) // _PAGE_BYTES - offset // _PAGE_BYTES + 1
    return int(counts[0]) >= pages


def forget_pages(path: Path) -> None:
    """Have the next reader of this file ask the disk, or the daemon, again. What cannot be opened is left."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
