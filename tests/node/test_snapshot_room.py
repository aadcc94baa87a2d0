"""Room for snapshots is limited: only copies stay, of the others the longest unused goes first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.test_region_garbage import capture, contents, push
from tests.node.test_region_garbage import region as region  # a fixture

from glowplug.image import node_store
from glowplug.image.node_images import NodeImages, open_images
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.snapshot import Snapshot, SnapshotStore
from glowplug.snapshot.region import RegionSnapshots
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import ResourceExhausted
from glowplug.types.paths import StateDir

SIZE_BYTES = 20 << 20
HOUR_S = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(time.time())
    monkeypatch.setattr(node_store, "SystemClock", lambda: clock)
    return clock


@pytest.fixture
def images(
    tmp_path: Path, region: RegionSnapshots, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NodeImages]:
    monkeypatch.setenv("GLOWPLUG_SSD_BYTES", "64M")  # three of these snapshots
    state = StateDir(tmp_path / "state")
    state.create()
    images = open_images(state)
    yield images
    images.release_all()
    images.close()


@pytest.fixture
def moves(tmp_path: Path, images: NodeImages, region: RegionSnapshots) -> SnapshotMoves:
    store = SnapshotStore(StateDir(tmp_path / "state"), images.files)
    return SnapshotMoves(store, images.files, lambda: region, SystemClock())


def missing_bytes(*snapshots: Snapshot) -> list[int]:
    return [snapshot.missing_bytes() for snapshot in snapshots]


def test_the_longest_unused_copy_of_what_the_region_has_goes_first(
    moves: SnapshotMoves, region: RegionSnapshots, clock: ManualClock
) -> None:
    used, unused = capture(moves, os.urandom(SIZE_BYTES), 1), capture(moves, os.urandom(SIZE_BYTES), 2)
    push(moves, used)
    push(moves, unused)
    only_here = capture(moves, os.urandom(SIZE_BYTES), 3)
    assert missing_bytes(used, unused, only_here) == [0, 0, 0]
    clock.advance(HOUR_S)
    moves.snapshots.record_restore(used.id, True, server="chat/vllm")
    clock.advance(HOUR_S)
    latest = capture(moves, os.urandom(SIZE_BYTES), 4)
    assert missing_bytes(used, only_here, latest) == [0, 0, 0]
    assert unused.missing_bytes() > 0, "captured after the other one, but not used since"
    assert moves.snapshots.view(unused.id).is_in_region
    assert contents(region) == {used.manifest.content, unused.manifest.content}


def test_the_only_copies_stay_and_another_capture_is_refused(
    moves: SnapshotMoves, clock: ManualClock
) -> None:
    kept = [capture(moves, os.urandom(SIZE_BYTES), number) for number in range(3)]
    clock.advance(HOUR_S)
    with pytest.raises(ResourceExhausted):
        capture(moves, os.urandom(SIZE_BYTES), 9)
    assert missing_bytes(*kept) == [0, 0, 0]
    for snapshot in kept:
        snapshot.verify()
    moves.snapshots.remove(kept[0].id)
    capture(moves, os.urandom(SIZE_BYTES), 9)
    assert missing_bytes(*kept[1:]) == [0, 0]
