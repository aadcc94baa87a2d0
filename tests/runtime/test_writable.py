"""The writable layer of a container of runc: really mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.sandboxes import failure

from glowplug.runtime.writable import WritableFolders, unmount_below
from glowplug.types.errors import RuntimeFailed, SystemUnfit

pytestmark = pytest.mark.sandbox
LIMIT_BYTES = 16 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base, with: odd\\characters"
    (base / "etc").mkdir(parents=True)
    (base / "etc/name").write_text("original")
    (base / "etc/gone").write_text("x")
    return base


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = tmp_path / "a place"
    yield place
    unmount_below(place)
    assert str(tmp_path.name) not in Path("/proc/self/mountinfo").read_text()


def _made(folder: Path, base: Path) -> WritableFolders:
    made = WritableFolders(folder)
    made.mount(base, LIMIT_BYTES)
    return made


def test_what_is_written_stays_off_the_base_and_comes_back_from_the_archive(
    base: Path, place: Path, tmp_path: Path
) -> None:
    first = _made(place / "first", base)
    (first.root / "etc/name").write_text("changed")
    (first.root / "etc/gone").unlink()
    (first.root / "new").symlink_to("etc/name")
    with (first.binds["/dev/shm"] / "sparse").open("wb") as file:
        file.truncate(LIMIT_BYTES // 2)
        file.write(b"start")
    os.setxattr(first.binds["/tmp"], "user.mark", b"kept")
    os.mkfifo(first.binds["/tmp"] / "fifo", 0o640)
    first.save(tmp_path / "files.tar")
    assert (tmp_path / "files.tar").stat().st_size < 100_000, "holes stay holes"

    second = _made(place / "second", base)
    second.load(tmp_path / "files.tar")
    assert (second.root / "new").read_text() == "changed"
    assert not (second.root / "etc/gone").exists()
    assert (second.binds["/dev/shm"] / "sparse").read_bytes()[:6] == b"start\0"
    assert os.getxattr(second.binds["/tmp"], "user.mark") == b"kept"
    assert (second.binds["/tmp"] / "fifo").is_fifo()
    assert (second.binds["/tmp"]).stat().st_mode & 0o7777 == 0o1777
    assert (base / "etc/name").read_text() == "original"
    assert (base / "etc/gone").exists()


def test_it_takes_no_more_than_its_limit(base: Path, place: Path) -> None:
    made = _made(place, base)
    with pytest.raises(OSError, match="No space left"):
        (made.root / "big").write_bytes(bytes(LIMIT_BYTES + 1))


def test_unmounting_is_complete_and_may_be_repeated(base: Path, place: Path) -> None:
    made = _made(place, base)
    with (made.root / "etc/name").open():
        unmount_below(place)
    unmount_below(place)
    assert list(made.root.iterdir()) == []


def test_a_base_that_is_not_there_leaves_nothing_mounted(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _made(place, place / "absent")
    assert not (place / "memory").is_mount()


def test_a_file_for_a_base_is_an_error_and_leaves_nothing_mounted(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemUnfit, match="Not a directory"):
        _made(place, tmp_path / "file")
    assert not (place / "memory").is_mount()


def test_an_archive_that_is_damaged_is_a_typed_error_of_one_line(
    base: Path, place: Path, tmp_path: Path
) -> None:
    made = _made(place, base)
    (tmp_path / "files.tar").write_bytes(os.urandom(20_000))
    error = failure(lambda: made.load(tmp_path / "files.tar"))
    assert isinstance(error, RuntimeFailed)
    assert "\n" not in error.message
