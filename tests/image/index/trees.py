"""Trees for tests: made up by hypothesis or by hand, and a form of them that can be compared."""

from __future__ import annotations

import os
import stat
from typing import Any

import blake3
from hypothesis import strategies as st

from glowplug.chunks.chunk import CHUNK_BYTES, Chunk
from glowplug.image.index.erofs import MAX_FILE_BYTES, MAX_OWNER
from glowplug.image.index.tree import Extent, Inode, Tree

SECOND_NS = 10**9
SOME_TIME_NS = 1_700_000_000 * SECOND_NS + 123_456_789


def chunk(seed: int, size_bytes: int) -> Chunk:
    """A chunk that nobody has the bytes of."""
    return Chunk(blake3.blake3(f"{seed} {size_bytes}".encode()).digest(), size_bytes)


def directory(mode: int = 0o755, **attributes: Any) -> Inode:
    return Inode(stat.S_IFDIR | mode, **{"mtime_ns": SOME_TIME_NS, **attributes})


def file(content_bytes: int = 0, *, seed: int = 1, mode: int = 0o644, **attributes: Any) -> Inode:
    """A file without holes."""
    sizes = [min(CHUNK_BYTES, content_bytes - start) for start in range(0, content_bytes, CHUNK_BYTES)]
    chunks = tuple(chunk(seed + number, size) for number, size in enumerate(sizes))
    extents = (Extent(0, chunks),) if chunks else ()
    return Inode(
        stat.S_IFREG | mode,
        **{"mtime_ns": SOME_TIME_NS, "size_bytes": content_bytes, "extents": extents, **attributes},
    )


def memory(*chunk_bytes: int, **attributes: Any) -> Inode:
    """A file that is cut at pages, of chunks of these lengths; one below zero is a hole."""
    extents, offset = [], 0
    for number, size_bytes in enumerate(chunk_bytes):
        if size_bytes > 0:
            extents.append(Extent(offset, (chunk(100 + number, size_bytes),)))
        offset += abs(size_bytes)
    return file(size_bytes=offset, extents=tuple(extents), is_cut_at_pages=True, **attributes)


def hole(size_bytes: int) -> Inode:
    """A file without content."""
    return file(extents=(), size_bytes=size_bytes)


def symlink(target: bytes, **attributes: Any) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, **{"mtime_ns": SOME_TIME_NS, "target": target, **attributes})


def tree_of(children: dict[bytes, Inode]) -> Tree:
    return Tree(directory(children=children))


def describe(tree: Tree) -> list[tuple[object, ...]]:
    """Everything that a tree says, hard links included, as plain values."""
    first_path: dict[int, bytes] = {}
    return [
        (
            path,
            first_path.setdefault(id(inode), path),
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns,
            sorted(inode.xattrs.items()),
            inode.size_bytes,
            inode.is_cut_at_pages,
            _slots(inode),
            inode.target,
            inode.rdev,
            sorted(inode.children),
        )
        for path, inode in tree.walk()
    ]


def _slots(inode: Inode) -> list[tuple[int, Chunk]]:
    placed: list[tuple[int, Chunk]] = []
    for extent in inode.extents:
        offset = extent.offset
        for piece in extent.chunks:
            placed.append((offset, piece))
            offset += piece.size_bytes
    return placed


names = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.sampled_from([b"a", b"b", b"a.py", b"\xff\xfe", b"-", b"!", b"~", b"...", b"..a", b"x" * 255]),
).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
times = st.one_of(
    st.just(SOME_TIME_NS),
    st.integers(-(1 << 63) * SECOND_NS, (1 << 63) * SECOND_NS - 1),
    st.integers(-5 * SECOND_NS, 5 * SECOND_NS),
)
owners = st.one_of(st.just(0), st.integers(0, MAX_OWNER), st.sampled_from([0xFFFF, 0x10000]))
xattr_names = st.one_of(
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"]),
    st.builds(
        lambda prefix, rest: prefix + rest.replace(b"\0", b"_"),
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=20),
    ),
)
xattr_values = st.one_of(st.binary(max_size=20), st.sampled_from([b"label" * 40, b"v" * 4090, b"w" * 65535]))
xattrs = st.one_of(
    st.just({}),
    st.just({}),
    # Four of the longest values are more than an inode can have.
    st.dictionaries(xattr_names, xattr_values, min_size=1, max_size=4).filter(
        lambda found: sum(map(len, found.values())) < 200_000
    ),
)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    slots = draw(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=4))
    last_bytes = draw(st.sampled_from([1, 4095, 4096, 4097, CHUNK_BYTES]))
    if all(seed is None for seed in slots):
        return {"size_bytes": draw(st.integers(0, MAX_FILE_BYTES)), "extents": ()}
    extents = []
    for number, seed in enumerate(slots):
        if seed is not None:
            size_bytes = last_bytes if number == len(slots) - 1 else CHUNK_BYTES
            extents.append(Extent(number * CHUNK_BYTES, (chunk(seed, size_bytes),)))
    return {"size_bytes": (len(slots) - 1) * CHUNK_BYTES + last_bytes, "extents": tuple(extents)}


@st.composite
def paged_files(draw: st.DrawFn) -> dict[str, Any]:
    """Files that are cut at pages, with content somewhere."""
    pieces = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=6))
    offset = 0
    extents = []
    for hole_pages, seed in pieces:
        offset += hole_pages * 4096
        piece = chunk(seed, draw(st.sampled_from([1, 2, 16, 256])) * 4096)
        extents.append(Extent(offset, (piece,)))
        offset += piece.size_bytes
    tail = draw(st.sampled_from(["none", "hole", "short"]))
    if tail == "short":
        extents.append(Extent(offset, (chunk(9, 4097),)))
    offset += {"none": 0, "hole": 5000, "short": 4097}[tail]
    return {"size_bytes": offset, "extents": tuple(extents), "is_cut_at_pages": True}


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree an index can hold, hard links and all."""
    root = directory(mtime_ns=draw(times), xattrs=draw(xattrs), uid=draw(owners))
    folders, others = [root], []
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(folders))
        name = draw(names)
        if name in (b".", b"..") or name in parent.children:
            continue
        if others and draw(st.integers(0, 9)) == 0:
            parent.children[name] = draw(st.sampled_from(others))
            continue
        inode = draw(_inodes())
        parent.children[name] = inode
        (folders if inode.is_directory else others).append(inode)
    return Tree(root)


@st.composite
def _inodes(draw: st.DrawFn) -> Inode:
    kinds = [
        stat.S_IFDIR,
        stat.S_IFREG,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    ]
    kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFDIR, *kinds]))
    inode = Inode(kind | draw(st.integers(0, 0o7777)), draw(owners), draw(owners), draw(times), draw(xattrs))
    if kind == stat.S_IFREG:
        for key, value in draw(st.one_of(files(), files(), paged_files())).items():
            setattr(inode, key, value)
    elif kind == stat.S_IFLNK:
        target = draw(
            st.one_of(st.binary(min_size=1, max_size=30), st.just(b"t" * 4095), st.just(b"t" * 4064))
        )
        inode.target = target.replace(b"\0", b"_")
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        inode.rdev = os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1)))
    return inode
