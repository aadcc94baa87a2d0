"""How fast a page file is hashed and scanned for secrets, read into a buffer or mapped.

Why it exists: every restore hashes every byte, so this must outrun the restore itself (about 1 GB/s), and
the choice of reading over mapping must cost nothing. Run: ``python benchmarks/snapshot_hash.py [MIB]``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from glowplug.snapshot.hashing import hash_file
from glowplug.snapshot.secrets_scan import find_secrets

ROUNDS = 5
SECRETS = {"HF_TOKEN": b"hf_AbCdEfGhIjKlMnOpQrStUvWx", "DB_PASSWORD": b"correct horse battery"}


def write_pages(path: Path, mebibytes: int) -> None:
    """Half random, half zero: what a page file looks like to a hash and to a search."""
    block = os.urandom(1 << 19) + bytes(1 << 19)
    with path.open("wb") as file:
        for number in range(mebibytes):
            file.write(number.to_bytes(8, "little") + block[8:])


def best_bytes_per_s(size_bytes: int, work: Callable[[], object]) -> float:
    """The best of a few rounds: the machine is shared."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started)
    return size_bytes / best_s


def drop_from_page_cache(path: Path) -> None:
    """This file only; everything else on the machine stays cached."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def hash_uncached(path: Path) -> None:
    """Hash with every byte coming from the disk."""
    drop_from_page_cache(path)
    hash_file(path)


def main() -> None:
    """Print one line per way."""
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pages.img"
        write_pages(path, mebibytes)
        size_bytes = path.stat().st_size
        ways: dict[str, Callable[[], object]] = {
            "hash_file, page cache": lambda: hash_file(path),
            "hash_file, from disk": lambda: hash_uncached(path),
            "update_mmap, 1 thread, page cache": lambda: blake3(max_threads=1).update_mmap(path).digest(),
            "update_mmap, all cores, page cache": lambda: (
                blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
            ),
            f"find_secrets, {len(SECRETS)} secrets": lambda: find_secrets(Path(directory), SECRETS),
        }
        for name, work in ways.items():
            print(f"{name:36} {best_bytes_per_s(size_bytes, work) / 1e9:6.2f} GB/s")


if __name__ == "__main__":
    main()
