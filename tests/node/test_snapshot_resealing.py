"""A change of keys: what an old key sealed is sealed anew, here and in the region, so that it may go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.snapshot.conftest import make_draft, make_key

from glowplug.image.node_images import NodeImages, open_images
from glowplug.image.node_store import open_region
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.node.snapshot_resealing import SnapshotResealing
from glowplug.snapshot.region import RegionSnapshots
from glowplug.snapshot.sealing.content import SealedContent
from glowplug.snapshot.sealing.keys import KeyRing, SealingKey
from glowplug.snapshot.sealing.manifests import Manifests
from glowplug.snapshot.store import SnapshotStore
from glowplug.types.clock import SystemClock
from glowplug.types.errors import Conflict, InvalidInput, KeyMissing, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotStatus

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

OLD, NEW = SealingKey(b"o" * 32), SealingKey(b"n" * 32)
FILES = {"pages.img": bytes(1 << 20) + os.urandom(2 << 20), "checkpoint.img": b"state" * 99}
KEY = make_key()


class Node:
    """One machine, as it is after a start with these keys."""

    def __init__(self, state: StateDir, images: NodeImages) -> None:
        self.state = state
        self.images = images
        self.use()

    def use(self, *keys: SealingKey) -> None:
        ring = KeyRing(keys) if keys else None
        manifests = Manifests(ring)
        files = self.images.files
        content = files if ring is None else SealedContent(files, ring, self.state.unsealed)
        self.store = SnapshotStore(self.state, content, manifests=manifests)
        region = RegionSnapshots(open_region(self.state).objects, manifests)
        self.moves = SnapshotMoves(self.store, files, lambda: region, SystemClock())
        self.region = region

    def capture(self) -> None:
        with self.store.begin(KEY) as staging:
            for name, body in FILES.items():
                (staging.files / name).write_bytes(body)
            staging.commit(make_draft())

    def push(self) -> None:
        self.moves.push(KEY.id, lambda _text, _fraction: None, threading.Event())

    def reseal(self, cancelled: threading.Event | None = None) -> dict[str, Any]:
        resealing = SnapshotResealing(self.moves, self.state.superseded)
        return resealing.run(lambda _text, _fraction: None, cancelled or threading.Event())

    def files(self) -> dict[str, bytes]:
        with self.store.get(KEY.id).pin() as snapshot:
            snapshot.verify()
            return {path.name: path.read_bytes() for path in snapshot.open().iterdir()}


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "region"
    folder.mkdir()
    monkeypatch.setenv("GLOWPLUG_REGION", str(folder))
    return folder


@pytest.fixture
def node(tmp_path: Path, region: Path) -> Iterator[Node]:
    state = StateDir(tmp_path / "state")
    state.create()
    images = open_images(state)
    yield Node(state, images)
    images.release_all()
    images.close()


def contents_in(region: Path) -> list[str]:
    return [path.parent.name for path in region.glob("images/*/manifest.json")]


def test_without_keys_nothing_is_sealed(node: Node) -> None:
    with pytest.raises(InvalidInput, match="keygen"):
        node.reseal()


def test_what_is_plain_is_sealed_and_then_sealed_with_the_next_key(node: Node, region: Path) -> None:
    node.capture()
    plain = node.store.record_restore(KEY.id, True)
    created_at = node.store.get(KEY.id).manifest.created_at
    node.push()
    for keys in ((OLD,), (NEW, OLD)):
        node.use(*keys)
        before = node.store.get(KEY.id).manifest.content
        assert node.files() == FILES
        assert node.reseal() == {"resealed": [KEY.id], "region": [KEY.id], "left": []}
        assert node.reseal() == {"resealed": [], "region": [], "left": []}, "what is done is not done again"
        after = node.store.get(KEY.id)
        assert (after.stored.sealed_with, after.status) == (keys[0].id, plain)
        assert after.manifest.created_at == created_at
        assert node.region.read(KEY.id).raw == after.stored.raw
        assert contents_in(region) == [after.manifest.content]
        assert node.images.files.digests() == {after.manifest.content} != {before}
    node.use(NEW)
    assert node.files() == FILES, "the old key is not needed any more"


def test_with_keys_only_sealed_ones_leave_the_node_or_come_from_the_region(node: Node) -> None:
    node.capture()
    node.push()
    node.use(NEW)
    with pytest.raises(InvalidInput, match="here is not sealed"):
        node.push()
    with pytest.raises(InvalidInput, match="in the region is not sealed"):
        node.moves.pull(KEY.id, lambda _text, _fraction: None, threading.Event(), content=False)
    with pytest.raises(InvalidInput, match="in the region is not sealed"):
        node.moves.bring(KEY)
    assert node.files() == FILES, "what is here is not thrown away for it"


def test_what_only_the_region_has_is_sealed_too(node: Node, region: Path) -> None:
    node.use(OLD)
    node.capture()
    node.push()
    node.store.remove(KEY.id)
    node.use(NEW, OLD)
    assert node.reseal()["region"] == [KEY.id]
    node.use(NEW)
    assert node.files() == FILES
    assert len(contents_in(region)) == 1


def test_what_is_plain_and_only_in_the_region_is_not_trusted(node: Node) -> None:
    node.capture()
    node.push()
    node.store.remove(KEY.id)
    node.use(NEW)
    result = node.reseal()
    assert "could have made it" in result["left"][0]["reason"]
    assert node.store.list() == []


def test_what_cannot_be_opened_is_left_and_told(node: Node) -> None:
    node.use(OLD)
    node.capture()
    node.push()
    node.use(NEW)
    result = node.reseal()
    assert (result["resealed"], result["region"]) == ([], [])
    assert [left["id"] for left in result["left"]] == [KEY.id, KEY.id]
    assert all(OLD.id in left["reason"] for left in result["left"])
    (there,) = node.moves.in_region()
    assert (there.status, there.sealed_with) == (SnapshotStatus.LOCKED, OLD.id)
    with pytest.raises(KeyMissing, match=OLD.id):
        node.moves.bring(KEY)
    node.use(OLD)
    assert node.files() == FILES


def test_it_can_be_stopped_and_gone_on_with(
    node: Node, region: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.use(OLD)
    node.capture()
    node.push()
    node.use(NEW, OLD)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Conflict, match="to go on"):
        node.reseal(stopped)
    assert node.files() == FILES

    def fail(_stored: object) -> None:
        raise Unavailable("The region is away.")

    with monkeypatch.context() as broken:
        broken.setattr(node.region, "write", fail)
        result = node.reseal()
        assert (result["resealed"], result["region"]) == ([KEY.id], [])
        assert "away" in result["left"][0]["reason"]
    assert node.region.read(KEY.id).sealed_with == OLD.id, "what other nodes find is whole"
    assert node.region.read(KEY.id).manifest.content in contents_in(region)

    with monkeypatch.context() as killed:
        killed.setattr(type(node.images.files), "remove_from_region", _killed)
        with pytest.raises(KeyboardInterrupt):
            node.reseal()
    assert len(contents_in(region)) == 2
    assert node.reseal() == {"resealed": [], "region": [], "left": []}
    assert contents_in(region) == [node.store.get(KEY.id).manifest.content]


def _killed(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_bytes_that_are_not_those_of_the_capture_are_not_sealed_anew(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.capture()
    node.use(NEW)
    snapshot = node.store.get(KEY.id)
    wrong = {
        name: entry.model_copy(update={"blake3": "0" * 64}) for name, entry in snapshot.manifest.files.items()
    }
    manifest = snapshot.manifest.model_copy(update={"files": wrong})
    forged = replace(snapshot, stored=replace(snapshot.stored, manifest=manifest))
    monkeypatch.setattr(node.store, "get", lambda _id: forged)
    result = node.reseal()
    assert "not what was captured" in result["left"][0]["reason"]
    monkeypatch.undo()
    assert node.store.get(KEY.id).stored.sealed_with is None
