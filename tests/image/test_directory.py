from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glowplug.image.mount import ImageMounter
from glowplug.image.store import ImageStore
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir
from glowplug.types.spec import DirectoryImage, LocalDir

from .conftest import Enter, names, quiet


def listing(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def refused(store: ImageStore, path: Path | str, **fields: Any) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        store.ensure(DirectoryImage(path=str(path), **fields), quiet)
    assert caught.value.remedy
    assert store.list() == []
    return caught.value


def test_a_missing_folder_is_refused(store: ImageStore, tmp_path: Path) -> None:
    assert "No such file" in refused(store, tmp_path / "missing").message


def test_a_file_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "not a folder" in refused(store, tmp_path / "file").message


def test_a_folder_without_programs_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "/bin" in refused(store, tmp_path / "empty").message


def test_a_path_of_circular_links_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "symbolic links" in refused(store, tmp_path / "a").message


def test_circular_links_inside_are_refused(store: ImageStore, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "bin").symlink_to("usr")
    (root / "usr").symlink_to("bin")
    assert "symbolic links" in refused(store, root).message


def test_programs_that_are_only_a_link_out_of_the_folder_do_not_count(
    store: ImageStore, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "bin").symlink_to("../../../../../../../bin")
    assert "/bin" in refused(store, root).message


@pytest.mark.parametrize("path", ["/", "/../"])
def test_the_nodes_own_root_is_refused(store: ImageStore, path: str) -> None:
    assert "host_python" in refused(store, path).remedy


def test_our_own_state_is_refused_also_through_a_link(
    store: ImageStore, state: StateDir, tmp_path: Path
) -> None:
    (state.images / "bin").mkdir()
    (tmp_path / "innocent").symlink_to(state.images)
    assert "state" in refused(store, tmp_path / "innocent").message


def test_a_working_directory_that_is_a_file_is_refused(store: ImageStore, tree: Path) -> None:
    (tree / "etc" / "passwd").touch()
    assert "not a folder" in refused(store, tree, workdir="/etc/passwd").message


@pytest.mark.parametrize("workdir", ["/a/../b", "/a/", "//a"])
def test_a_working_directory_that_is_not_plain_is_refused(
    store: ImageStore, tree: Path, workdir: str
) -> None:
    assert "plain absolute path" in refused(store, tree, workdir=workdir).message


def test_an_impossible_environment_is_refused(store: ImageStore, tree: Path) -> None:
    refused(store, tree, env={"A=B": "c"})


def test_a_local_folder_that_is_missing_doubled_or_in_the_way_is_refused(
    store: ImageStore, tree: Path, tmp_path: Path
) -> None:
    here = str(tmp_path)
    (tree / "etc" / "passwd").touch()
    missing = LocalDir(local_path=f"{here}/missing", remote_path="/data")
    assert "No such file" in refused(store, tree, local_dirs=[missing]).message
    twice = [LocalDir(local_path=here, remote_path="/data")] * 2
    assert "Two local folders" in refused(store, tree, local_dirs=twice).message
    reserved = LocalDir(local_path=here, remote_path="/proc/self")
    assert "/proc" in refused(store, tree, local_dirs=[reserved]).message
    file = LocalDir(local_path=here, remote_path="/etc/passwd")
    assert "not a folder" in refused(store, tree, local_dirs=[file]).message


def test_the_interpreter_is_found_along_the_images_own_path(
    store: ImageStore, mounter: ImageMounter, tree: Path
) -> None:
    interpreter = tree / "opt" / "python" / "bin" / "python3"
    interpreter.parent.mkdir(parents=True)
    interpreter.touch(mode=0o755)
    plain = store.ensure(DirectoryImage(path=str(tree)), quiet)
    assert mounter.mount(plain.id).python is None
    chosen = store.ensure(DirectoryImage(path=str(tree), env={"PATH": "/bin:/opt/python/bin"}), quiet)
    assert mounter.mount(chosen.id).python == "/opt/python/bin/python3"


@pytest.mark.sandbox
def test_a_container_never_changes_the_users_folder(
    store: ImageStore, mounter: ImageMounter, bootable_tree: Path, tmp_path: Path, enter: Enter
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("from the host")
    (bootable_tree / "evil").symlink_to(tmp_path)
    before = listing(bootable_tree), names(tmp_path / "data")
    image = store.ensure(
        DirectoryImage(
            path=str(bootable_tree),
            workdir="/a/new/workdir",
            local_dirs=[
                LocalDir(local_path=str(tmp_path / "data"), remote_path="/new/mount/point"),
                LocalDir(local_path=str(tmp_path / "data"), remote_path="/evil/escape"),
            ],
        ),
        quiet,
    )
    root = mounter.mount(image.id)
    result = enter(root, "/bin/sh", "-c", "pwd; /bin/cat /new/mount/point/file; echo > /etc/x")
    assert result.stdout == "/a/new/workdir\nfrom the host", result.stderr
    assert (listing(bootable_tree), names(tmp_path / "data")) == before
    assert not (tmp_path / "escape").exists()


def test_removing_an_image_leaves_the_users_folder_alone(
    store: ImageStore, mounter: ImageMounter, tree: Path
) -> None:
    (tree / "etc" / "precious").write_text("data")
    image = store.ensure(DirectoryImage(path=str(tree)), quiet)
    root = mounter.mount(image.id).root
    assert (root / "etc" / "precious").read_text() == "data"
    store.remove(image.id)
    assert not root.exists()
    assert (tree / "etc" / "precious").read_text() == "data"
