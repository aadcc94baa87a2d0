"""Graduation: only of complete images, never on places that chunks left, safe when killed or repeated."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.image.lazy.node import Node, contents, make_files
from tests.image.lazy.small_image import detach_all, needs_root

from glowplug.image.index.folder import IndexFolder
from glowplug.image.lazy.erofs_mount import gathered_content, mount_erofs
from glowplug.image.lazy.graduate import (
    PIN_PREFIX,
    graduate,
    is_graduated,
    read_graduated,
    release_if_abandoned,
)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.close()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make_files(tmp_path / "original")


@pytest.fixture
def folder(node: Node, original: Path) -> IndexFolder:
    return node.add_image(original)


def test_a_record_that_names_other_packs_has_no_mark(node: Node, folder: IndexFolder) -> None:
    graduate(folder, node.ssd, can_gather=True)
    record = json.loads(folder.graduated_record_path.read_text())
    record["packs"] = record["packs"][::-1]
    folder.graduated_record_path.write_text(json.dumps(record))
    assert read_graduated(folder) is not None
    assert not is_graduated(folder, node.ssd, can_gather=True)


@needs_root
def test_a_graduated_index_on_the_packs_is_the_image(
    node: Node, folder: IndexFolder, original: Path, tmp_path: Path
) -> None:
    assert graduate(folder, node.ssd, can_gather=True)
    graduated = read_graduated(folder)
    assert graduated is not None
    assert len(graduated.record.packs) > 1
    target = tmp_path / "mounted"
    target.mkdir()
    try:
        packs = [node.ssd.pack_path(pack) for pack in graduated.record.packs]
        with gathered_content(folder.gathered_path, packs) as small_files:
            mount_erofs(folder.graduated_index_path, [*packs, small_files], target, directio=True)
        assert contents(target) == contents(original)
    finally:
        detach_all(target)


@needs_root
def test_where_small_files_cannot_be_gathered_the_packs_are_all_it_needs(
    node: Node, folder: IndexFolder, original: Path, tmp_path: Path
) -> None:
    graduate(folder, node.ssd, can_gather=True)
    assert not is_graduated(folder, node.ssd, can_gather=False)
    assert graduate(folder, node.ssd, can_gather=False)
    graduated = read_graduated(folder)
    assert graduated is not None
    assert graduated.record.gathered is None
    target = tmp_path / "mounted"
    target.mkdir()
    try:
        packs = [node.ssd.pack_path(pack) for pack in graduated.record.packs]
        mount_erofs(folder.graduated_index_path, packs, target, directio=True)
        assert contents(target) == contents(original)
    finally:
        detach_all(target)


def test_an_image_that_lacks_a_chunk_does_not_graduate(node: Node, folder: IndexFolder) -> None:
    node.ssd.remove([folder.table()[5]])
    assert not graduate(folder, node.ssd, can_gather=True)
    assert not is_graduated(folder, node.ssd, can_gather=True)
    assert not folder.graduated_index_path.exists()


def test_graduating_again_changes_nothing(node: Node, folder: IndexFolder) -> None:
    assert graduate(folder, node.ssd, can_gather=True)
    before = folder.graduated_index_path.stat().st_ino
    assert graduate(folder, node.ssd, can_gather=True)
    assert folder.graduated_index_path.stat().st_ino == before


def test_a_chunk_that_went_undoes_it_and_one_that_came_back_elsewhere_needs_a_new_index(
    node: Node, folder: IndexFolder
) -> None:
    graduate(folder, node.ssd, can_gather=True)
    first = read_graduated(folder)
    chunk = folder.table()[5]
    data = node.ssd.get(chunk, 5)
    node.ssd.remove([chunk])
    assert not is_graduated(folder, node.ssd, can_gather=True)
    node.ssd.put(chunk, data)
    node.ssd.flush()
    assert not is_graduated(folder, node.ssd, can_gather=True)
    assert graduate(folder, node.ssd, can_gather=True)
    second = read_graduated(folder)
    assert first is not None
    assert second is not None
    assert first.record.index != second.record.index
    assert not node.ssd.is_complete(first.mark)


def test_no_pin_is_left(node: Node, folder: IndexFolder) -> None:
    graduate(folder, node.ssd, can_gather=True)
    assert node.ssd.pins() == []


@pytest.mark.parametrize("damage", ["garbage", "empty", "newer", "absurd"])
def test_a_damaged_record_is_as_none(node: Node, folder: IndexFolder, damage: str) -> None:
    graduate(folder, node.ssd, can_gather=True)
    record = json.loads(folder.graduated_record_path.read_text())
    folder.graduated_record_path.write_text(
        {
            "garbage": "\0\1\2",
            "empty": "",
            "newer": json.dumps({**record, "version": 3}),
            "absurd": json.dumps({**record, "packs": list(range(70_000))}),
        }[damage]
    )
    assert read_graduated(folder) is None
    assert graduate(folder, node.ssd, can_gather=True)
    assert is_graduated(folder, node.ssd, can_gather=True)


def test_several_threads_graduate_one_image_once(node: Node, folder: IndexFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: graduate(folder, node.ssd, can_gather=True), range(8))) == [True] * 8
    graduated = read_graduated(folder)
    assert graduated is not None
    assert graduated.record.index.size_bytes == folder.graduated_index_path.stat().st_size


_GRADUATE = """
import sys
from pathlib import Path
from glowplug.chunks.ssd import SsdStore
from glowplug.image.index.catalog import Catalog
from glowplug.image.lazy import graduate as module
from glowplug.types.paths import StateDir

state, digest, stop_at = StateDir(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
replace = module._replace

def stop(path, data):
    if path.name == stop_at:
        print("here", flush=True)
        sys.stdin.read()
    replace(path, data)

module._replace = stop
with SsdStore(state.chunks, budget_bytes=None) as ssd:
    module.graduate(Catalog(state).get(digest), ssd, can_gather=True)
"""


@pytest.mark.parametrize("stop_at", ["gathered.erofs", "graduated.erofs", "graduated.json"])
def test_a_killed_graduation_leaves_nothing_that_counts(
    node: Node, folder: IndexFolder, stop_at: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _GRADUATE, node.state.root, folder.digest, stop_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert node.ssd.pins() == [f"{PIN_PREFIX}{folder.digest}"]
        release_if_abandoned(folder, node.ssd)
        assert node.ssd.pins() != []  # it is not abandoned: it is being done
        process.send_signal(signal.SIGKILL)
    assert not is_graduated(folder, node.ssd, can_gather=True)
    release_if_abandoned(folder, node.ssd)
    assert node.ssd.pins() == []
    assert graduate(folder, node.ssd, can_gather=True)
