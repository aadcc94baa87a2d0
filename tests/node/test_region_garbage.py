"""What a region keeps of snapshots and nobody needs goes, and nothing that anybody relies on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.snapshot.conftest import make_draft, make_key

from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.image.file_trees import FileTrees
from glowplug.image.job import Job
from glowplug.image.node_images import open_images
from glowplug.image.region_refs import Ref, ref_key
from glowplug.image.region_trees import CollectedTrees
from glowplug.node.snapshot_moves import SnapshotMoves
from glowplug.snapshot import Snapshot, SnapshotStore
from glowplug.snapshot.region import RegionSnapshots
from glowplug.types.clock import SystemClock
from glowplug.types.errors import Conflict, SnapshotInvalid
from glowplug.types.paths import StateDir

DAY_S = 24 * 3600.0


def quiet(_text: str, _fraction: float | None) -> None:
    """Nobody looks."""


@pytest.fixture
def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegionSnapshots]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setenv("GLOWPLUG_REGION", str(tmp_path / "region"))
    objects = ObstoreObjects(str(tmp_path / "region"))
    yield RegionSnapshots(objects)
    objects.close()


@pytest.fixture
def moves(tmp_path: Path, region: RegionSnapshots) -> Iterator[SnapshotMoves]:
    state = StateDir(tmp_path / "state")
    state.create()
    images = open_images(state)
    clock = SystemClock()
    yield SnapshotMoves(SnapshotStore(state, images.files), images.files, lambda: region, clock)
    images.release_all()
    images.close()


def capture(moves: SnapshotMoves, content: bytes, number: int = 0) -> Snapshot:
    with moves.snapshots.begin(make_key(env={"N": str(number)})) as staging:
        (staging.path / "pages.img").write_bytes(content)
        return staging.commit(make_draft())


def push(moves: SnapshotMoves, snapshot: Snapshot) -> None:
    moves.push(snapshot.id, quiet, threading.Event())


def collect(moves: SnapshotMoves, grace_s: float = 0.0) -> tuple[int, int]:
    found = moves.collect_in_region(quiet, threading.Event(), grace_s=grace_s)
    return found["removed"], found["waiting"]


def contents(region: RegionSnapshots) -> set[str]:
    return {info.key.split("/")[1] for info in region.objects.list("images/")}


def test_what_a_second_push_replaced_goes_after_the_grace_period(
    moves: SnapshotMoves, region: RegionSnapshots
) -> None:
    old = capture(moves, os.urandom(100_000))
    push(moves, old)
    new = capture(moves, os.urandom(100_000))
    push(moves, new)
    assert contents(region) == {old.manifest.content, new.manifest.content}
    assert collect(moves, DAY_S) == (0, 1)
    assert contents(region) == {old.manifest.content, new.manifest.content}, "somebody may be restoring it"
    assert collect(moves) == (1, 0)
    assert contents(region) == {new.manifest.content}
    assert collect(moves) == (0, 0)


def test_removing_a_snapshot_spares_what_another_one_needs(
    moves: SnapshotMoves, region: RegionSnapshots
) -> None:
    one, other = capture(moves, b"same" * 5000, 1), capture(moves, b"same" * 5000, 2)
    assert one.manifest.content == other.manifest.content
    push(moves, one)
    push(moves, other)
    moves.remove_from_region(one.id)
    assert contents(region) == {one.manifest.content}
    moves.remove_from_region(other.id)
    assert contents(region) == set()


def test_what_an_interrupted_push_left_goes_and_what_is_named_or_no_snapshots_stays(
    moves: SnapshotMoves, region: RegionSnapshots
) -> None:
    named, half = capture(moves, os.urandom(9000), 1), capture(moves, os.urandom(9000), 2)
    for snapshot in (named, half):
        push(moves, snapshot)
        region.remove(snapshot.id)
    region.objects.write(ref_key("name"), Ref(named.manifest.content).encode(), 10.0)
    region.objects.delete([f"images/{half.manifest.content}/manifest.json"])
    region.objects.write("images/readme", b"not ours", 10.0)
    assert collect(moves) == (1, 0)
    assert contents(region) == {named.manifest.content, "readme"}


def test_other_kinds_of_trees_are_others_business(moves: SnapshotMoves, region: RegionSnapshots) -> None:
    snapshot = capture(moves, os.urandom(9000))
    push(moves, snapshot)
    region.remove(snapshot.id)
    files = moves.files
    others = FileTrees(files._state, files._ssd, files._catalog, files._starts, kind="other")
    job = Job(quiet, SystemClock(), SystemClock().monotonic() + 60.0)
    assert others.collect_in_region(set, job, 0.0) == CollectedTrees(0, 0)
    assert contents(region) == {snapshot.manifest.content}


def test_nothing_is_removed_between_a_pushs_content_and_its_manifest(
    moves: SnapshotMoves, region: RegionSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = capture(moves, os.urandom(9000))
    push(moves, snapshot)
    region.remove(snapshot.id)
    assert collect(moves, DAY_S) == (0, 1)
    write, refusals = region.write, []

    def collect_first(manifest: object) -> None:
        with pytest.raises(Conflict) as refused:
            collect(moves)
        refusals.append(refused)
        write(snapshot.stored)

    monkeypatch.setattr(RegionSnapshots, "write", lambda _self, manifest: collect_first(manifest))
    push(moves, snapshot)
    assert len(refusals) == 1
    assert collect(moves) == (0, 0)
    assert contents(region) == {snapshot.manifest.content}


def test_nothing_is_removed_while_a_snapshot_does_not_tell_what_it_needs(
    moves: SnapshotMoves, region: RegionSnapshots
) -> None:
    snapshot = capture(moves, os.urandom(9000))
    push(moves, snapshot)
    region.objects.write(f"snapshots/{snapshot.id}.json", b"{}", 10.0)
    with pytest.raises(SnapshotInvalid, match="not known what") as refused:
        collect(moves)
    assert f"snapshot rm --region {snapshot.id}" in refused.value.remedy
    assert contents(region) == {snapshot.manifest.content}
    moves.remove_from_region(snapshot.id)
    assert collect(moves) == (1, 0)
