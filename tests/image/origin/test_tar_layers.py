from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile

import pytest
from tests.image.origin.origin_kit import OpenStore, a_job, at, paths
from tests.image.origin.tars import Member, folder, hard_link, link, member, pack

from glowplug.image.index.tree import Tree
from glowplug.image.origin.confine import TreeBuilder
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.image.origin.sink import ChunkSink
from glowplug.image.origin.tar import apply_tar
from glowplug.types.errors import InvalidInput

LOWER = [
    folder("etc", mode=0o700), member("etc/passwd", b"root"), folder("etc/ssl"),
    member("etc/ssl/cert", b"cert"),
    folder("usr"), folder("usr/lib"), member("usr/lib/x.so", b"x"), link("lib", "usr/lib"),
    member("tmp", b"file"),
]  # fmt: skip
LOWER_PATHS = [
    b"/etc", b"/etc/passwd", b"/etc/ssl", b"/etc/ssl/cert", b"/lib", b"/tmp", b"/usr", b"/usr/lib",
    b"/usr/lib/x.so",
]  # fmt: skip


def applied(*layers: list[Member], whiteouts: bool = True) -> tuple[Tree, OpenStore]:
    builder, store = TreeBuilder(), OpenStore()
    with ChunkSink(store) as sink:
        for layer in layers:
            apply_tar(io.BytesIO(pack(layer)), builder, sink, ArchiveLimits(), a_job(), whiteouts=whiteouts)
    return builder.finish(), store


def without(*prefixes: bytes) -> list[bytes]:
    return [path for path in LOWER_PATHS if not path.startswith(prefixes)]


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([], LOWER_PATHS),
        ([member("etc/.wh.passwd")], without(b"/etc/passwd")),
        ([member(".wh.etc")], without(b"/etc")),
        ([member("./.wh.etc")], without(b"/etc")),
        ([member("etc/ssl/.wh..wh..opq")], without(b"/etc/ssl/cert")),
        ([member(".wh..wh..opq")], []),
        ([member(".wh..wh.plnk"), member(".wh..wh.aufs/x")], LOWER_PATHS),
        ([member(".wh.missing"), member("etc/missing/.wh.x"), member("tmp/.wh.x")], LOWER_PATHS),
        ([member("lib/.wh.x.so")], LOWER_PATHS),
        ([folder("tmp")], LOWER_PATHS),
        ([member("tmp/x")], sorted([*LOWER_PATHS, b"/tmp/x"])),
        ([member("etc", b"now a file")], sorted([*without(b"/etc"), b"/etc"])),
        ([link("etc", "usr")], sorted([*without(b"/etc"), b"/etc"])),
    ],
)
def test_an_upper_layer_adds_replaces_and_takes_away(upper: list[Member], expected: list[bytes]) -> None:
    assert paths(applied(LOWER, upper)[0]) == expected


@pytest.mark.parametrize("turn", [1, -1])
def test_the_order_within_a_layer_does_not_matter_to_whiteouts(turn: int) -> None:
    upper = [
        member("etc/.wh..wh..opq"),
        member("etc/new", b"new"),
        member(".wh.tmp"),
        member("tmp", b"new file"),
    ]
    tree, store = applied(LOWER, upper[::turn])
    assert paths(tree) == [b"/etc", b"/etc/new", *without(b"/etc")]
    assert store.content(at(tree, b"tmp")) == b"new file"


def test_a_directory_comes_back_empty_after_its_removal() -> None:
    tree, _ = applied(LOWER, [member(".wh.etc")], [folder("etc")])
    assert not at(tree, b"etc").children


def test_three_layers_take_turns() -> None:
    tree, store = applied(
        [member("a", b"1")], [member("a", b"2"), member("b", b"2")], [member(".wh.a"), member("b", b"3")]
    )
    assert paths(tree) == [b"/b"]
    assert store.content(at(tree, b"b")) == b"3"


def test_a_file_is_linked_across_layers() -> None:
    tree, _ = applied(LOWER, [hard_link("passwd", "etc/passwd")])
    assert at(tree, b"passwd") is at(tree, b"etc/passwd")


def test_an_unmentioned_parent_keeps_its_attributes() -> None:
    tree, _ = applied(LOWER, [member("etc/new")])
    assert at(tree, b"etc").mode & 0o7777 == 0o700


@pytest.mark.parametrize("name", [".wh.", "a/.wh.", ".wh...", "a/.wh..", "../.wh.etc", "a/../../.wh.x"])
def test_whiteouts_of_what_is_no_name_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        applied(LOWER, [member(name)])


def test_outside_of_layers_such_names_are_files() -> None:
    assert paths(applied([member(".wh.x"), member("x")], whiteouts=False)[0]) == [b"/.wh.x", b"/x"]


def test_a_layer_may_just_stop_and_a_plain_archive_may_not() -> None:
    packed = pack([member("a", b"x")])[:1024]
    sink = ChunkSink(OpenStore())
    with sink:
        builder = TreeBuilder()
        apply_tar(io.BytesIO(packed), builder, sink, ArchiveLimits(), a_job(), whiteouts=True)
        assert paths(builder.finish()) == [b"/a"]
        apply_tar(io.BytesIO(b""), builder, sink, ArchiveLimits(), a_job(), whiteouts=True)
        with pytest.raises(InvalidInput, match="cut off"):
            apply_tar(io.BytesIO(packed), TreeBuilder(), sink, ArchiveLimits(), a_job(), whiteouts=False)


def test_a_layer_is_read_to_its_very_end() -> None:
    """So that a hash over it covers what follows the archive, too."""

    class Hashed(io.BytesIO):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.hash = hashlib.sha256()

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.hash.update(data)
            return data

    packed = gzip.compress(pack([member("a", os.urandom(100_000))], tarfile.GNU_FORMAT) + os.urandom(900_000))
    source = Hashed(packed)
    with ChunkSink(OpenStore()) as sink:
        apply_tar(source, TreeBuilder(), sink, ArchiveLimits(), a_job(), whiteouts=True)
    assert source.hash.digest() == hashlib.sha256(packed).digest()
