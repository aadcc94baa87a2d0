"""Room on disk that chunks never take: letting go of chunks needs some, and so does whoever shares the disk.

A pin, its release and a removal are written to a journal before they count. On a disk without a byte left
that would fail, and the disk would stay full for ever. So the tier stops keeping chunks while some room is
still free, and has a file that is dropped when others have used up that, too.
"""

from __future__ import annotations

import os
from pathlib import Path

_BALLAST_BYTES = 8 << 20
_KEEP_FREE_BYTES = 2 * _BALLAST_BYTES
_SHARE_OF_DISK = 8  # on small disks, an eighth is kept free instead


class Ballast:
    """The file, and how full the disk is that it lies on."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "ballast"

    def lacking_bytes(self) -> int:
        """How much more would have to be free for chunks to be kept; not more than 0 when they may."""
        free_bytes, keep_free_bytes = self._look()
        return keep_free_bytes - free_bytes

    def drop(self) -> bool:
        """Free the file's room; False if there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def restore(self) -> None:
        """Set the file's room aside again if as much as is kept free is left then. Raises OSError."""
        free_bytes, keep_free_bytes = self._look()
        size_bytes = keep_free_bytes // 2
        if self._path.exists() or free_bytes < keep_free_bytes + size_bytes:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _look(self) -> tuple[int, int]:
        status = os.statvfs(self._root)
        total_bytes = status.f_blocks * status.f_frsize
        keep_free_bytes = min(_KEEP_FREE_BYTES, total_bytes // _SHARE_OF_DISK)
        return status.f_bavail * status.f_frsize, keep_free_bytes
