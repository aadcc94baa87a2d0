from __future__ import annotations

import stat

from glowplug.chunks.chunk import Chunk
from glowplug.image.index.tree import Extent, Inode, Tree
from glowplug.image.task.compare import compare


def directory(**children: Inode) -> Inode:
    named = {name.encode(): inode for name, inode in children.items()}
    return Inode(mode=stat.S_IFDIR | 0o755, children=named)


def file(content: bytes = b"x", mode: int = 0o644, **fields: int) -> Inode:
    extents = (Extent(0, (Chunk.of(content),)),)
    return Inode(mode=stat.S_IFREG | mode, size_bytes=len(content), extents=extents, **fields)


def changes(old: Inode, new: Inode) -> list[tuple[str, str, str]]:
    return [(c["sign"], c["path"], c["what"]) for c in compare(Tree(old), Tree(new))]


def test_equal_trees_do_not_differ() -> None:
    assert (
        changes(directory(a=file(), b=directory(c=file())), directory(a=file(), b=directory(c=file()))) == []
    )


def test_what_came_and_what_went_is_named_with_everything_in_it() -> None:
    old, new = directory(a=file(), gone=directory(x=file())), directory(a=file(), new=file())
    assert changes(old, new) == [("-", "/gone", ""), ("-", "/gone/x", ""), ("+", "/new", "")]


def test_a_changed_file_says_in_what_it_changed() -> None:
    old = directory(a=file(b"one"))
    new = directory(a=file(b"two", 0o600, uid=7, mtime_ns=1))
    assert changes(old, new) == [("~", "/a", "mode, owner, time, content")]


def test_a_file_that_became_a_directory_changed_its_kind() -> None:
    assert changes(directory(a=file()), directory(a=directory())) == [("~", "/a", "kind")]


def test_names_that_are_no_text_are_shown_escaped() -> None:
    new = directory()
    new.children[b"\xff\n"] = file()
    assert changes(directory(), new) == [("+", "/\\xff\n", "")]
