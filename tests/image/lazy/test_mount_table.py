"""What the kernel says is mounted, and whether a file is open anywhere."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.image.lazy.small_image import detach_all, needs_root

from glowplug.image.lazy.in_use import is_open_elsewhere
from glowplug.image.lazy.mount_table import MountEntry, mounted_at, read_mount_table


def test_odd_characters_of_paths_are_read_back(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        rb"36 35 98:0 / /mnt/a\040b\011c\134d ro,relatime shared:1 master:2 - erofs /a\040b ro" + b"\n"
        b"37 35 0:40 / /mnt/\xff rw - tmpfs none rw\n"
    )
    assert read_mount_table(table) == [
        MountEntry(Path("/mnt/a b\tc\\d"), "98:0", "erofs", "/a b"),
        MountEntry(Path(os.fsdecode(b"/mnt/\xff")), "0:40", "tmpfs", "none"),
    ]


def test_lines_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(b"\n1 2\n1 2 3 4 5 6 -\n- - - - - - - - -\n1 2 0:1 / /x rw - tmpfs none rw\n")
    assert [entry.path for entry in read_mount_table(table)] == [Path("/x")]


@needs_root
def test_the_topmost_mount_counts(tmp_path: Path) -> None:
    assert mounted_at(tmp_path) is None
    try:
        for name in ("lower", "upper"):
            subprocess.run(["mount", "-t", "tmpfs", name, tmp_path], check=True, timeout=60)
        entry = mounted_at(tmp_path)
        assert entry is not None
        assert (entry.source, entry.kind) == ("upper", "tmpfs")
    finally:
        detach_all(tmp_path)


def test_a_file_that_nobody_has_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    assert not is_open_elsewhere(file)
    assert not is_open_elsewhere(tmp_path / "missing")


def test_a_file_that_is_open_mapped_or_a_programs(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 5000)
    with file.open("rb") as reader:
        assert is_open_elsewhere(file)
        mapped = mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ)
    assert is_open_elsewhere(file)
    mapped.close()
    assert not is_open_elsewhere(file)


def test_another_link_of_an_open_file_is_open_too(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    os.link(file, link)
    with file.open("rb"):
        file.unlink()
        assert is_open_elsewhere(link)
    assert not is_open_elsewhere(link)


def test_what_cannot_be_told_counts_as_open(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("file")
    (tmp_path / "file").touch()
    assert is_open_elsewhere(link)


def test_asking_while_others_open_the_file_harms_neither(tmp_path: Path) -> None:
    """The kernel tells the holder of a lease by a signal that would end most processes."""
    file = tmp_path / "file"
    file.touch()
    program = (
        "import pathlib, sys\n"
        "from glowplug.image.lazy.in_use import is_open_elsewhere\n"
        "for _ in range(3000): is_open_elsewhere(pathlib.Path(sys.argv[1]))\n"
    )
    asking = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program, file])
    ended = threading.Event()

    def open_again_and_again() -> None:
        while not ended.is_set():
            file.read_bytes()

    opener = threading.Thread(target=open_again_and_again)
    opener.start()
    try:
        assert asking.wait(timeout=240) == 0
        assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    finally:
        ended.set()
        opener.join()
        asking.kill()
        asking.wait()
