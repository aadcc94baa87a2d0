from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.image.index.nasty_folder import make_nasty_folder
from tests.image.index.real_tree import read_folder
from tests.image.index.trees import describe
from tests.image.origin.origin_kit import OpenStore, a_job, at, paths, read

from glowplug.chunks.chunk import CHUNK_BYTES
from glowplug.image.index.tree import Extent
from glowplug.image.job import Job
from glowplug.image.origin.folder import FolderOrigin
from glowplug.image.origin.folder_read import FolderReader
from glowplug.image.origin.folder_scan import FolderScan, FoundFile
from glowplug.image.origin.sink import ChunkSink
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Conflict, DeadlineExceeded, InvalidInput, Unavailable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these files")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@needs_root
def test_everything_that_a_root_filesystem_holds_survives(tmp_path: Path) -> None:
    make_nasty_folder(tmp_path / "nasty")
    tree, store = read(FolderOrigin(tmp_path / "nasty"))
    expected, chunks = read_folder(tmp_path / "nasty")
    assert describe(tree) == describe(expected)
    assert store.bodies == chunks


def test_two_readings_give_one_tree(folder: Path) -> None:
    for number in range(50):
        (folder / str(number)).mkdir()
        (folder / str(number) / "file").write_text(str(number))
    assert describe(read(FolderOrigin(folder))[0]) == describe(read(FolderOrigin(folder, workers=7))[0])


def test_links_are_kept_and_never_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (folder / "to outside").symlink_to(tmp_path / "outside")
    (folder / "upwards").symlink_to("..")
    tree, store = read(FolderOrigin(folder))
    assert paths(tree) == [b"/to outside", b"/upwards"]
    assert not store.bodies


def test_the_folder_itself_may_be_named_by_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "file").write_text("x")
    (tmp_path / "link").symlink_to(folder)
    assert paths(read(FolderOrigin(tmp_path / "link"))[0]) == [b"/file"]


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match=name):
        read(FolderOrigin(tmp_path / name))


def test_hard_links_are_read_once_and_shared(folder: Path) -> None:
    (folder / "a").write_text("content")
    os.link(folder / "a", folder / "b")
    tree, store = read(FolderOrigin(folder))
    assert at(tree, b"/a") is at(tree, b"/b")
    assert len(store.put_chunks) == 1


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        (["*.pyc"], [b"/cache", b"/cache/big", b"/src", b"/src/a.py"]),
        (["cache"], [b"/src", b"/src/a.py", b"/src/a.pyc"]),
        (["src/*"], [b"/cache", b"/cache/a.pyc", b"/cache/big", b"/src"]),
        (["/cache/big", "a.py"], [b"/cache", b"/cache/a.pyc", b"/src", b"/src/a.pyc"]),
    ],
)
def test_excluded_names_and_paths_are_left_out(
    folder: Path, exclude: Sequence[str], kept: list[bytes]
) -> None:
    for path in ("src/a.py", "src/a.pyc", "cache/a.pyc", "cache/big"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(path)
    assert paths(read(FolderOrigin(folder, exclude=exclude))[0]) == kept


@needs_root
@pytest.mark.parametrize(("one_filesystem", "kept"), [(True, [b"/mnt"]), (False, [b"/mnt", b"/mnt/file"])])
def test_mount_points_stay_empty_on_request(folder: Path, one_filesystem: bool, kept: list[bytes]) -> None:
    (folder / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder / "mnt"], check=True, timeout=60)
    try:
        (folder / "mnt" / "file").write_text("elsewhere")
        assert paths(read(FolderOrigin(folder, one_filesystem=one_filesystem))[0]) == kept
    finally:
        subprocess.run(["umount", "-l", folder / "mnt"], check=True, timeout=60)


def test_a_directory_of_100_000_entries(folder: Path) -> None:
    parent = os.open(folder, os.O_RDONLY)
    for number in range(100_000):
        os.symlink(b"x", b"%d" % number, dir_fd=parent)
    os.close(parent)
    tree, _ = read(FolderOrigin(folder))
    assert len(tree.root.children) == 100_000


def test_a_deep_folder_whose_paths_the_kernel_would_not_take(folder: Path) -> None:
    """The tree refuses it in the end, by name; nothing breaks on the way."""
    parent = os.open(folder, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"d" * 200, dir_fd=parent)
        below = os.open(b"d" * 200, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = below
    os.close(parent)
    with pytest.raises(InvalidInput, match="longer than 4096 bytes"):
        read(FolderOrigin(folder))
    subprocess.run(["rm", "-rf", folder], check=True, timeout=60)


def test_a_large_sparse_file_is_read_where_it_has_data(folder: Path) -> None:
    with (folder / "sparse").open("wb") as file:
        file.truncate(5 << 30)
        for offset in (0, 3 * CHUNK_BYTES + 4096, (5 << 30) - 1):
            file.seek(offset)
            file.write(b"x")
    tree, store = read(FolderOrigin(folder))
    inode = at(tree, b"/sparse")
    assert [extent.offset // CHUNK_BYTES for extent in inode.extents] == [0, 3, 5119]
    assert store.bodies[inode.extents[1].chunks[0].id] == bytes(4096) + b"x" + bytes(CHUNK_BYTES - 4097)


@needs_root
def test_what_may_not_be_read_is_named(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "private").write_text("x")
    (folder / "private").chmod(0o600)
    assert as_nobody(folder).startswith("InvalidInput private cannot be read: Permission denied.")
    (folder / "private").unlink()
    (folder / "closed").mkdir(mode=0o700)
    assert as_nobody(folder).startswith("InvalidInput closed cannot be read: Permission denied.")


def as_nobody(folder: Path) -> str:
    """What a user without rights gets from reading ``folder``; its parents are passed by a descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        message = "nothing was raised"
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            read(FolderOrigin(Path(f"/proc/self/fd/{descriptor}")))
        except BaseException as error:
            message = f"{type(error).__name__} {error}"
        os.write(writing, message.encode())
        os._exit(0)
    os.close(writing)
    os.close(descriptor)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    return message


class Meddler(ChunkSink):
    """Writes to a file each time that it is read, for so many times."""

    def __init__(self, store: OpenStore, path: Path, times: int) -> None:
        super().__init__(store)
        self.path = path
        self.times = times

    def add_file(
        self, descriptor: int, size_bytes: int, data_ranges: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Extent, ...]:
        extents = super().add_file(descriptor, size_bytes, data_ranges)
        if self.times:
            self.times -= 1
            with self.path.open("ab") as file:
                file.write(b"more")
        return extents


@pytest.mark.parametrize("sparse", [False, True])
def test_a_file_that_changes_while_it_is_read_is_read_again(folder: Path, sparse: bool) -> None:
    path = folder / "growing"
    path.write_bytes(os.urandom(2 * CHUNK_BYTES))
    if sparse:
        os.truncate(path, 4 * CHUNK_BYTES)
    store = OpenStore()
    with Meddler(store, path, times=3) as sink:
        tree, _ = FolderOrigin(folder).read(sink, a_job())
    inode = at(tree, b"/growing")
    assert store.content(inode) == path.read_bytes()
    assert inode.mtime_ns == path.stat().st_mtime_ns


def test_a_file_that_never_stops_changing_is_refused(folder: Path) -> None:
    path = folder / "growing"
    path.write_bytes(os.urandom(2 * CHUNK_BYTES))
    with (
        Meddler(OpenStore(), path, times=1000) as sink,
        pytest.raises(Conflict, match="growing keeps changing"),
    ):
        FolderOrigin(folder).read(sink, a_job())


@contextmanager
def between_scan_and_reading(monkeypatch: pytest.MonkeyPatch, meddle: object) -> Iterator[None]:
    plain = FolderReader.read

    def read_after(self: FolderReader, files: Sequence[FoundFile], workers: int) -> None:
        meddle()  # type: ignore[operator]
        plain(self, files, workers)

    with monkeypatch.context() as patched:
        patched.setattr(FolderReader, "read", read_after)
        yield


def test_a_file_that_changed_after_it_was_found_is_taken_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "file"
    path.write_text("old")

    def meddle() -> None:
        path.write_text("newer and longer")
        path.chmod(0o755)
        os.utime(path, ns=(5, 5))

    with between_scan_and_reading(monkeypatch, meddle):
        tree, store = read(FolderOrigin(folder))
    inode = at(tree, b"/file")
    assert store.content(inode) == b"newer and longer"
    assert (stat.S_IMODE(inode.mode), inode.mtime_ns) == (0o755, 5)


def test_a_small_file_that_grew_large_is_read_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "file"
    path.write_text("small")
    content = os.urandom(CHUNK_BYTES + 1)
    with between_scan_and_reading(monkeypatch, lambda: path.write_bytes(content)):
        tree, store = read(FolderOrigin(folder))
    assert store.content(at(tree, b"/file")) == content


def test_a_replaced_file_with_other_names_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other name still means the old content, and the two are one in the tree."""
    (folder / "a").write_text("old")
    os.link(folder / "a", folder / "b")

    def meddle() -> None:
        for name in ("a", "b"):
            (folder / "new").write_text(name)
            (folder / "new").rename(folder / name)

    with between_scan_and_reading(monkeypatch, meddle), pytest.raises(Conflict, match="keeps changing"):
        read(FolderOrigin(folder))


@pytest.mark.parametrize("become", ["link", "fifo", "directory", "socket", "nothing"])
def test_a_file_that_becomes_something_else_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, become: str
) -> None:
    (tmp_path / "secret").write_text("secret")
    path = folder / "file"
    path.write_text("harmless")

    def meddle() -> None:
        path.unlink()
        if become == "link":
            path.symlink_to(tmp_path / "secret")
        elif become == "fifo":
            os.mkfifo(path)
        elif become == "directory":
            path.mkdir()
        elif become == "socket":
            monkeypatch.chdir(folder)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("file")

    with between_scan_and_reading(monkeypatch, meddle), pytest.raises(Conflict, match="file keeps changing"):
        read(FolderOrigin(folder))


def test_a_directory_swapped_for_a_link_is_not_followed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "file").write_text("secret")
    (folder / "below").mkdir()
    (folder / "below" / "file").write_text("harmless")

    def meddle() -> None:
        (folder / "below").rename(tmp_path / "away")
        (folder / "below").symlink_to(tmp_path / "secrets")

    store = OpenStore()
    with between_scan_and_reading(monkeypatch, meddle), pytest.raises(Conflict, match="below keeps changing"):
        read(FolderOrigin(folder), store)
    assert not store.bodies


def test_a_file_removed_while_the_folder_is_listed_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "here"):
        (folder / name).write_text(name)
    plain = FolderScan._add

    def add(self: FolderScan, *arguments: object) -> None:
        (folder / "gone").unlink(missing_ok=True)
        plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FolderScan, "_add", add)
    assert paths(read(FolderOrigin(folder))[0]) == [b"/here"]


def test_an_import_ends_when_it_is_cancelled_or_out_of_time(folder: Path) -> None:
    (folder / "file").write_text("x")
    job = a_job()
    job.cancelled.set()
    with pytest.raises(Unavailable):
        read(FolderOrigin(folder), job=job)
    clock = ManualClock()
    with pytest.raises(DeadlineExceeded):
        read(FolderOrigin(folder), job=Job(lambda _text, _fraction: None, clock, clock.monotonic() - 1))
