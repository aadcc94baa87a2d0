"""Real folders for tests: read one into a tree and a blob, compare two of them in everything there is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.chunks.table import ChunkTable
from glowplug.image.index.tree import Extent, Inode, Tree

CONTENT_BYTES = 1 << 24  # longer files are compared where the original has data, and around it


def read_folder(root: Path) -> tuple[Tree, dict[bytes, bytes]]:
    """The tree of a folder, and its chunks by id."""
    chunks: dict[bytes, bytes] = {}
    linked: dict[int, Inode] = {}
    return Tree(_read(root, linked, chunks)), chunks


def write_blob(path: Path, table: ChunkTable, chunks: dict[bytes, bytes]) -> None:
    with path.open("wb") as blob:
        blob.truncate(table.blob_bytes)
        for index, chunk in enumerate(table):
            blob.seek(table.offset(index))
            blob.write(chunks[chunk.id])


def _read(path: Path, linked: dict[int, Inode], chunks: dict[bytes, bytes]) -> Inode:
    found = os.lstat(path)
    if found.st_ino in linked:
        return linked[found.st_ino]
    inode = Inode(found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, read_xattrs(path))
    if inode.is_directory:
        inode.children = {os.fsencode(entry.name): _read(entry, linked, chunks) for entry in path.iterdir()}
        return inode
    linked[found.st_ino] = inode
    if inode.is_regular:
        inode.size_bytes = found.st_size
        inode.extents = tuple(_read_extents(path, found.st_size, chunks))
    elif stat.S_ISLNK(inode.mode):
        inode.target = os.fsencode(path.readlink())
    elif stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        inode.rdev = found.st_rdev
    return inode


def read_xattrs(path: Path) -> dict[bytes, bytes]:
    return {
        os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }


def _read_extents(path: Path, size_bytes: int, chunks: dict[bytes, bytes]) -> Iterator[Extent]:
    with path.open("rb") as file:
        slots = sorted(
            {slot for start, end in _data(file.fileno(), size_bytes) for slot in _slots(start, end)}
        )
        for slot in slots:
            file.seek(slot * CHUNK_BYTES)
            content = file.read(CHUNK_BYTES)
            if any(content):
                chunk = Chunk.of(content)
                chunks[chunk.id] = content
                yield Extent(slot * CHUNK_BYTES, (chunk,))


def _slots(start: int, end: int) -> range:
    return range(start // CHUNK_BYTES, (end + CHUNK_BYTES - 1) // CHUNK_BYTES)


def _data(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where a file has content, by the filesystem's own account."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def differences(original: Path, copy: Path) -> list[str]:
    """What is not equal in two folders: names, kinds, modes, owners, times, links, xattrs, content."""
    return list(_compare(original, copy, {}, {}))


def _compare(original: Path, copy: Path, links: dict[int, int], links_back: dict[int, int]) -> Iterator[str]:
    shown = repr(str(copy))
    one, other = os.lstat(original), os.lstat(copy)
    for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_rdev", "st_nlink"):
        if field == "st_size" and stat.S_ISDIR(one.st_mode):
            continue
        if getattr(one, field) != getattr(other, field):
            yield f"{shown}: {field} {getattr(one, field)} != {getattr(other, field)}"
    if links.setdefault(one.st_ino, other.st_ino) != other.st_ino:
        yield f"{shown} is not linked as the original is"
    if links_back.setdefault(other.st_ino, one.st_ino) != one.st_ino:
        yield f"{shown} is linked and the original is not"
    if read_xattrs(original) != read_xattrs(copy):
        yield f"{shown}: xattrs {read_xattrs(original)} != {read_xattrs(copy)}"
    if stat.S_ISLNK(one.st_mode) and original.readlink() != copy.readlink():
        yield f"{shown}: leads elsewhere"
    if stat.S_ISREG(one.st_mode) and one.st_size == other.st_size:
        yield from _compare_content(original, copy, one.st_size)
    if stat.S_ISDIR(one.st_mode):
        yield from _compare_listing(original, copy, links, links_back)


def _compare_listing(
    original: Path, copy: Path, links: dict[int, int], links_back: dict[int, int]
) -> Iterator[str]:
    with os.scandir(copy) as entries:
        listed = {entry.name: entry for entry in entries}
    if sorted(listed) != sorted(entry.name for entry in original.iterdir()):
        yield f"{str(copy)!r}: other names"
        return
    for name, entry in listed.items():
        path = copy / name
        if entry.inode() != os.lstat(path).st_ino:
            yield f"{str(path)!r}: listed with another inode number"
        found = entry.is_dir(follow_symlinks=False), entry.is_symlink(), entry.is_file(follow_symlinks=False)
        mode = os.lstat(path).st_mode
        if found != (stat.S_ISDIR(mode), stat.S_ISLNK(mode), stat.S_ISREG(mode)):
            yield f"{str(path)!r}: listed as another kind"
        yield from _compare(original / name, path, links, links_back)


def _compare_content(original: Path, copy: Path, size_bytes: int) -> Iterator[str]:
    with original.open("rb") as one, copy.open("rb") as other:
        spans = [(0, size_bytes)]
        if size_bytes > CONTENT_BYTES:
            data = _data(one.fileno(), size_bytes)
            spans = [(max(0, start - CHUNK_BYTES), end + CHUNK_BYTES) for start, end in data]
            spans += [(0, CHUNK_BYTES), (size_bytes - CHUNK_BYTES, size_bytes)]
        for start, end in spans:
            one.seek(start)
            other.seek(start)
            if one.read(end - start) != other.read(end - start):
                yield f"{str(copy)!r}: other content between {start} and {end}"
