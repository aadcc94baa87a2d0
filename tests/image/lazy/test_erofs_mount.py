"""Mounting an index with its devices: on files and on loop devices, refusals, and what is left behind."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.image.lazy.blob_daemon import wait_until
from tests.image.lazy.small_image import SmallImage, detach_all, needs_root, write_small_image

from glowplug.image.lazy import syscalls
from glowplug.image.lazy.erofs_mount import READ_AHEAD_KB, mount_erofs, mount_erofs_on_loops
from glowplug.image.lazy.in_use import is_open_elsewhere
from glowplug.image.lazy.loop import backing_file, loop_device
from glowplug.image.lazy.mount_table import mounted_at
from glowplug.image.lazy.syscalls import MountRefused
from glowplug.types.errors import Conflict, InvalidInput

pytestmark = needs_root
FILES = {"small": b"some words\n", "large": random.Random(1).randbytes((2 << 20) + 4321), "empty": b""}
MountImage = Callable[[SmallImage], object]


def on_files(image: SmallImage) -> None:
    mount_erofs(image.index, [image.blob], image.target, directio=False)


def on_files_directly(image: SmallImage) -> None:
    assert mount_erofs(image.index, [image.blob], image.target, directio=True)


def on_loops(image: SmallImage) -> None:
    mount_erofs_on_loops(image.index, [image.blob], image.target)


each_way = pytest.mark.parametrize("mount_image", [on_files, on_files_directly, on_loops])


@pytest.fixture
def image(tmp_path: Path) -> Iterator[SmallImage]:
    image = write_small_image(tmp_path, FILES)
    yield image
    detach_all(image.target)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def loops_of(*files: Path) -> list[Path]:
    return [d for d in Path("/sys/block").glob("loop*") if backing_file(Path("/dev", d.name)) in files]


@each_way
def test_what_was_written_is_read_back(image: SmallImage, mount_image: MountImage) -> None:
    mount_image(image)
    assert contents(image.target) == FILES


@each_way
def test_it_is_read_only_and_shows_no_devices(image: SmallImage, mount_image: MountImage) -> None:
    mount_image(image)
    flags = os.statvfs(image.target).f_flag
    assert flags & os.ST_RDONLY
    assert flags & os.ST_NODEV
    assert not flags & os.ST_NOSUID
    with pytest.raises(OSError, match="Read-only file system"):
        (image.target / "new").touch()


@each_way
def test_a_mount_in_use_stays_until_it_is_free(image: SmallImage, mount_image: MountImage) -> None:
    mount_image(image)
    with (image.target / "large").open("rb") as file:
        with pytest.raises(Conflict, match="in use"):
            syscalls.unmount(image.target)
        assert file.read() == FILES["large"]
    assert syscalls.unmount(image.target)
    assert not syscalls.unmount(image.target)


@each_way
def test_who_has_a_file_open_keeps_it_when_the_mount_is_detached(
    image: SmallImage, mount_image: MountImage
) -> None:
    mount_image(image)
    with (image.target / "large").open("rb") as file:
        assert syscalls.detach(image.target)
        assert not (image.target / "large").exists()
        assert file.read() == FILES["large"]
        assert is_open_elsewhere(image.index)
    assert not is_open_elsewhere(image.index)


@each_way
def test_a_copy_of_the_mount_in_another_namespace_shows_in_the_index_file(
    image: SmallImage, mount_image: MountImage
) -> None:
    mount_image(image)
    container = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; read end"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with container:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        assert syscalls.unmount(image.target)
        assert mounted_at(image.target) is None
        assert is_open_elsewhere(image.index)
        container.communicate("end\n", timeout=60)
    wait_until(lambda: not is_open_elsewhere(image.index))  # a namespace ends a moment after its process


def test_loop_devices_go_with_the_mount(image: SmallImage) -> None:
    on_loops(image)
    assert len(loops_of(image.index, image.blob)) == 2
    syscalls.unmount(image.target)
    wait_until(lambda: loops_of(image.index, image.blob) == [])  # who looks at all devices holds them open


def test_no_loop_device_is_left_when_the_kernel_refuses(image: SmallImage) -> None:
    image.index.write_bytes(bytes(8192))
    with pytest.raises(MountRefused):
        on_loops(image)
    wait_until(lambda: loops_of(image.index, image.blob) == [])


def test_a_loop_device_shows_the_files_bytes_and_refuses_writes(image: SmallImage) -> None:
    with loop_device(image.blob) as device:
        assert backing_file(device) == image.blob
        assert device.read_bytes() == image.blob.read_bytes()
        with pytest.raises(PermissionError), device.open("r+b", buffering=0) as file:
            file.write(b"x")


def test_many_threads_get_loop_devices_of_their_own(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(12)]
    for file in files:
        file.write_bytes(file.name.encode() * 4096)

    def first_byte(file: Path) -> bytes:
        with loop_device(file) as device:
            return device.read_bytes()[: len(file.name)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(first_byte, files)) == [file.name.encode() for file in files]
    wait_until(lambda: loops_of(*files) == [])


@pytest.mark.parametrize("mount_image", [on_files, on_loops])
@pytest.mark.parametrize("damage", ["not an image", "cut off", "no device"])
def test_a_refusal_says_why_and_leaves_nothing(
    image: SmallImage, mount_image: MountImage, damage: str
) -> None:
    if damage == "not an image":
        image.index.write_bytes(os.urandom(16384))
    elif damage == "cut off":
        image.index.write_bytes(image.index.read_bytes()[:512])
    else:
        image.blob.unlink()
    with pytest.raises(MountRefused) as refused:
        mount_image(image)
    assert isinstance(refused.value.details["errno"], int)
    assert mounted_at(image.target) is None
    assert not is_open_elsewhere(image.index)


def test_the_kernels_own_words_are_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(MountRefused, match="no-such-option"):
        syscalls.mount("tmpfs", [syscalls.Option("no-such-option")], tmp_path)


def test_a_filesystem_that_the_kernel_lacks(tmp_path: Path) -> None:
    with pytest.raises(MountRefused) as refused:
        syscalls.mount("nosuchfs", [], tmp_path)
    assert refused.value.details["errno"] == errno.ENODEV


def test_a_path_that_the_kernel_would_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="shorter state directory"):
        syscalls.mount("erofs", [syscalls.Option("source", "/" + "x" * 255)], tmp_path)


def test_a_link_as_target_is_not_followed(image: SmallImage, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(image.target)
    with pytest.raises(MountRefused):
        mount_erofs(image.index, [image.blob], link, directio=False)
    assert mounted_at(image.target) is None


def test_more_devices_than_an_option_string_could_name(tmp_path: Path) -> None:
    """The limit of mount(2) is one page, about 117 devices."""
    from glowplug.image.index.relocate import relocate

    files = {f"file-{number:03d}": number.to_bytes(2, "big") * 100 for number in range(300)}
    image = write_small_image(tmp_path, files)
    pack_of = {index: index for index in range(len(image.table))}
    packs = []
    for index in pack_of:
        pack = tmp_path / f"pack-{index:08d}"
        start = image.table.offset(index)
        pack.write_bytes(image.blob.read_bytes()[start : start + 4096])
        packs.append(pack)
    moved = relocate(
        image.index.read_bytes(), lambda index: (index, 0), image.table, dict.fromkeys(pack_of, 1)
    )
    image.index.write_bytes(moved)
    try:
        mount_erofs(image.index, packs, image.target, directio=True)
        assert contents(image.target) == files
    finally:
        detach_all(image.target)


def test_read_ahead_is_one_chunk(image: SmallImage) -> None:
    made: set[Path] = set()
    while len(made) != 1:  # the kernel does not say which is ours: somebody else mounted one, too
        detach_all(image.target)
        before = set(Path("/sys/class/bdi").glob("erofs-*"))
        on_files(image)
        made = set(Path("/sys/class/bdi").glob("erofs-*")) - before
    (ours,) = made
    assert int((ours / "read_ahead_kb").read_text()) == READ_AHEAD_KB
