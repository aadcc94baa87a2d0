"""One mount per image and node: made once, kept, improved, given up, and never the wrong bytes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.image.lazy.blob_daemon import wait_until
from tests.image.lazy.node import MountingNode, contents, make_files, start_container
from tests.image.lazy.small_image import detach_all, needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy import mounter as module
from glowplug.image.lazy import syscalls
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.mounter import LazyMounts, MountSettings
from glowplug.image.lazy.probe import MountSupport, Trial
from glowplug.image.lazy.starts import LazyStarts
from glowplug.image.lazy.syscalls import MountRefused
from glowplug.types.errors import Conflict, InvalidInput, NotFound, SystemUnfit
from glowplug.types.paths import StateDir

pytestmark = needs_root
WAYS = ("lazy", "loop", "plain_fuse")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("mounter") / "original")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountingNode]:
    """One node, so one daemon, for all tests that leave it as it was."""
    node = MountingNode(tmp_path_factory.mktemp("node"))
    yield node
    node.close()


@pytest.fixture
def node(shared: MountingNode) -> Iterator[MountingNode]:
    yield shared
    shared.unmount_everything()

    def is_nothing_held() -> bool:
        """Processes behind plain mounts, and namespaces, end a moment later."""
        shared.mounts().sweep()
        return shared.ssd.pins() == [] and list((shared.state.lazy / "held").iterdir()) == []

    wait_until(is_nothing_held)


@pytest.fixture
def folder(node: MountingNode, original: Path) -> Iterator[IndexFolder]:
    folder = node.add_image(original)
    yield folder
    folder.graduated_record_path.unlink(missing_ok=True)


def test_an_image_is_mounted_once_and_stays(node: MountingNode, folder: IndexFolder, original: Path) -> None:
    first = node.mounts().mount(folder.digest)
    assert (first.kind, first.is_new) == ("lazy", True)
    assert contents(first.path) == contents(original)
    again = node.mounts().mount(folder.digest)  # as after a restart of the agent
    assert (again.path, again.kind, again.is_new) == (first.path, "lazy", False)
    assert len(node.entries(folder.digest)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_every_way_mounts_unmounts_and_lets_go(
    node: MountingNode,
    folder: IndexFolder,
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: module.Way,
) -> None:
    monkeypatch.setattr(module, "_SERVER_ENDS_S", 60.0)
    mounts = node.mounts(way)
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == way
    assert contents(mounted.path) == contents(original)
    assert [(m.digest, m.kind) for m in mounts.mounted()] == [(folder.digest, way)]
    assert node.ssd.pins() == [f"mount:{folder.digest}"]
    mounts.unmount(folder.digest)
    assert mounts.mounted() == []
    assert node.ssd.pins() == []
    assert not mounted.path.exists()
    mounts.unmount(folder.digest)


def test_only_who_may_enter_the_state_directory_reaches_it(node: MountingNode, folder: IndexFolder) -> None:
    mounted = node.mounts().mount(folder.digest)
    parents = [p for p in mounted.path.parents if p.is_relative_to(node.state.root)]
    assert any(p.stat().st_mode & 0o077 == 0 for p in parents)


def test_a_complete_image_is_mounted_from_its_packs(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()
    assert mounts.graduate(folder.digest)
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == "graduated"
    assert contents(mounted.path) == contents(original)
    again = mounts.mount(folder.digest)
    assert (again.path, again.kind, again.is_new) == (mounted.path, "graduated", False)
    assert node.ssd.pins() == [f"mount:{folder.digest}"]


def test_reads_can_be_had_watched_although_the_image_is_complete(
    node: MountingNode, folder: IndexFolder
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    assert mounts.mount(folder.digest, direct=False).kind == "lazy"
    assert mounts.mount(folder.digest, direct=False).kind == "lazy"
    assert mounts.mount(folder.digest).kind == "graduated"
    assert mounts.mount(folder.digest, direct=False).kind == "graduated"


def test_a_mount_in_use_is_not_replaced_by_a_better_one(node: MountingNode, folder: IndexFolder) -> None:
    mounts = node.mounts()
    path = mounts.mount(folder.digest).path
    mounts.graduate(folder.digest)
    with (path / "large").open("rb"):
        assert mounts.mount(folder.digest).kind == "lazy"
    assert mounts.mount(folder.digest).kind == "graduated"
    assert len(node.entries(folder.digest)) == 1


def test_twenty_threads_make_one_mount(node: MountingNode, folder: IndexFolder) -> None:
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: node.mounts().mount(folder.digest), range(20)))
    assert [mounted.is_new for mounted in found].count(True) == 1
    assert len({mounted.path for mounted in found}) == 1
    assert len(node.entries(folder.digest)) == 1


def test_mounting_and_unmounting_at_once_ends_in_one_of_both(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()

    def act(turn: int) -> None:
        if turn % 2:
            mounts.mount(folder.digest)
        else:
            mounts.unmount(folder.digest)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(40)))
    is_mounted = bool(node.entries(folder.digest))
    assert (node.ssd.pins() != []) == is_mounted
    assert contents(mounts.mount(folder.digest).path) == contents(original)


def test_an_unmount_waits_for_nobody_and_takes_nothing_from_anybody(
    node: MountingNode, folder: IndexFolder
) -> None:
    mounts = node.mounts()
    path = mounts.mount(folder.digest).path
    with (path / "large").open("rb") as file:
        with pytest.raises(Conflict, match="in use"):
            mounts.unmount(folder.digest)
        assert file.read(1)
    assert len(node.entries(folder.digest)) == 1


@pytest.mark.parametrize("kind", ["graduated", *WAYS])
def test_a_container_keeps_its_copy_and_the_pin_until_it_ends(
    node: MountingNode, folder: IndexFolder, kind: str
) -> None:
    mounts = node.mounts(None if kind == "graduated" else kind)  # type: ignore[arg-type]
    mounts.graduate(folder.digest)
    path = mounts.mount(folder.digest).path
    container = start_container(path)
    try:
        mounts.unmount(folder.digest)
        assert mounts.mounted() == []
        assert mounts.sweep().released == []
        assert node.ssd.pins() == [f"mount:{folder.digest}"]
        node.ssd.prune(0)
        output, _ = container.communicate(b"large\n", timeout=60)
    finally:
        container.kill()
    assert output.split()[0].decode() == hashlib.sha256(node.read_stored(folder, "large")).hexdigest()
    # A mount namespace, and the process behind a plain mount, end a moment after the container.
    wait_until(lambda: mounts.sweep().released == [folder.digest])
    assert node.ssd.pins() == []


def test_an_image_that_is_removed_while_it_is_mounted_reads_on(
    node: MountingNode, folder: IndexFolder, original: Path
) -> None:
    mounts = node.mounts()
    path = mounts.mount(folder.digest).path
    (path / "small-1").read_bytes()
    node.catalog.remove(folder.digest)
    with pytest.raises(NotFound):
        mounts.mount(folder.digest)
    node.kill_worker()
    assert contents(path) == contents(original)
    mounts.unmount(folder.digest)
    assert node.ssd.pins() == []


def test_many_images_at_once(node: MountingNode, tmp_path: Path) -> None:
    folders = [node.add_image(make_files(tmp_path / str(n), seed=100 + n)) for n in range(20)]
    mounts = node.mounts()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda folder: mounts.mount(folder.digest), folders))
    for number, mounted in enumerate(found):
        assert contents(mounted.path) == contents(tmp_path / str(number))
    assert {m.digest for m in mounts.mounted()} == {folder.digest for folder in folders}


@pytest.mark.parametrize("digest", ["", "../../etc", "f" * 63, "F" * 64, "f" * 64 + "/..", "\0" * 64])
def test_what_is_no_digest_is_no_path(node: MountingNode, digest: str) -> None:
    mounts = node.mounts()
    for act in (mounts.mount, mounts.unmount, mounts.graduate):
        with pytest.raises((InvalidInput, NotFound)):
            act(digest)


def test_an_image_that_is_not_here(node: MountingNode) -> None:
    with pytest.raises(NotFound):
        node.mounts().mount("f" * 64)
    assert node.mounts().mounted() == []


@pytest.mark.parametrize("name", ["index.erofs", "chunks.bin"])
def test_a_damaged_index_is_not_mounted(node: MountingNode, folder: IndexFolder, name: str) -> None:
    file = folder.path / name
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        with pytest.raises(InvalidInput, match="damaged"):
            node.mounts().mount(folder.digest)
        assert node.mounts().mounted() == []
        assert node.ssd.pins() == []
    finally:
        file.write_bytes(good)
    assert node.mounts().mount(folder.digest).is_new


@pytest.mark.parametrize("name", ["graduated.erofs", "gathered.erofs"])
def test_a_damaged_graduated_index_is_not_used(
    node: MountingNode, folder: IndexFolder, original: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    file = folder.path / name
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == "lazy"
    assert contents(mounted.path) == contents(original)
    assert "not mounted from local packs" in caplog.text


def test_something_foreign_at_the_mount_point_is_left_alone(node: MountingNode, folder: IndexFolder) -> None:
    target = node.state.lazy / "mounts" / folder.digest
    target.mkdir(parents=True)
    syscalls.mount("tmpfs", [syscalls.Option("source", "foreign")], target)
    for act in (node.mounts().mount, node.mounts().unmount):
        with pytest.raises(Conflict, match="none of ours"):
            act(folder.digest)
    assert node.mounts().sweep().detached == []
    entry = mounted_at(target)
    assert entry is not None
    assert entry.source == "foreign"


def refuse(*_arguments: object, **_options: object) -> bool:
    raise MountRefused("not today.", errno=None)


def test_the_next_way_is_taken_and_the_refusal_logged(
    node: MountingNode,
    folder: IndexFolder,
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "mount_erofs", refuse)
    with caplog.at_level(logging.WARNING):
        mounted = node.mounts().mount(folder.digest)
    assert mounted.kind == "loop"
    assert "cannot be mounted as lazy: not today." in caplog.text
    assert contents(mounted.path) == contents(original)


@pytest.mark.parametrize("is_in_use", [False, True])
def test_wrong_bytes_that_were_read_are_read_anew(
    node: MountingNode, folder: IndexFolder, original: Path, is_in_use: bool
) -> None:
    mounts = node.mounts("lazy")
    starts = LazyStarts(mounts, node.catalog, node.daemon, lambda _timeout_s: node.daemon())
    large = mounts.mount(folder.digest).path / "large"
    assert large.read_bytes() == (original / "large").read_bytes()
    damage_on_disk(node, folder, b"large")
    assert large.read_bytes() != (original / "large").read_bytes(), "what was verified is not hashed again"
    node.ssd.verify(only=folder.table())
    if not is_in_use:
        mounts.unmount(folder.digest)
    starts.read_anew(folder.digest)
    assert mounts.mount(folder.digest).is_new is not is_in_use
    with pytest.raises(OSError, match="Input/output error"):
        large.read_bytes()
    node.add_image(original)
    assert large.read_bytes() == (original / "large").read_bytes()


def damage_on_disk(node: MountingNode, folder: IndexFolder, name: bytes) -> None:
    """A bit in the middle of a file has flipped, and nobody has its pages cached."""
    inode = folder.tree().lookup(name)
    assert inode is not None
    chunks = [chunk for extent in inode.extents for chunk in extent.chunks]
    location = node.ssd.locate(chunks[len(chunks) // 2])
    assert location is not None
    with node.ssd.pack_path(location.pack).open("r+b") as pack:
        pack.seek(location.offset)
        byte = pack.read(1)[0]
        pack.seek(location.offset)
        pack.write(bytes([byte ^ 0x10]))
    Path("/proc/sys/vm/drop_caches").write_text("1")


@pytest.mark.parametrize("has_graduated", [False, True])
def test_packs_are_not_mounted_on_loop_devices_where_the_kernel_reads_on_in_the_wrong_one(
    node: MountingNode,
    folder: IndexFolder,
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_graduated: bool,
) -> None:
    if has_graduated:  # with another kernel
        assert node.mounts().graduate(folder.digest)
    trials = [Trial(way="lazy", refusal="too old"), Trial(way="loop"), Trial(way="plain_fuse")]
    monkeypatch.setattr(module, "mount_support", lambda _state: MountSupport(trials=trials))
    mounts = node.mounts()
    assert not mounts.graduate(folder.digest)
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == "loop"
    assert mounts.mount(folder.digest).is_new is False
    entry = mounted_at(mounted.path)
    assert entry is not None
    assert entry.source.startswith("/dev/loop")
    assert contents(mounted.path) == contents(original)


def test_an_image_graduates_anew_where_its_small_files_can_no_longer_be_gathered(
    node: MountingNode, folder: IndexFolder, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = node.mounts()
    mounts.graduate(folder.digest)
    trials = [Trial(way="lazy"), Trial(way="loop"), Trial(way="plain_fuse")]
    monkeypatch.setattr(module, "mount_support", lambda _state: MountSupport(trials=trials))
    assert mounts.mount(folder.digest).kind == "lazy"
    assert mounts.graduate(folder.digest)
    mounted = mounts.mount(folder.digest)
    assert mounted.kind == "graduated"
    assert contents(mounted.path) == contents(original)


def test_where_no_way_works_the_reasons_are_told(
    node: MountingNode, folder: IndexFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mount_erofs", "mount_erofs_on_loops", "mount_plain"):
        monkeypatch.setattr(module, name, refuse)
    with pytest.raises(SystemUnfit, match=r"lazy: not today.*loop: not today.*plain_fuse: not today"):
        node.mounts().mount(folder.digest)
    assert node.ssd.pins() == []


def test_a_state_directory_behind_a_link(node: MountingNode, folder: IndexFolder, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(node.state.root)
    mounts = LazyMounts(StateDir(link), node.ssd, node.catalog, node.daemon)
    assert mounts.mount(folder.digest).is_new
    assert not mounts.mount(folder.digest).is_new
    assert not node.mounts().mount(folder.digest).is_new


def test_an_image_shown_at_a_second_place_stays_pinned(
    node: MountingNode, folder: IndexFolder, original: Path, tmp_path: Path
) -> None:
    mounts = node.mounts()
    target = tmp_path / "shown"
    target.mkdir()
    syscalls.bind(mounts.mount(folder.digest).path, target)
    try:
        mounts.unmount(folder.digest)
        assert node.ssd.pins() == [f"mount:{folder.digest}"]
        assert contents(target) == contents(original)
    finally:
        detach_all(target)
    wait_until(lambda: mounts.sweep().released == [folder.digest])


@pytest.mark.parametrize("way", WAYS)
def test_the_environment_can_force_a_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOWPLUG_MOUNT", way)
    assert MountSettings.from_environment().forced == way


def test_a_way_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOWPLUG_MOUNT", "teleport")
    with pytest.raises(InvalidInput, match="lazy, loop, plain_fuse"):
        MountSettings.from_environment()
    monkeypatch.setenv("GLOWPLUG_MOUNT", "")
    assert MountSettings.from_environment() == MountSettings()
