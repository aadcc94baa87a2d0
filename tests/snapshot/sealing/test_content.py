"""What sealed content is beyond its contract (``tests/snapshot/test_content.py``): memory, shared, gone."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.snapshot.conftest import make_draft, make_key

from glowplug.image.node_images import NodeImages, open_images
from glowplug.kernel.mounts import unmount
from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.sealing import memory_folder
from glowplug.snapshot.sealing.content import SealedContent
from glowplug.snapshot.sealing.keys import KeyRing, SealingKey
from glowplug.snapshot.sealing.manifests import Manifests
from glowplug.snapshot.sealing.memory_folder import remove_memory_folders
from glowplug.types.errors import InvalidInput, KeyMissing, ResourceExhausted
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotStatus

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OLD, NEW = SealingKey(b"o" * 32), SealingKey(b"n" * 32)
MARKER = b"a user's own words, nowhere else"
FILES = {"pages.img": MARKER + os.urandom((2 << 20) - len(MARKER)), "checkpoint.img": MARKER * 9}


@pytest.fixture
def images(state: StateDir) -> Iterator[NodeImages]:
    state.create()
    images = open_images(state)
    yield images
    images.release_all()
    images.close()


def content_with(images: NodeImages, state: StateDir, *keys: SealingKey) -> SealedContent:
    return SealedContent(images.files, KeyRing(keys), state.unsealed)


def keep(content: SealedContent, folder: Path) -> str:
    folder.mkdir()
    for name, body in FILES.items():
        (folder / name).write_bytes(body)
    return content.keep(folder, sorted(FILES)).digest


def mounts_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{folder}/" in line]


def test_no_byte_of_it_is_plain_on_the_disk(images: NodeImages, state: StateDir, tmp_path: Path) -> None:
    content = content_with(images, state, NEW)
    digest = keep(content, tmp_path / "captured")
    with content.using(digest):
        folder = content.open(digest)
        assert (folder / "pages.img").read_bytes() == FILES["pages.img"]
        (mount,) = mounts_below(state.unsealed)
        assert "tmpfs" in mount
        assert "noswap" in mount
        found = subprocess.run(
            ["grep", "-rlaF", "--exclude-dir=unsealed", MARKER.decode(), str(state.root), str(tmp_path)],
            capture_output=True,
            check=False,
        )
        assert found.stdout == b""
        assert MARKER in (folder / "checkpoint.img").read_bytes(), "grep would have found it"


def test_copies_share_what_is_opened_until_the_last_is_done(
    images: NodeImages, state: StateDir, tmp_path: Path
) -> None:
    content = content_with(images, state, NEW)
    digest = keep(content, tmp_path / "captured")
    with content.using(digest):
        with content.using(digest), ThreadPoolExecutor(8) as pool:
            folders = set(pool.map(lambda _: content.open(digest), range(8)))
        assert len(folders) == 1
        assert (folders.pop() / "checkpoint.img").read_bytes() == FILES["checkpoint.img"]
    assert mounts_below(state.unsealed) == []
    assert list(state.unsealed.iterdir()) == []


def test_what_cannot_be_opened_leaves_nothing_in_memory(
    images: NodeImages, state: StateDir, tmp_path: Path
) -> None:
    digest = keep(content_with(images, state, OLD), tmp_path / "captured")
    locked = content_with(images, state, NEW)
    with locked.using(digest), pytest.raises(KeyMissing, match=OLD.id):
        locked.open(digest)
    assert mounts_below(state.unsealed) == []


def test_what_was_kept_without_keys_is_shown_as_it_is(
    images: NodeImages, state: StateDir, tmp_path: Path
) -> None:
    (tmp_path / "pages.img").write_bytes(FILES["pages.img"])
    digest = images.files.keep(tmp_path, ["pages.img"]).digest
    content = content_with(images, state, NEW)
    with content.using(digest):
        assert (content.open(digest) / "pages.img").read_bytes() == FILES["pages.img"]


def test_files_that_are_not_of_it_are_refused(images: NodeImages, state: StateDir, tmp_path: Path) -> None:
    """Content of one snapshot with the seals of another, kept by somebody who can write the store."""
    content = content_with(images, state, NEW)
    digest = keep(content, tmp_path / "captured")
    forged = tmp_path / "forged"
    forged.mkdir()
    for path in images.files.open(digest).iterdir():
        (forged / path.name).write_bytes(path.read_bytes())
    (forged / "0002").write_bytes(b"one more")
    other = images.files.keep(forged, sorted(path.name for path in forged.iterdir())).digest
    with content.using(other), pytest.raises(InvalidInput, match="0002 is not of its files"):
        content.open(other)


def test_a_disk_that_does_not_give_the_bytes_is_a_typed_error(
    images: NodeImages, state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_with(images, state, NEW)
    digest = keep(content, tmp_path / "captured")

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("glowplug.snapshot.sealing.files.os.preadv", fail)
    with content.using(digest), pytest.raises(InvalidInput, match="cannot be read: Input/output error"):
        content.open(digest)
    assert mounts_below(state.unsealed) == []


def test_opening_needs_memory_and_says_how_much(
    images: NodeImages, state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_with(images, state, NEW)
    digest = keep(content, tmp_path / "captured")
    monkeypatch.setattr("glowplug.snapshot.sealing.memory_folder.available_bytes", lambda: 1 << 20)
    with content.using(digest), pytest.raises(ResourceExhausted, match="memory for a while"):
        content.open(digest)


def test_what_a_killed_agent_left_in_memory_is_removed(state: StateDir) -> None:
    state.create()
    left = memory_folder.memory_folder(state.unsealed, 1 << 20, "A test")
    path = left.__enter__()
    (path / "plain").write_bytes(MARKER)
    (state.unsealed / "m-no-mount").mkdir()
    assert remove_memory_folders(state.unsealed) == 2
    assert list(state.unsealed.iterdir()) == []
    with pytest.raises(OSError):  # noqa: PT011 - it is mounted no more
        unmount(path)


def test_a_store_seals_lists_and_locks(images: NodeImages, state: StateDir) -> None:
    sealing = SnapshotStore(state, content_with(images, state, OLD), manifests=Manifests(KeyRing((OLD,))))
    key = make_key()
    with sealing.begin(key) as staging:
        assert staging.files != staging.path
        for name, body in FILES.items():
            (staging.files / name).write_bytes(body)
        sealed = staging.seal(make_draft())
        with sealed.pin():
            sealed.verify()
        staging.publish()
    (view,) = sealing.list()
    assert (view.status, view.sealed_with, view.app) == (SnapshotStatus.GOOD, OLD.id, "chat")
    with sealing.get(key.id).pin() as snapshot:
        snapshot.verify()
    assert mounts_below(state.unsealed) == []

    locked = SnapshotStore(state, content_with(images, state, NEW), manifests=Manifests(KeyRing((NEW,))))
    (view,) = locked.list()
    assert (view.status, view.sealed_with, view.app) == (SnapshotStatus.LOCKED, OLD.id, "")
    with pytest.raises(KeyMissing, match=OLD.id):
        locked.find(key)
    nearest = locked.nearest(key, "chat", "vllm")
    assert nearest is not None
    assert OLD.id in nearest.reason
    locked.sweep()
    assert sealing.find(key) is not None, "who cannot open it does not throw it away"
    assert images.files.digests() == {sealing.get(key.id).manifest.content}
