"""The contract of :class:`SnapshotContent`: the node's, plain and sealed, and the tests' folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from glowplug.image.node_images import NodeImages, open_images
from glowplug.snapshot.content import SnapshotContent
from glowplug.snapshot.sealing.content import SealedContent
from glowplug.snapshot.sealing.keys import KeyRing, SealingKey
from glowplug.types.errors import Conflict, NotFound
from glowplug.types.paths import StateDir

from .folder_content import FolderContent

FILES = {
    "pages.img": os.urandom(300 << 12) + bytes(600 << 12) + os.urandom(500 << 12),
    "odd.img": os.urandom((3 << 20) + 5),
    "meta": b"m" * 5000,
    "empty": b"",
    "zeros": bytes(2 << 20),
}
UNKNOWN = "0f" * 32


@pytest.fixture
def images(state: StateDir) -> Iterator[NodeImages]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    state.create()
    images = open_images(state)
    yield images
    images.release_all()
    images.close()


@pytest.fixture(params=["packs", "sealed packs", "folders"])
def content(request: pytest.FixtureRequest, state: StateDir) -> SnapshotContent:
    if request.param == "folders":
        return FolderContent(state.root / "content")
    images: NodeImages = request.getfixturevalue("images")
    if request.param == "packs":
        return images.files
    return SealedContent(images.files, KeyRing((SealingKey(b"k" * 32),)), state.unsealed)


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    return capture_again(tmp_path / "captured")


def capture_again(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def read(content: SnapshotContent, digest: str) -> dict[str, bytes]:
    with content.using(digest):
        return {path.name: path.read_bytes() for path in content.open(digest).iterdir()}


def test_what_was_kept_is_read_after_its_source_has_gone(content: SnapshotContent, captured: Path) -> None:
    kept = content.keep(captured, sorted(FILES))
    for path in captured.iterdir():
        path.unlink()
    assert kept.deduplicated_bytes == 0
    assert read(content, kept.digest) == FILES
    with content.using(kept.digest):
        assert content.open(kept.digest) == content.open(kept.digest)
    assert content.digests() == {kept.digest}


def test_only_the_named_files_are_kept(content: SnapshotContent, captured: Path) -> None:
    kept = content.keep(captured, ["meta", "empty"])
    assert read(content, kept.digest) == {"meta": FILES["meta"], "empty": b""}


def test_keeping_the_same_again_is_one_set_and_all_of_it_deduplicated(
    content: SnapshotContent, captured: Path
) -> None:
    first = content.keep(captured, sorted(FILES))
    again = content.keep(capture_again(captured), sorted(FILES))
    assert again.digest == first.digest
    assert again.deduplicated_bytes >= len(FILES["pages.img"]) + len(FILES["meta"])
    content.drop(first.digest)
    assert content.digests() == set()


def test_usage_tells_what_is_here(content: SnapshotContent, captured: Path) -> None:
    kept = content.keep(captured, sorted(FILES))
    usage = content.usage(kept.digest)
    assert usage.here_bytes >= len(FILES["pages.img"])
    assert (usage.is_complete, usage.is_in_region) == (True, False)
    assert content.usage(UNKNOWN).here_bytes == 0


def test_dropping_forgets_it_and_twice_is_fine(content: SnapshotContent, captured: Path) -> None:
    kept = content.keep(captured, sorted(FILES))
    read(content, kept.digest)
    content.drop(kept.digest)
    content.drop(kept.digest)
    with pytest.raises(NotFound), content.using(kept.digest):
        content.open(kept.digest)
    assert content.digests() == set()


def test_another_set_survives_the_end_of_one_that_it_shares_files_with(
    content: SnapshotContent, captured: Path
) -> None:
    whole = content.keep(captured, sorted(FILES))
    part = content.keep(capture_again(captured), ["pages.img"])
    content.drop(whole.digest)
    assert read(content, part.digest) == {"pages.img": FILES["pages.img"]}


def test_dropping_frees_the_disk(images: NodeImages, captured: Path, state: StateDir) -> None:
    kept = images.files.keep(captured, sorted(FILES))
    images.files.open(kept.digest)
    images.files.drop(kept.digest)
    assert images.files.usage(kept.digest).here_bytes == 0
    packs = list((state.chunks / "packs").glob("*.pack"))
    assert sum(path.stat().st_blocks * 512 for path in packs) < 1 << 20


def test_what_somebody_reads_is_not_dropped(images: NodeImages, captured: Path) -> None:
    kept = images.files.keep(captured, sorted(FILES))
    with (images.files.open(kept.digest) / "pages.img").open("rb"), pytest.raises(Conflict):
        images.files.drop(kept.digest)
    assert read(images.files, kept.digest) == FILES
    images.files.drop(kept.digest)


@pytest.mark.parametrize("way", ["lazy", "loop", "plain_fuse"])
def test_every_way_of_mounting_shows_the_same(
    state: StateDir, captured: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setenv("GLOWPLUG_MOUNT", way)
    state.create()
    images = open_images(state)
    try:
        kept = images.files.keep(captured, sorted(FILES))
        assert read(images.files, kept.digest) == FILES
    finally:
        images.release_all()
        images.close()


def test_it_is_no_image_to_anybody(images: NodeImages, captured: Path) -> None:
    images.files.keep(captured, sorted(FILES))
    assert images.indexes() == []
