"""One store for images and snapshots: what both have is there once, and stays as long as one of them does."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests import needs

from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.catalog import Catalog
from glowplug.image.node_images import NodeImages
from glowplug.types.image import GcTask, ImportTask, RemoveTask
from glowplug.types.paths import StateDir

from .conftest import quiet

CONTENT = os.urandom((3 << 20) + 17)  # no whole number of pages: cut alike in both


@pytest.fixture
def digest(node_images: NodeImages, tree: Path) -> str:
    """An image with CONTENT."""
    needs.root("to mount")
    (tree / "bin" / "data").write_bytes(CONTENT)
    imported = node_images.run(ImportTask(source=str(tree), name="app:1"), quiet, threading.Event())
    return str(imported["digest"])


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """The files of a snapshot with CONTENT."""
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "data").write_bytes(CONTENT)
    return folder


def collect_garbage(node_images: NodeImages) -> int:
    return int(node_images.run(GcTask(), quiet, threading.Event())["freed_bytes"])


def test_a_snapshot_takes_no_room_for_what_an_image_has(
    node_images: NodeImages, state: StateDir, digest: str, staged: Path
) -> None:
    with SsdStore(state.chunks) as ssd:
        used_bytes = ssd.used_bytes()
        assert node_images.files.keep(staged, ["data"]).deduplicated_bytes == len(CONTENT)
        assert ssd.used_bytes() == used_bytes


def test_an_image_keeps_its_content_when_a_snapshot_with_the_same_goes(
    node_images: NodeImages, state: StateDir, digest: str, staged: Path
) -> None:
    node_images.files.drop(node_images.files.keep(staged, ["data"]).digest)
    assert collect_garbage(node_images) == 0
    with SsdStore(state.chunks) as ssd:
        assert ssd.missing(Catalog(state).get(digest).table()) == []


def test_a_snapshot_keeps_its_content_when_an_image_with_the_same_goes(
    node_images: NodeImages, digest: str, staged: Path
) -> None:
    kept = node_images.files.keep(staged, ["data"])
    node_images.run(RemoveTask(image="app:1"), quiet, threading.Event())
    collect_garbage(node_images)
    assert (node_images.files.open(kept.digest) / "data").read_bytes() == CONTENT
    node_images.files.drop(kept.digest)
