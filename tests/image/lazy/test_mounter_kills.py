"""Processes killed in the middle of mounting, unmounting, graduating: the next sweep or mount is right."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.lazy.node import MountingNode, contents, make_files
from tests.image.lazy.small_image import needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.graduate import PIN_PREFIX
from glowplug.image.lazy.launch import stop_daemon

pytestmark = needs_root
PATIENCE_S = 60.0


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make_files(tmp_path / "original")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MountingNode]:
    node = MountingNode(tmp_path)
    yield node
    node.close()


@pytest.fixture
def folder(node: MountingNode, original: Path) -> IndexFolder:
    return node.add_image(original)


_STOP = """
import sys
from pathlib import Path
from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.catalog import Catalog
from glowplug.image.lazy import mounter as module
from glowplug.image.lazy.launch import ensure_daemon
from glowplug.types.paths import StateDir

state, digest, act, owner, name, when = StateDir(Path(sys.argv[1])), *sys.argv[2:]
ssd = SsdStore(state.chunks, budget_bytes=None)
place = {"module": module, "ssd": ssd, "fuse_mount": module.fuse_mount}[owner]
original = getattr(place, name)

def stop():
    print("here", flush=True)
    sys.stdin.read()

def stopped(*arguments, **options):
    if when == "before":
        stop()
    result = original(*arguments, **options)
    if when == "after":
        stop()
    return result

setattr(place, name, stopped)
mounts = module.LazyMounts(state, ssd, Catalog(state), lambda: ensure_daemon(state))
getattr(mounts, act)(digest)
"""


def start_and_stop(node: MountingNode, digest: str, *where: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _STOP, node.state.root, digest, *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize(
    "where",
    ["ssd pin before", "ssd pin after", "module mount_erofs before", "module mount_erofs after"],
)
def test_killed_while_mounting(node: MountingNode, folder: IndexFolder, original: Path, where: str) -> None:
    process = start_and_stop(node, folder.digest, "mount", *where.split())
    assert node.mounts().sweep().released == []  # it is being done: not to be disturbed
    process.kill()
    process.communicate()
    swept = node.mounts().sweep()
    if where == "module mount_erofs after":
        assert swept.released == []
        assert not node.mounts().mount(folder.digest).is_new
        node.mounts().unmount(folder.digest)
    else:
        assert swept.released == [folder.digest]
    node.assert_nothing_is_left(folder)
    assert contents(node.mounts().mount(folder.digest).path) == contents(original)


@pytest.mark.parametrize(
    "where",
    ["ssd pin_if_complete after", "module mount_erofs before", "module mount_erofs after"],
)
def test_killed_while_mounting_from_packs(
    node: MountingNode, folder: IndexFolder, original: Path, where: str
) -> None:
    node.mounts().graduate(folder.digest)
    process = start_and_stop(node, folder.digest, "mount", *where.split())
    node.ssd.prune(0)
    process.kill()
    process.communicate()
    node.mounts().sweep()
    mounted = node.mounts().mount(folder.digest)
    assert mounted.kind == "graduated"
    assert contents(mounted.path) == contents(original)
    node.mounts().unmount(folder.digest)
    node.assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    "where", ["fuse_mount unmount before", "fuse_mount unmount after", "ssd unpin after"]
)
def test_killed_while_unmounting(node: MountingNode, folder: IndexFolder, where: str) -> None:
    node.mounts().mount(folder.digest)
    process = start_and_stop(node, folder.digest, "unmount", *where.split())
    process.kill()
    process.communicate()
    node.mounts().sweep()
    if where == "fuse_mount unmount before":
        assert len(node.entries(folder.digest)) == 1
        node.mounts().unmount(folder.digest)
    node.assert_nothing_is_left(folder)


def test_killed_while_graduating(node: MountingNode, folder: IndexFolder) -> None:
    process = start_and_stop(node, folder.digest, "graduate", "ssd", "mark_complete", "before")
    assert node.ssd.pins() == [PIN_PREFIX + folder.digest]
    process.kill()
    process.communicate()
    node.mounts().sweep()
    assert node.ssd.pins() == []


def test_two_processes_mount_one_image_once(node: MountingNode, folder: IndexFolder) -> None:
    first = start_and_stop(node, folder.digest, "mount", "module", "mount_erofs", "before")
    second = threading.Thread(target=node.mounts().mount, args=(folder.digest,))
    second.start()
    first.communicate("", timeout=PATIENCE_S)
    second.join()
    assert first.returncode == 0
    assert len(node.entries(folder.digest)) == 1


def test_after_a_reboot_pins_without_mounts_are_released(node: MountingNode, folder: IndexFolder) -> None:
    """A reboot takes all mounts and processes away, and leaves every file as it was."""
    node.mounts().graduate(folder.digest)
    node.mounts().mount(folder.digest)
    node.unmount_everything()
    stop_daemon(node.state)
    assert node.ssd.pins() != []
    node.catalog.remove(folder.digest)
    assert node.mounts().sweep().released == [folder.digest]
    node.assert_nothing_is_left(folder)
    assert node.ssd.prune(0).used_bytes == 0
