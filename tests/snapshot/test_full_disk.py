"""A disk that fills up at any point of a capture: a clear error, nothing left behind, the old one intact."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.types.errors import ResourceExhausted
from glowplug.types.paths import StateDir

from .conftest import garbage, make_draft, make_key, open_store

DISK_BYTES = 2 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[StateDir]:
    """A state directory on a filesystem of 2 MiB."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(mount_point)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.decode().strip()}")
    yield StateDir(mount_point / "state")
    subprocess.run(["umount", str(mount_point)], check=True)


def fill(directory: Path, leave_bytes: int) -> Path:
    """Use up the disk but for ``leave_bytes``."""
    filler = directory / "filler"
    status = os.statvfs(directory)
    filler.write_bytes(b"\0" * max(0, status.f_bavail * status.f_frsize - leave_bytes))
    return filler


def capture(store: SnapshotStore, content: bytes, filler_leaves_bytes: int | None = None) -> None:
    with store.begin(make_key()) as staging:
        (staging.path / "pages.img").write_bytes(content)
        if filler_leaves_bytes is not None:
            fill(staging.path.parents[3], filler_leaves_bytes)
        staging.commit(make_draft())


def test_a_disk_that_fills_while_the_runtime_writes_is_resource_exhausted(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    capture(store, b"old")
    with pytest.raises(ResourceExhausted, match="disk is full") as caught:
        capture(store, b"x" * (2 * DISK_BYTES))
    assert caught.value.remedy
    assert garbage(small_disk) == []
    snapshot = store.get(make_key().id)
    snapshot.verify()
    assert (snapshot.open() / "pages.img").read_bytes() == b"old"


def test_a_disk_that_fills_before_the_manifest_is_written_is_resource_exhausted(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    capture(store, b"old")
    with pytest.raises(ResourceExhausted, match="disk is full"):
        capture(store, b"new", filler_leaves_bytes=0)
    assert garbage(small_disk) == []
    assert store.find(make_key()) is not None
    (small_disk.root.parent / "filler").unlink()
    capture(store, b"new")
    assert (store.get(make_key().id).open() / "pages.img").read_bytes() == b"new"


def test_counting_on_a_full_disk_keeps_the_old_count(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    capture(store, b"old")
    store.record_restore(make_key().id, True)
    fill(small_disk.root.parent, 0)
    with pytest.raises(ResourceExhausted):
        store.record_restore(make_key().id, True)
    assert store.view(make_key().id).restores == 1


def test_removing_works_on_a_full_disk(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    capture(store, b"old")
    fill(small_disk.root.parent, 0)
    store.remove(make_key().id)
    assert store.list() == []
    assert garbage(small_disk) == []


def test_the_expected_size_is_compared_with_what_is_free(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    with pytest.raises(ResourceExhausted, match="are free"), store.begin(make_key(), DISK_BYTES * 2):
        pytest.fail("the block must not run")
    with store.begin(make_key(), DISK_BYTES // 2):
        pass


def test_what_could_not_be_removed_is_removed_when_it_can_be(small_disk: StateDir) -> None:
    store = open_store(small_disk)
    with store.begin(make_key()) as staging:
        stuck = staging.path / "stuck"
        stuck.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(stuck)], check=True)
    assert garbage(small_disk) != []
    store.sweep_again()
    assert garbage(small_disk) != [], "it is in the way still"
    subprocess.run(["umount", str(stuck)], check=True)
    store.sweep_again()
    assert garbage(small_disk) == []
