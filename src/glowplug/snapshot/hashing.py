"""BLAKE3 of files at the speed of memory, without trusting the disk.

Files are read into a buffer that stays in the processor's cache, not mapped: a mapped page that cannot be
read (a bad sector, a file cut off meanwhile) kills the whole process with SIGBUS, while a failed read is an
error with a name. One core hashes read bytes as fast as mapped ones (7.9 and 7.6 GB/s in
``benchmarks/snapshot_hash.py``, several times faster than a restore takes them in); only mapping with all
cores would be faster (15 GB/s on two), and the restore needs those. Reading and hashing release the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from glowplug.snapshot.durable import open_regular
from glowplug.snapshot.manifest import FileEntry

_BUFFER_BYTES = 1 << 20
"""Fits a core's own cache. Measured from 128 KiB to 16 MiB: no difference beyond noise."""


def hash_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> FileEntry:
    """Length and hash of the regular file at ``path``; ``on_bytes`` hears of every piece. Raises OSError."""
    digest = blake3()
    buffer = bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    total_bytes = 0
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):
            digest.update(view[:count])
            total_bytes += count
            if on_bytes is not None:
                on_bytes(count)
    return FileEntry(bytes=total_bytes, blake3=digest.hexdigest())
