"""Programs see the same whichever way an image is mounted: as if it was the folder it was made from."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.image.lazy.node import Node
from tests.image.lazy.posix_observe import Case
from tests.image.lazy.posix_suite import CASES
from tests.image.lazy.posix_tree import make_posix_tree
from tests.image.lazy.small_image import detach_all, needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.launch import ensure_daemon, stop_daemon
from glowplug.image.lazy.mounter import LazyMounts, MountSettings

pytestmark = needs_root
KINDS = ("graduated", "lazy", "loop", "plain_fuse")

# What the kernel's EROFS does not do at all. Programs know it from other filesystems: tmpfs and ZFS took no
# O_DIRECT for long, squashfs cannot sync either.
EROFS_ON_FILES: dict[str, Any] = {"direct_reads": "EINVAL", "syncing_a_reader": ("EINVAL", "EINVAL")}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "graduated": EROFS_ON_FILES,
    "lazy": EROFS_ON_FILES,
    "loop": {"syncing_a_reader": ("EINVAL", "EINVAL")},
    "plain_fuse": {},
}


@pytest.fixture(scope="module")
def native() -> Iterator[Path]:
    """The folder itself, mounted as images are: read-only, without devices."""
    with ExitStack() as cleanup:
        # Not in pytest's folder, which nobody else may enter; nor in /tmp, which may be a tmpfs.
        base = Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="glowplug-posix-", dir="/var/tmp"))
        )
        base.chmod(0o711)
        target = base / "native"
        for folder in (base / "original", target):
            folder.mkdir()
        make_posix_tree(base / "original")
        cleanup.callback(detach_all, target)
        subprocess.run(["mount", "--bind", base / "original", target], check=True, timeout=60)
        subprocess.run(["mount", "-o", "remount,bind,ro,nodev", target], check=True, timeout=60)
        yield target


@pytest.fixture(scope="module")
def image(native: Path) -> Iterator[tuple[Node, IndexFolder]]:
    with ExitStack() as cleanup:
        node = Node(native.parent / "node")
        cleanup.callback(node.close)
        cleanup.callback(stop_daemon, node.state)
        for folder in (node.state.root.parent, node.state.root):
            folder.chmod(0o711)  # for those cases that become somebody else
        yield node, node.add_image(native.parent / "original")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def mounted(image: tuple[Node, IndexFolder], kind: Any) -> Iterator[Path]:
    node, folder = image
    settings = MountSettings(None if kind == "graduated" else kind)
    mounts = LazyMounts(node.state, node.ssd, node.catalog, lambda: ensure_daemon(node.state), settings)
    if kind == "graduated":
        assert mounts.graduate(folder.digest)
    found = mounts.mount(folder.digest)
    assert (found.kind, found.is_new) == (kind, True)
    for folder_above in found.path.parents:
        if folder_above.is_relative_to(node.state.run):
            folder_above.chmod(0o711)
    yield found.path
    mounts.unmount(folder.digest)
    assert mounts.mounted() == []


@pytest.mark.parametrize("observe", CASES, ids=lambda case: case.__name__)
def test_is_the_same_as_on_the_folder_itself(native: Path, mounted: Path, kind: str, observe: Case) -> None:
    expected = observe(native)
    assert observe(mounted) == DIFFERENCES[kind].get(observe.__name__, expected)
