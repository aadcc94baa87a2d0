"""How fast this machine's disk gives a file, past the page cache: what bounds a restore from it."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

_BLOCK_BYTES = 8 << 20


def sequential_read_bytes_per_s(path: Path) -> float:
    """Read all of ``path`` with O_DIRECT, in order. Raises OSError where the filesystem cannot."""
    size = path.stat().st_size
    # O_DIRECT wants aligned memory: an anonymous map is aligned to pages.
    with mmap.mmap(-1, _BLOCK_BYTES) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            started = time.monotonic()
            offset = 0
            while offset < size:
                count = os.preadv(fd, [buffer], offset)
                if count == 0:
                    raise OSError(f"{path} ended at byte {offset} of {size}")
                offset += count
            return size / (time.monotonic() - started)
        finally:
            os.close(fd)


def disk_read_bytes(path: Path) -> int:
    """Bytes read so far from the disk that holds ``path``, by anybody; 0 where the kernel does not count."""
    device = path.stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except FileNotFoundError:
        return 0
    return (
        int(fields[2]) * 512
    )  # sectors of 512 bytes, whatever the disk's own (Documentation/block/stat.rst)
