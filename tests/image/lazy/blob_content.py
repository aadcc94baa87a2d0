"""Blobs made for tests: their chunks' bytes, the blob that these make, and the folder that names it."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import blake3

from glowplug.chunks.chunk import ALIGN_BYTES, Chunk, aligned
from glowplug.chunks.ssd import SsdStore
from glowplug.chunks.table import ChunkTable
from glowplug.types.paths import StateDir

MIXED_SIZES = (5000, 1 << 20, 1, 4096, 4095, 4097, 700_000, 1 << 20, 12_288, 300, (1 << 20) - 1, 90_000)


@dataclass(frozen=True)
class BlobContent:
    """A blob; chunk ``i`` is ``bodies[i]``."""

    bodies: tuple[bytes, ...]

    @classmethod
    def of_sizes(cls, sizes: Iterable[int], seed: int = 1) -> BlobContent:
        noise = random.Random(seed)
        return cls(tuple(noise.randbytes(size) for size in sizes))

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        return tuple(map(Chunk.of, self.bodies))

    @cached_property
    def packed_table(self) -> bytes:
        return ChunkTable.pack(self.chunks)

    @cached_property
    def manifest(self) -> bytes:
        return json.dumps({"chunks": {"blake3": blake3.blake3(self.packed_table).hexdigest()}}).encode()

    @cached_property
    def digest(self) -> str:
        return blake3.blake3(self.manifest).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        return b"".join(body.ljust(aligned(len(body)), b"\0") for body in self.bodies)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each chunk begins."""
        return tuple(ChunkTable(self.packed_table).offset(index) for index in range(len(self.bodies)))

    def publish(self, state: StateDir) -> Path:
        """Make its index folder, as far as the daemon looks at it."""
        folder = state.indexes / self.digest
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chunks.bin").write_bytes(self.packed_table)
        (folder / "manifest.json").write_bytes(self.manifest)
        return folder

    def store(self, ssd: SsdStore, indices: Sequence[int] | None = None) -> None:
        """Put its chunks, or some of them, where other processes see them."""
        for index in range(len(self.bodies)) if indices is None else indices:
            ssd.put(self.chunks[index], self.bodies[index])
        ssd.flush()


@contextmanager
def short_state(under: str = "/tmp") -> Iterator[StateDir]:
    """A state directory with a short path, since those of sockets end at 108 bytes."""
    root = Path(tempfile.mkdtemp(prefix="gp-blob-", dir=under))
    try:
        state = StateDir(root)
        state.create()
        state.indexes.mkdir(exist_ok=True)
        yield state
    finally:
        shutil.rmtree(root)


def cached_bytes(path: Path) -> int:
    """What of a file is in page cache (cachestat, Linux 6.5)."""
    everything, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    with path.open("rb") as file:
        assert ctypes.CDLL(None).syscall(451, file.fileno(), everything, counts, 0) == 0
    return counts[0] * ALIGN_BYTES


def forget_pages(path: Path) -> None:
    """Have nothing of a file in page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached_bytes(path) == 0
