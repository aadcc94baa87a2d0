from __future__ import annotations

import os

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.expiry import VARIABLE, Expiry, ttl_from_environment
from glowplug.snapshot.manifest import MANIFEST_NAME, STATUS_NAME
from glowplug.snapshot.stored import Snapshot
from glowplug.types.clock import ManualClock
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir

from .conftest import Capture, garbage, make_key

DAY_S = 86_400.0


@pytest.fixture
def removed() -> list[int]:
    return []


@pytest.fixture
def expiry(store: SnapshotStore, clock: ManualClock, removed: list[int]) -> Expiry:
    return Expiry(store, 30 * DAY_S, clock, removed.append)


def _unused_for(snapshot: Snapshot, days: float, clock: ManualClock) -> None:
    at = clock.wall() - days * DAY_S
    for name in (MANIFEST_NAME, STATUS_NAME):
        if (snapshot.path / name).exists():
            os.utime(snapshot.path / name, (at, at))


def test_what_nobody_used_for_too_long_goes_with_its_content(
    store: SnapshotStore,
    capture: Capture,
    clock: ManualClock,
    state: StateDir,
    expiry: Expiry,
    removed: list[int],
) -> None:
    old, young = capture(), capture(make_key(command=["another"]))
    _unused_for(old, 30.01, clock)
    _unused_for(young, 29.99, clock)
    assert expiry.run(set()) == [old.id]
    assert [view.id for view in store.list()] == [young.id]
    assert garbage(state) == []
    assert expiry.run(set()) == []
    assert removed == [1]


@pytest.mark.parametrize("ok", [True, False])
def test_a_restore_is_a_use(
    store: SnapshotStore, capture: Capture, clock: ManualClock, expiry: Expiry, ok: bool
) -> None:
    snapshot = capture()
    _unused_for(snapshot, 100, clock)
    store.record_restore(snapshot.id, ok, "wrong answer")
    os.utime(snapshot.path / STATUS_NAME, (clock.wall(), clock.wall()))
    assert expiry.run(set()) == []


def test_the_snapshot_of_a_server_that_runs_stays(
    store: SnapshotStore, capture: Capture, clock: ManualClock, expiry: Expiry
) -> None:
    captured_here, restored_here = capture(), capture(make_key(command=["another"]), app="elsewhere")
    store.record_restore(restored_here.id, True, server="mine/web")
    for snapshot in (captured_here, restored_here):
        _unused_for(snapshot, 100, clock)
    assert expiry.run({"chat/vllm", "mine/web"}) == []
    assert set(expiry.run({"chat/another"})) == {captured_here.id, restored_here.id}


def test_one_that_is_in_use_or_cannot_be_read_stays(
    store: SnapshotStore, capture: Capture, clock: ManualClock, expiry: Expiry
) -> None:
    in_use, unsound = capture(), capture(make_key(command=["another"]))
    _unused_for(in_use, 100, clock)
    _unused_for(unsound, 100, clock)
    (unsound.path / MANIFEST_NAME).write_text("{}")
    with in_use.pin():
        assert expiry.run(set()) == []
    assert expiry.run(set()) == [in_use.id]


@pytest.mark.parametrize("text", ["soon", "-1", "59", "nan", "inf", "30d"])
def test_a_ttl_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=VARIABLE):
        ttl_from_environment({VARIABLE: text})


def test_without_a_ttl_snapshots_stay() -> None:
    assert ttl_from_environment({}) is None
    assert ttl_from_environment({VARIABLE: "3600"}) == 3600.0
