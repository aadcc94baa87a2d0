from __future__ import annotations

import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.image.origin.origin_kit import paths

from glowplug.image.index.tree import Inode
from glowplug.image.origin.confine import TreeBuilder, shown
from glowplug.image.origin.limits import ArchiveLimits
from glowplug.types.errors import InvalidInput


def file(**attributes: int) -> Inode:
    return Inode(mode=stat.S_IFREG | 0o644, **attributes)  # type: ignore[arg-type]


def folder(mode: int = 0o755, **attributes: int) -> Inode:
    return Inode(mode=stat.S_IFDIR | mode, **attributes)  # type: ignore[arg-type]


def link(target: bytes) -> Inode:
    return Inode(mode=stat.S_IFLNK | 0o777, target=target)


@pytest.fixture
def builder() -> TreeBuilder:
    return TreeBuilder()


def built(builder: TreeBuilder) -> list[bytes]:
    return paths(builder.finish())


@pytest.mark.parametrize("path", [b"a/b", b"./a/b", b"/a/b", b"//a//b/", b"a/./b/."])
def test_a_path_means_the_same_however_it_is_written(builder: TreeBuilder, path: bytes) -> None:
    builder.add(path, folder())
    assert built(builder) == [b"/a", b"/a/b"]


@pytest.mark.parametrize("path", [b"../a", b"a/../../b", b"..", b"a/..", b"/../a", b"./.."])
def test_a_path_that_leads_upwards_is_refused(builder: TreeBuilder, path: bytes) -> None:
    with pytest.raises(InvalidInput, match="leads upwards"):
        builder.add(path, folder())
    with pytest.raises(InvalidInput, match="leads upwards"):
        builder.remove(path)
    builder.add(b"target", file())
    with pytest.raises(InvalidInput, match="leads upwards"):
        builder.link(b"x", path)


@pytest.mark.parametrize("path", [b"x" * 256, b"a\0b", b"a/" * 2048 + b"b"])
def test_a_path_that_no_file_can_have_is_refused(builder: TreeBuilder, path: bytes) -> None:
    with pytest.raises(InvalidInput):
        builder.add(path, file())


def test_missing_parents_are_made_for_root_and_dated_1970(builder: TreeBuilder) -> None:
    builder.add(b"a/b/c", file(uid=7))
    parent = builder.lookup(b"a/b")
    assert parent is not None
    assert (parent.mode, parent.uid, parent.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0)


def test_a_directory_that_comes_after_its_files_keeps_them(builder: TreeBuilder) -> None:
    builder.add(b"a/b", file())
    builder.add(b"a", folder(0o700, uid=5))
    parent = builder.lookup(b"a")
    assert parent is not None
    assert (parent.mode, parent.uid) == (stat.S_IFDIR | 0o700, 5)
    assert built(builder) == [b"/a", b"/a/b"]


def test_the_root_takes_attributes_and_stays_a_directory(builder: TreeBuilder) -> None:
    builder.add(b"./", folder(0o700))
    assert builder.finish().root.mode == stat.S_IFDIR | 0o700
    for inode in (file(), link(b"/etc")):
        with pytest.raises(InvalidInput, match="make the root"):
            builder.add(b".", inode)
    builder.add(b"f", file())
    with pytest.raises(InvalidInput, match="replace the root"):
        builder.link(b"/", b"f")
    with pytest.raises(InvalidInput, match="remove the root"):
        builder.remove(b"./")


def test_the_last_entry_of_a_name_wins(builder: TreeBuilder) -> None:
    builder.add(b"a", file(uid=1))
    builder.add(b"a", file(uid=2))
    found = builder.lookup(b"a")
    assert found is not None
    assert found.uid == 2


def test_a_file_in_place_of_a_directory_takes_all_below_with_it(builder: TreeBuilder) -> None:
    builder.add(b"a/b/c", file())
    builder.add(b"a", file())
    assert built(builder) == [b"/a"]


@pytest.mark.parametrize("obstacle", [file(), link(b"/etc"), link(b"b"), Inode(stat.S_IFCHR | 0o666)])
def test_no_path_leads_through_what_is_no_directory(builder: TreeBuilder, obstacle: Inode) -> None:
    builder.add(b"b", folder())
    builder.add(b"a", obstacle)
    for path in (b"a/passwd", b"a/x/y"):
        with pytest.raises(InvalidInput, match="leads through a, which is not a directory"):
            builder.add(path, file())
    with pytest.raises(InvalidInput, match="not in the archive"):
        builder.link(b"stolen", b"a/passwd")
    assert built(builder) == [b"/a", b"/b"]


def test_a_hard_link_is_one_file_with_two_names(builder: TreeBuilder) -> None:
    inode = file()
    builder.add(b"a", inode)
    assert builder.link(b"b/c", b"./a") is inode
    assert builder.lookup(b"b/c") is inode


def test_a_replaced_file_lives_on_under_its_other_names(builder: TreeBuilder) -> None:
    builder.add(b"a", file(uid=1))
    builder.link(b"b", b"a")
    builder.add(b"a", file(uid=2))
    found = builder.lookup(b"b")
    assert found is not None
    assert found.uid == 1


@pytest.mark.parametrize("target", [b"missing", b"d/missing", b"/etc/shadow", b"later", b"l"])
def test_a_hard_link_to_what_is_not_there_is_refused(builder: TreeBuilder, target: bytes) -> None:
    builder.add(b"d", folder())
    with pytest.raises(InvalidInput, match="not in the archive before it"):
        builder.link(b"l", target)


@pytest.mark.parametrize("target", [b"d", b".", b""])
def test_a_hard_link_to_a_directory_is_refused(builder: TreeBuilder, target: bytes) -> None:
    builder.add(b"d", folder())
    with pytest.raises(InvalidInput, match="hard link to the directory"):
        builder.link(b"d/loop", target)


def test_a_hard_link_that_replaces_its_own_target_is_refused(builder: TreeBuilder) -> None:
    builder.add(b"a", file())
    builder.begin_layer()
    with pytest.raises(InvalidInput, match="would replace itself"):
        builder.link(b"a/b", b"a")


@pytest.mark.parametrize("target", [b"", b"t" * 4096, b"a\0b"])
def test_a_link_without_a_possible_target_is_refused(builder: TreeBuilder, target: bytes) -> None:
    with pytest.raises(InvalidInput, match="symbolic link"):
        builder.add(b"a", link(target))


@pytest.mark.parametrize(
    ("name", "value"), [(b"", b""), (b"user." + b"x" * 251, b""), (b"user.x", bytes(65536)), (b"a\0", b"")]
)
def test_attributes_that_no_file_can_have_are_refused(
    builder: TreeBuilder, name: bytes, value: bytes
) -> None:
    with pytest.raises(InvalidInput, match="extended attribute"):
        builder.add(b"a", Inode(stat.S_IFREG, xattrs={name: value}))


class TestLayers:
    @pytest.fixture
    def builder(self) -> TreeBuilder:
        builder = TreeBuilder()
        for path in (b"etc/passwd", b"etc/ssl/cert", b"usr/bin/a", b"usr/bin/b", b"file"):
            builder.add(path, file())
        builder.add(b"lib", link(b"usr/lib"))
        builder.begin_layer()
        return builder

    def test_what_is_removed_is_gone_with_all_below(self, builder: TreeBuilder) -> None:
        builder.remove(b"etc")
        builder.remove(b"usr/bin/a")
        assert built(builder) == [b"/file", b"/lib", b"/usr", b"/usr/bin", b"/usr/bin/b"]

    def test_removing_what_is_not_there_does_nothing(self, builder: TreeBuilder) -> None:
        before = built(builder)
        for path in (b"missing", b"etc/missing/x", b"file/x", b"lib/x"):
            builder.remove(path)
            builder.clear(path)
        assert built(builder) == before

    @pytest.mark.parametrize("removed_first", [True, False])
    def test_what_the_same_layer_brings_stays_in_either_order(
        self, builder: TreeBuilder, removed_first: bool
    ) -> None:
        def bring() -> None:
            builder.add(b"etc/ssl/new", file())

        for step in (lambda: builder.remove(b"etc"), bring)[:: 1 if removed_first else -1]:
            step()
        assert [path for path in built(builder) if path.startswith(b"/etc")] == [
            b"/etc", b"/etc/ssl", b"/etc/ssl/new",
        ]  # fmt: skip

    @pytest.mark.parametrize("cleared_first", [True, False])
    def test_an_opaque_directory_keeps_only_what_the_same_layer_brings(
        self, builder: TreeBuilder, cleared_first: bool
    ) -> None:
        def bring() -> None:
            builder.add(b"etc", folder(0o700))
            builder.add(b"etc/ssl/new", file())
            builder.add(b"etc/own", folder())

        for step in (lambda: builder.clear(b"etc"), bring)[:: 1 if cleared_first else -1]:
            step()
        assert [path for path in built(builder) if path.startswith(b"/etc")] == [
            b"/etc", b"/etc/own", b"/etc/ssl", b"/etc/ssl/new",
        ]  # fmt: skip

    def test_clearing_the_root_leaves_what_is_new(self, builder: TreeBuilder) -> None:
        builder.add(b"new", file())
        builder.clear(b"")
        assert built(builder) == [b"/new"]

    def test_a_file_of_the_same_layer_survives_its_own_whiteout(self, builder: TreeBuilder) -> None:
        builder.add(b"file", file(uid=9))
        builder.remove(b"file")
        found = builder.lookup(b"file")
        assert found is not None
        assert found.uid == 9

    def test_an_upper_directory_takes_the_place_of_a_lower_link(self, builder: TreeBuilder) -> None:
        """So do Docker, containerd and Podman, whose upper layers know nothing of the lower ones."""
        builder.add(b"lib/x.so", file())
        assert [path for path in built(builder) if path.startswith(b"/lib")] == [b"/lib", b"/lib/x.so"]

    def test_a_hard_link_may_lead_to_a_lower_layer(self, builder: TreeBuilder) -> None:
        assert builder.link(b"passwd", b"etc/passwd") is builder.lookup(b"etc/passwd")

    def test_removed_in_one_layer_and_back_in_the_next(self, builder: TreeBuilder) -> None:
        builder.remove(b"etc")
        builder.begin_layer()
        builder.add(b"etc/new", file())
        assert [path for path in built(builder) if path.startswith(b"/etc")] == [b"/etc", b"/etc/new"]

    def test_clearing_again_and_again_looks_through_a_directory_once(self) -> None:
        class Visited(dict[bytes, Inode]):
            visits = 0

            def items(self) -> Any:
                self.visits += 1
                return super().items()

        visited = Visited()
        directory = folder()
        directory.children = visited
        builder = TreeBuilder()
        builder.add(b"d/e/x", file())
        builder.finish().root.children[b"d"].children[b"e"] = directory
        builder.add(b"d/e/fresh", file())
        for _ in range(100):
            for path in (b"", b"d", b"d/e"):
                builder.clear(path)
            builder.remove(b"d/e")
        assert visited.visits == 1


class TestLimits:
    def test_entries(self) -> None:
        builder = TreeBuilder(ArchiveLimits(entries=10))
        for _ in range(10):
            builder.add(b"same", file())
        with pytest.raises(InvalidInput, match="more than 10 entries"):
            builder.add(b"same", file())

    def test_parents_that_are_made_count_as_entries(self) -> None:
        with pytest.raises(InvalidInput, match="more than 10 entries"):
            TreeBuilder(ArchiveLimits(entries=10)).add(b"a/" * 20 + b"b", file())

    def test_links_count_as_entries(self) -> None:
        builder = TreeBuilder(ArchiveLimits(entries=10))
        builder.add(b"a", file())
        for number in range(9):
            builder.link(b"%d" % number, b"a")
        with pytest.raises(InvalidInput, match="more than 10 entries"):
            builder.link(b"one more", b"a")

    def test_metadata(self) -> None:
        builder = TreeBuilder(ArchiveLimits(metadata_bytes=10_000))
        for number in range(9):
            builder.add(b"%d" % number, Inode(stat.S_IFREG, xattrs={b"user.x": bytes(1000)}))
        with pytest.raises(InvalidInput, match="more than 10000 bytes of names"):
            builder.add(b"one more", Inode(stat.S_IFREG, xattrs={b"user.x": bytes(1000)}))

    def test_holes(self) -> None:
        builder = TreeBuilder(ArchiveLimits(logical_bytes=1 << 40))
        builder.add(b"a", file(size_bytes=1 << 40))
        with pytest.raises(InvalidInput, match="holes counted"):
            builder.add(b"b", file(size_bytes=1))


def test_hostile_names_are_shown_harmlessly() -> None:
    assert shown(b"\x1b[2J\n\xff" + "ü".encode()) == "\\x1b[2J\\n\\xffü"


names = st.sampled_from([b"a", b"b", b"c", b".", b"..", b""])
some_paths = st.lists(names, max_size=4).map(b"/".join)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), some_paths, st.sampled_from(["file", "folder", "link"])),
        st.tuples(st.just("link"), some_paths, some_paths),
        st.tuples(st.sampled_from(["remove", "clear"]), some_paths),
        st.tuples(st.just("begin_layer")),
    ),
    max_size=30,
)


@given(steps=steps)
def test_whatever_entries_say_the_tree_is_one(steps: list[tuple[str, ...]]) -> None:
    kinds = {"file": file, "folder": folder, "link": lambda: link(b"../../etc")}
    builder = TreeBuilder()
    for name, *arguments in steps:
        made = [kinds[argument]() if argument in kinds else argument for argument in arguments]
        try:
            getattr(builder, name)(*made)
        except InvalidInput:
            continue
    builder.finish()
