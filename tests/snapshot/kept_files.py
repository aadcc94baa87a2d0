"""The files of a node's snapshots where they really lie: in packs, behind a mount. And how to damage them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.catalog import Catalog
from glowplug.snapshot.manifest import MANIFEST_NAME
from glowplug.snapshot.sealing.manifests import content_named
from glowplug.types.paths import StateDir


def content_of(state: StateDir, snapshot_id: str) -> str:
    """The digest of a finished snapshot's files."""
    raw = (state.snapshots / snapshot_id / MANIFEST_NAME).read_bytes()
    return content_named(raw, snapshot_id)


def mounted_files(state: StateDir, snapshot_id: str) -> Path:
    """Where a snapshot that was restored, if only on trial, is mounted."""
    return state.lazy / "mounts" / content_of(state, snapshot_id)


def flip_a_bit(state: StateDir, snapshot_id: str, file: str | None = None) -> None:
    """In the middle of a file, of the largest unless named, on the disk and nowhere else."""
    path, offset, _size_bytes = _middle(state, snapshot_id, file)
    with path.open("r+b") as pack:
        pack.seek(offset)
        byte = pack.read(1)[0]
        pack.seek(offset)
        pack.write(bytes([byte ^ 0x10]))
    _forget_pages()


def zero_a_chunk(state: StateDir, snapshot_id: str) -> None:
    """The middle of the largest file, as a disk does that lost a write."""
    path, offset, size_bytes = _middle(state, snapshot_id)
    with path.open("r+b") as pack:
        pack.seek(offset)
        pack.write(bytes(size_bytes))
    _forget_pages()


def cut_off_the_pack(state: StateDir, snapshot_id: str) -> None:
    """What lies from the middle of the largest file on is gone."""
    path, offset, _size_bytes = _middle(state, snapshot_id)
    os.truncate(path, offset)
    _forget_pages()


def lose_the_index(state: StateDir, snapshot_id: str) -> None:
    """Nothing tells any more which chunks the files are."""
    shutil.rmtree(state.indexes / content_of(state, snapshot_id))


def _middle(state: StateDir, snapshot_id: str, file: str | None = None) -> tuple[Path, int, int]:
    """Pack, offset and length of the chunk in the middle of a file, of the largest unless named."""
    files = Catalog(state).get(content_of(state, snapshot_id)).tree().root.children
    damaged = files[file.encode()] if file else max(files.values(), key=lambda inode: inode.size_bytes)
    chunks = [chunk for extent in damaged.extents for chunk in extent.chunks]
    chunk = chunks[len(chunks) // 2]
    with SsdStore(state.chunks) as ssd:
        location = ssd.locate(chunk)
        assert location is not None
        return ssd.pack_path(location.pack), location.offset, chunk.size_bytes


def _forget_pages() -> None:
    """What the kernel has cached would hide what the disk has: of the files, and of small chunks gathered."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
