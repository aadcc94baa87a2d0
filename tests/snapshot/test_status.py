from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.manifest import STATUS_NAME
from glowplug.snapshot.status import USERS_KEPT
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotStatus

from .conftest import Capture, make_key, open_store


def test_three_failures_in_a_row_quarantine(store: SnapshotStore, capture: Capture) -> None:
    snapshot_id = capture().id
    for ok in (False, False, True, False, False):
        assert not store.record_restore(snapshot_id, ok, "wrong answer").is_quarantined
    assert store.find(make_key()) is not None
    assert store.record_restore(snapshot_id, False, "wrong answer again").is_quarantined
    assert store.find(make_key()) is None
    view = store.view(snapshot_id)
    assert (view.status, view.restores, view.failures) == (SnapshotStatus.QUARANTINED, 1, 5)
    assert view.reason == "wrong answer again"
    nearest = store.nearest(make_key(), "chat", "vllm")
    assert nearest is not None
    assert "quarantined: wrong answer again" in nearest.reason


def test_a_success_does_not_lift_a_quarantine_and_a_new_capture_does(
    store: SnapshotStore, capture: Capture
) -> None:
    snapshot_id = capture().id
    store.quarantine(snapshot_id, "flipped bits")
    store.record_restore(snapshot_id, True)
    assert store.find(make_key()) is None
    assert store.view(snapshot_id).reason == "flipped bits"
    capture()
    assert store.find(make_key()) is not None


def test_counters_survive_a_restart(store: SnapshotStore, capture: Capture, state: StateDir) -> None:
    store.record_restore(capture().id, True)
    assert open_store(state).list()[0].restores == 1


def test_who_was_restored_is_remembered_the_latest_first(store: SnapshotStore, capture: Capture) -> None:
    snapshot_id = capture().id
    for number in [*range(USERS_KEPT + 1), 3]:
        store.record_restore(snapshot_id, True, server=f"app-{number}/web")
    store.record_restore(snapshot_id, False, "wrong answer", "app-99/web")
    users = store.view(snapshot_id).used_by
    assert users[:2] == ["app-3/web", f"app-{USERS_KEPT}/web"]
    assert len(users) == USERS_KEPT


def test_a_record_of_before_users_were_noted_is_read(store: SnapshotStore, capture: Capture) -> None:
    snapshot = capture()
    old = {"format": 1, "restores": 4, "failures": 0, "consecutive_failures": 0}
    old |= {"is_quarantined": False, "reason": None}
    (snapshot.path / STATUS_NAME).write_text(json.dumps(old))
    assert (store.view(snapshot.id).restores, store.view(snapshot.id).used_by) == (4, [])


def test_no_count_is_lost_between_threads(store: SnapshotStore, capture: Capture) -> None:
    snapshot_id = capture().id
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store.record_restore, snapshot_id, True) for _ in range(40)]:
            done.result()
    assert store.view(snapshot_id).restores == 40


@pytest.mark.parametrize("content", [b"", b"{", b'{"restores": -1}', b"\xff", b"[" * 100_000, b" " * 100_000])
def test_a_status_that_cannot_be_read_counts_as_quarantined(
    store: SnapshotStore, capture: Capture, content: bytes
) -> None:
    snapshot = capture()
    (snapshot.path / STATUS_NAME).write_bytes(content)
    assert store.find(make_key()) is None
    assert "cannot be read" in (store.view(snapshot.id).reason or "")
