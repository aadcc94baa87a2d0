from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.index.nasty_folder import make_nasty_folder
from tests.image.index.trees import describe
from tests.image.origin.origin_kit import OpenStore, a_job, at, paths, read
from tests.image.origin.tars import (
    END,
    Member,
    block,
    folder,
    hard_link,
    link,
    member,
    octal,
    pack,
    padded,
    pax,
    record,
    unpack,
    unpack_file,
)
from tests.image.origin.test_compressed import COMPRESSORS

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.manifest import ImageConfig
from glowplug.image.index.tree import Tree
from glowplug.image.job import Job
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.sink import ChunkSink
from glowplug.image.origin.tar import TarOrigin
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, InvalidInput, NotFound

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these files")
SECOND_NS = 10**9


def gnu_tar(folder: Path, archive: Path, *options: str) -> None:
    subprocess.run(
        ["tar", "--numeric-owner", *options, "-C", folder, "-cf", archive, "."],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def nasty(tmp_path: Path) -> Path:
    """A folder with everything that tar archives can hold: no sockets, and no pipes with two names."""
    make_nasty_folder(tmp_path / "nasty")
    (tmp_path / "nasty" / "special" / "socket").unlink()
    (tmp_path / "nasty" / "links" / "the same fifo").unlink()
    return tmp_path / "nasty"


def without_what_old_formats_lose(tree: Tree) -> Tree:
    for _, inode in tree.walk():
        inode.xattrs = {}
        inode.mtime_ns = inode.mtime_ns // SECOND_NS * SECOND_NS
    return tree


@needs_root
@pytest.mark.parametrize("sparse_version", ["0.0", "0.1", "1.0"])
def test_a_posix_archive_is_the_folder_that_it_was_made_of(
    nasty: Path, tmp_path: Path, sparse_version: str
) -> None:
    archive = tmp_path / "nasty.tar"
    gnu_tar(nasty, archive, "--sparse", "--format=posix", "--xattrs", f"--sparse-version={sparse_version}")
    tree, store = unpack_file(archive)
    expected, expected_store = read(FolderOrigin(nasty))
    assert describe(tree) == describe(expected)
    assert store.bodies == expected_store.bodies


@needs_root
@pytest.mark.parametrize("format_name", ["gnu", "oldgnu"])
def test_an_archive_of_gnu_is_the_folder_but_for_what_it_cannot_say(
    nasty: Path, tmp_path: Path, format_name: str
) -> None:
    archive = tmp_path / "nasty.tar"
    gnu_tar(nasty, archive, "--sparse", f"--format={format_name}")
    tree, store = unpack_file(archive)
    expected, expected_store = read(FolderOrigin(nasty))
    assert describe(tree) == describe(without_what_old_formats_lose(expected))
    assert store.bodies == expected_store.bodies


@pytest.mark.parametrize("format_name", ["v7", "ustar", "gnu", "oldgnu", "posix"])
def test_every_format_of_gnu_tar_is_read(tmp_path: Path, format_name: str) -> None:
    root = tmp_path / "root"
    (root / ("d" * 60)).mkdir(parents=True)
    (root / ("d" * 60) / "file").write_text("content")
    os.link(root / ("d" * 60) / "file", root / "again")
    (root / "link").symlink_to("d" * 60)
    (root / "large").write_bytes(os.urandom(3 * CHUNK_BYTES + 1))
    gnu_tar(root, tmp_path / "a.tar", f"--format={format_name}")
    expected, expected_store = read(FolderOrigin(root))
    tree, store = unpack_file(tmp_path / "a.tar")
    assert describe(without_what_old_formats_lose(tree)) == describe(without_what_old_formats_lose(expected))
    assert store.bodies == expected_store.bodies


@needs_root
def test_acls_in_text_are_those_of_the_folder(tmp_path: Path, nasty: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("x")
    acl = os.getxattr(nasty / "xattrs" / "guarded", "system.posix_acl_access")
    os.setxattr(
        root / "file",
        "system.posix_acl_access",
        acl.replace((1000).to_bytes(4, "little"), b"\x01\x02\x03\x04"),
    )
    gnu_tar(root, tmp_path / "a.tar", "--format=posix", "--acls")
    assert describe(unpack_file(tmp_path / "a.tar")[0]) == describe(read(FolderOrigin(root))[0])


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_any_compression_gives_the_same_tree(compress: Callable[[bytes], bytes]) -> None:
    packed = pack([folder("a"), member("a/b", os.urandom(CHUNK_BYTES + 9)), member("c", b"small")])
    assert describe(unpack(compress(packed))[0]) == describe(unpack(packed)[0])


def test_content_arrives_whole_and_zeros_as_holes() -> None:
    contents = {
        "large": os.urandom(2 * CHUNK_BYTES + 3),
        "small": b"x",
        "zeros": bytes(CHUNK_BYTES),
        "empty": b"",
    }
    tree, store = unpack(pack(member(name, content) for name, content in contents.items()))
    assert {name: store.content(at(tree, name.encode())) for name in contents} == contents
    assert at(tree, b"zeros").extents == ()


def test_parents_without_an_entry_are_made() -> None:
    tree, _ = unpack(pack([member("a/b/c", b"x")]))
    assert at(tree, b"/a/b").mode == stat.S_IFDIR | 0o755


def test_names_may_begin_in_any_way_that_tar_knows() -> None:
    assert paths(unpack(pack([folder("./"), folder("./a"), member("/a/b"), member("a//c")]))[0]) == [
        b"/a", b"/a/b", b"/a/c",
    ]  # fmt: skip


def test_the_last_of_several_entries_wins() -> None:
    tree, store = unpack(pack([member("a", b"old"), member("b", b"x"), member("a", b"new", mode=0o600)]))
    assert store.content(at(tree, b"/a")) == b"new"
    assert at(tree, b"/a").mode == stat.S_IFREG | 0o600


def test_a_hard_link_shares_its_file_whatever_size_it_claims() -> None:
    first, _ = hard_link("b", "a")
    first.size = 3
    packed = pack([member("a", b"one")])[:1024] + first.tobuf() + pack([member("c", b"x")])
    tree, store = unpack(packed)
    assert at(tree, b"/a") is at(tree, b"/b")
    assert store.content(at(tree, b"/c")) == b"x"


def test_names_and_targets_are_bytes() -> None:
    name = os.fsdecode(b"\xff\xfe" * 60)
    tree, _ = unpack(pack([link(name, name), member("n" * 255)], tarfile.GNU_FORMAT))
    assert at(tree, b"\xff\xfe" * 60).target == b"\xff\xfe" * 60
    raw = b"\xff/\x80"
    assert paths(unpack(pax((b"path", raw)) + block() + END)[0]) == [b"/\xff", b"/\xff/\x80"]


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        (b"0", 0), (b"1.5", 1_500_000_000), (b"-1.5", -1_500_000_000), (b"-0.000000001", -1),
        (b"1700000000.123456789999", 1_700_000_000_123_456_789), (b"5.", 5 * SECOND_NS),
        (b"-11644473600", -11_644_473_600 * SECOND_NS),
    ],
)  # fmt: skip
def test_times_keep_their_nanoseconds_and_sign(text: bytes, time_ns: int) -> None:
    assert at(unpack(pax((b"mtime", text)) + block() + END)[0], b"file").mtime_ns == time_ns


def test_numbers_may_be_binary_and_negative() -> None:
    uid = b"\x80\0\0\0\xff\xff\xff\xfe"
    before_1970 = b"\xff" * 11 + b"\xfe"
    inode = at(unpack(block(at108=uid, at116=uid, at136=before_1970) + END)[0], b"file")
    assert (inode.uid, inode.gid, inode.mtime_ns) == (0xFFFFFFFE, 0xFFFFFFFE, -2 * SECOND_NS)


def test_global_headers_hold_until_they_are_replaced_and_name_nothing() -> None:
    packed = (
        pax((b"uid", b"7"), (b"path", b"all the same"), (b"SCHILY.xattr.user.a", b"1"), kind=b"g")
        + block(b"a")
        + pax((b"uid", b"8"))
        + block(b"b")
        + pax((b"uid", b"9"), kind=b"g")
        + block(b"c")
        + END
    )
    tree, _ = unpack(packed)
    assert {path: inode.uid for path, inode in tree.walk()} == {b"/": 0, b"/a": 7, b"/b": 8, b"/c": 9}
    assert at(tree, b"/c").xattrs == {b"user.a": b"1"}


def test_extended_attributes_come_in_two_spellings() -> None:
    records = [
        (b"SCHILY.xattr.user.binary", b"\0\n\xff="),
        (b"SCHILY.xattr.user.empty", b""),
        (b"LIBARCHIVE.xattr.user.b%25d", b"AP8"),
        (b"LIBARCHIVE.xattr.user.empty", b"AP8"),
        (b"SCHILY.xattr.com.apple.quarantine", b"not of Linux"),
    ]
    inode = at(unpack(pax(*records) + block() + END)[0], b"file")
    assert inode.xattrs == {b"user.binary": b"\0\n\xff=", b"user.empty": b"", b"user.b%d": b"\0\xff"}


def test_an_empty_record_takes_a_setting_back() -> None:
    assert paths(unpack(pax((b"path", b""), (b"size", b"")) + block(b"own") + END)[0]) == [b"/own"]


def test_old_directories_are_files_with_a_slash() -> None:
    tree, _ = unpack(block(b"a/", b"\0") + block(b"b/") + block(b"c", b"\0") + END)
    assert [inode.is_directory for _, inode in tree.walk()] == [True, True, True, False]


def test_labels_dumped_directories_and_contiguous_files_are_understood() -> None:
    packed = (
        block(b"a label", b"V")
        + block(b"dumped", b"D", octal(5))
        + padded(b"Nxyz\0")
        + block(b"contiguous", b"7", octal(3))
        + padded(b"abc")
        + END
    )
    tree, store = unpack(packed)
    assert paths(tree) == [b"/contiguous", b"/dumped"]
    assert store.content(at(tree, b"/contiguous")) == b"abc"


def test_the_prefix_of_ustar_and_star_is_part_of_the_name() -> None:
    assert paths(unpack(block(b"name", at345=b"some/prefix") + END)[0])[-1] == b"/some/prefix/name"
    times = b"00000000001\0" * 2
    assert (
        paths(unpack(block(b"name", at345=b"star", at476=times, at508=b"tar\0") + END)[0])[-1]
        == b"/star/name"
    )


def test_devices_keep_their_numbers() -> None:
    tree, _ = unpack(pack([member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)]))
    assert at(tree, b"null").rdev == os.makedev(1, 3)


def test_what_follows_the_end_does_not_matter_but_is_read() -> None:
    class Source(io.BytesIO):
        pass

    source = Source(gzip.compress(pack([member("a")]) + b"garbage after the end" * 1000))
    assert paths(read(TarOrigin(source))[0]) == [b"/a"]
    assert source.read() == b""


def test_a_sparse_file_of_terabytes_costs_what_its_data_costs() -> None:
    size = b"%d" % (1 << 40)
    records = [(b"GNU.sparse.size", size), (b"GNU.sparse.map", b"5,3,%d,2" % ((1 << 40) - 2))]
    tree, store = unpack(pax(*records) + block(size=octal(5)) + padded(b"abcde") + END)
    inode = at(tree, b"file")
    assert inode.size_bytes == 1 << 40
    assert [extent.offset for extent in inode.extents] == [0, (1 << 40) - CHUNK_BYTES]
    assert store.bodies[inode.extents[0].chunks[0].id][:9] == b"\0\0\0\0\0abc\0"


def test_where_the_configuration_comes_from_and_what_it_is_called(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(pack([member("a")]))
    origin = TarOrigin(archive, config=ImageConfig(env={"A": "b"}))
    assert origin.describe() == f"archive {archive}"
    with ChunkSink(OpenStore()) as sink:
        assert origin.read(sink, a_job())[1].env == {"A": "b"}


@pytest.mark.parametrize(
    ("name", "error"), [("missing", NotFound), ("folder", InvalidInput), ("pipe", InvalidInput)]
)
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, error: type[Exception]) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match=name):
        unpack_file(tmp_path / name)


def test_reading_ends_when_time_is_up() -> None:
    clock = ManualClock()

    class SlowSource(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            clock.advance(10)
            return super().read(size)

    job = Job(lambda _text, _fraction: None, clock, clock.monotonic() + 25)
    with pytest.raises(DeadlineExceeded):
        read(TarOrigin(SlowSource(pack([member("a", os.urandom(5 * CHUNK_BYTES))]))), job=job)


NAMES = st.lists(st.sampled_from(["a", "b", "ü", "n" * 120]), min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)


@st.composite
def members(draw: st.DrawFn) -> list[Member]:
    found: dict[str, Member] = {}
    for _ in range(draw(st.integers(0, 12))):
        name = draw(NAMES)
        kind = draw(KINDS)
        if name in found or any(other.startswith(name + "/") for other in found):
            continue
        if any(name.startswith(other + "/") and not found[other][0].isdir() for other in found):
            continue
        content = draw(st.binary(min_size=1, max_size=2000)) if kind == tarfile.REGTYPE else b""
        fields: dict[str, Any] = {
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(st.sampled_from([0, 5, 0o7777777, 1 << 31])),
            "mtime": draw(st.sampled_from([0, 1_700_000_000, 1 << 34])),
        }
        found[name] = member(name, content, kind, linkname="target" * (kind == tarfile.SYMTYPE), **fields)
    return list(found.values())


@given(archived=members())
def test_whatever_python_packs_is_read_as_it_was(archived: list[Member]) -> None:
    for format_number in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tree, store = unpack(pack(archived, format_number))
        for info, content in archived:
            inode = at(tree, os.fsencode(info.name))
            assert stat.S_IMODE(inode.mode) == info.mode
            assert (inode.uid, inode.mtime_ns) == (info.uid, int(info.mtime) * SECOND_NS)
            assert inode.target == info.linkname.encode()
            assert not info.isreg() or store.content(inode) == content


@given(value=st.binary(max_size=300))
def test_records_have_the_length_they_say(value: bytes) -> None:
    packed = pax((b"SCHILY.xattr.user.x", value), (b"mtime", b"7")) + block() + END
    inode = at(unpack(packed)[0], b"file")
    assert inode.xattrs == {b"user.x": value}
    assert inode.mtime_ns == 7 * SECOND_NS
    assert record(b"a", value).startswith(b"%d " % len(record(b"a", value)))
