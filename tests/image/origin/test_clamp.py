from __future__ import annotations

from tests.image.index.trees import directory, file, tree_of

from glowplug.image.origin.clamp import clamp_mtimes

SECOND_NS = 10**9


def test_only_what_is_newer_is_clamped() -> None:
    shared = file(mtime_ns=2000 * SECOND_NS + 1)
    tree = tree_of({
        b"old": file(mtime_ns=5), b"a": shared, b"b": shared, b"just": file(mtime_ns=1000 * SECOND_NS),
        b"before 1970": file(mtime_ns=-5), b"below": directory(children={b"x": file(mtime_ns=1 << 62)}),
    })  # fmt: skip
    clamp_mtimes(tree, 1000)
    times = {path: inode.mtime_ns for path, inode in tree.walk()}
    newest = 1000 * SECOND_NS
    assert times == {
        b"/": newest, b"/a": newest, b"/b": newest, b"/before 1970": -5, b"/below": newest,
        b"/below/x": newest, b"/just": newest, b"/old": 5,
    }  # fmt: skip
