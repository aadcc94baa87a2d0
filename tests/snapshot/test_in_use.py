from __future__ import annotations

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.types.errors import Conflict, NotFound
from glowplug.types.paths import StateDir

from .conftest import Capture, garbage, make_key

OLD = {"pages.img": b"old" * 1000}
NEW = {"pages.img": b"new" * 2000}


def test_a_new_capture_replaces_the_old_one(store: SnapshotStore, capture: Capture, state: StateDir) -> None:
    old = capture(files=OLD)
    store.record_restore(old.id, ok=False, reason="wrong answer")
    new = capture(files=NEW)
    assert store.get(old.id) == new
    assert not old.path.exists()
    assert store.view(new.id).failures == 0
    assert garbage(state) == []


def test_a_restore_from_the_old_generation_survives_its_replacement(
    store: SnapshotStore, capture: Capture, state: StateDir
) -> None:
    old = capture(files=OLD)
    with old.pin():
        new = capture(files=NEW)
        old.verify()
        assert (old.open() / "pages.img").read_bytes() == OLD["pages.img"]
        assert store.get(old.id) == new
    assert not old.path.exists()
    assert garbage(state) == []


def test_the_last_of_several_users_lets_the_old_generation_go(store: SnapshotStore, capture: Capture) -> None:
    old = capture(files=OLD)
    with old.pin():
        with old.pin():
            capture(files=NEW)
        old.verify()
    assert not old.path.exists()


def test_a_replaced_snapshot_cannot_be_pinned_any_more(capture: Capture) -> None:
    old = capture(files=OLD)
    capture(files=NEW)
    with pytest.raises(NotFound, match="a moment ago"), old.pin():
        pytest.fail("the block must not run")


def test_removing_frees_everything(store: SnapshotStore, capture: Capture, state: StateDir) -> None:
    snapshot = capture()
    store.remove(snapshot.id)
    assert store.list() == []
    assert not snapshot.path.exists()
    assert garbage(state) == []


def test_a_snapshot_in_use_is_removed_only_by_force_and_then_kept_for_its_user(
    store: SnapshotStore, capture: Capture, state: StateDir
) -> None:
    snapshot = capture()
    with snapshot.pin():
        with pytest.raises(Conflict, match="in use"):
            store.remove(snapshot.id)
        store.remove(snapshot.id, force=True)
        assert store.find(make_key()) is None
        snapshot.verify()
        assert store.sweep() == ()
    assert not snapshot.path.exists()
    assert garbage(state) == []


def test_an_unused_pin_does_not_remove_the_current_snapshot(store: SnapshotStore, capture: Capture) -> None:
    with capture().pin():
        pass
    store.get(make_key().id).verify()
