from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glowplug.image import overlay
from glowplug.image.mount import Bind, ImageMounter, Mounter, RootFilesystem
from glowplug.image.store import ImageStore
from glowplug.types.errors import InvalidInput, NotFound
from glowplug.types.spec import DirectoryImage, HostPythonImage, ImageSpec

from .conftest import names, quiet

NewMounter = Callable[[], ImageMounter]

MOUNT_BUDGET_S = 0.005
TRIES = 300  # most of them may have to wait for a busy machine


@pytest.fixture(params=["directory", "host_python"])
def image_id(request: pytest.FixtureRequest, store: ImageStore, tree: Path, venv: Path) -> str:
    specs: dict[str, ImageSpec] = {
        "directory": DirectoryImage(path=str(tree)),
        "host_python": HostPythonImage(venv=str(venv)),
    }
    return store.ensure(specs[request.param], quiet).id


def test_mounting_twice_gives_the_same(mounter: Mounter, image_id: str) -> None:
    assert mounter.mount(image_id) == mounter.mount(image_id)


def test_another_process_sees_the_same_mount(new_mounter: NewMounter, image_id: str) -> None:
    assert new_mounter().mount(image_id) == new_mounter().mount(image_id)


def test_a_known_image_is_mounted_within_the_budget(mounter: Mounter, image_id: str) -> None:
    mounter.mount(image_id)
    assert any(mount_s(mounter, image_id) < MOUNT_BUDGET_S for _ in range(TRIES))


def test_the_first_mount_is_within_the_budget_too(mounter: Mounter, image_id: str) -> None:
    def first_s() -> float:
        took_s = mount_s(mounter, image_id)
        mounter.unmount(image_id)
        return took_s

    assert any(first_s() < MOUNT_BUDGET_S for _ in range(TRIES))


def mount_s(mounter: Mounter, image_id: str) -> float:
    begin_s = time.perf_counter()
    mounter.mount(image_id)
    return time.perf_counter() - begin_s


def test_mounts_at_once_end_in_one_mount(new_mounter: NewMounter, image_id: str) -> None:
    barrier = threading.Barrier(8)

    def mount(_number: int) -> RootFilesystem:
        barrier.wait(timeout=60)
        return new_mounter().mount(image_id)

    with ThreadPoolExecutor(8) as pool:
        roots = list(pool.map(mount, range(8)))
    assert len({root.root for root in roots}) == 1
    mounted = Path("/proc/self/mountinfo").read_text().split().count(str(roots[0].root))
    assert mounted <= 1


def test_unmounting_is_idempotent_and_mounting_works_again(mounter: Mounter, image_id: str) -> None:
    mounter.unmount(image_id)
    root = mounter.mount(image_id)
    mounter.unmount(image_id)
    mounter.unmount(image_id)
    assert not root.root.is_mount()
    assert mounter.mount(image_id) == root


@pytest.mark.parametrize("image_id", ["im-0123456789abcdef", "../../etc", "", "im-0123456789ABCDEF", "im-"])
def test_an_unknown_image_is_not_found(mounter: Mounter, image_id: str) -> None:
    with pytest.raises(NotFound):
        mounter.mount(image_id)


def test_a_folder_that_has_gone_or_was_replaced_is_not_found(
    store: ImageStore, mounter: Mounter, tree: Path
) -> None:
    image = store.ensure(DirectoryImage(path=str(tree)), quiet)
    mounter.mount(image.id)
    tree.rename(tree.with_name("moved"))
    with pytest.raises(NotFound, match="gone or was replaced"):
        mounter.mount(image.id)
    (tree / "bin").mkdir(parents=True)
    with pytest.raises(NotFound, match="gone or was replaced"):
        mounter.mount(image.id)


def test_no_character_of_a_path_becomes_a_mount_option(
    store: ImageStore, mounter: Mounter, tmp_path: Path
) -> None:
    strange = tmp_path / "a,b:c\\d e=upperdir"
    (strange / "bin").mkdir(parents=True)
    (strange / "bin" / "here").touch()
    image = store.ensure(DirectoryImage(path=str(strange)), quiet)
    assert names(mounter.mount(image.id).root / "bin") == ["here"]


def test_whether_overlays_work_is_found_out_without_leaving_anything(tmp_path: Path) -> None:
    assert overlay.is_possible(tmp_path)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_mount_point_inside_a_bind_must_exist_on_the_host(tmp_path: Path) -> None:
    root, source = tmp_path / "root", tmp_path / "source"
    (source / "there").mkdir(parents=True)
    root.mkdir()
    (root / "link").symlink_to("usr")
    filesystem = RootFilesystem(root, root, (Bind(source, "/usr"),))
    filesystem.check_mount_point("/data")
    filesystem.check_mount_point("/usr/there")
    filesystem.check_mount_point("/usrlocal")
    for inside in ("/usr/missing", "/usr/there/missing", "/link/missing"):
        with pytest.raises(InvalidInput, match="bound read-only"):
            filesystem.check_mount_point(inside)


def test_what_is_mounted_anew_below_an_image_is_what_later_containers_see(
    mounter: Mounter, store: ImageStore, tree: Path, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    outer = tmp_path / "outer"
    outer.mkdir()
    image_id = ""
    try:
        for generation in ("first", "second"):
            # As when an image's content lies on local packs from now on, or the blob daemon was killed.
            subprocess.run(["mount", "-t", "tmpfs", generation, str(outer)], check=True)
            shutil.copytree(tree, outer, symlinks=True, dirs_exist_ok=True)
            (outer / "generation").write_text(generation)
            image_id = image_id or store.ensure(DirectoryImage(path=str(outer)), quiet).id
            root = mounter.mount(image_id).root
            assert (root / "generation").read_text() == generation
            subprocess.run(["umount", "--lazy", str(outer)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(outer)], capture_output=True, check=False)
