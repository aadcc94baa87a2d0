from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.manifest import MANIFEST_NAME
from glowplug.types.clock import ManualClock
from glowplug.types.errors import NotFound, SnapshotInvalid
from glowplug.types.paths import StateDir
from glowplug.types.replica import SnapshotStatus

from .conftest import FILES, Capture, garbage, make_draft, make_key, write_files

OLD = {"pages.img": b"old" * 1000}
NEW = {"pages.img": b"new" * 2000}


def test_a_committed_snapshot_is_found_by_its_key(
    store: SnapshotStore, capture: Capture, state: StateDir
) -> None:
    committed = capture()
    found = store.find(make_key())
    assert found is not None
    assert found == committed
    assert {name: (found.open() / name).read_bytes() for name in FILES} == FILES
    assert (state.snapshots / found.id / MANIFEST_NAME).is_file()
    found.verify()
    assert garbage(state) == []


def test_the_view_tells_what_the_api_promises(store: SnapshotStore, capture: Capture) -> None:
    capture()
    [view] = store.list()
    assert (view.id, view.app, view.server, view.status) == (
        make_key().id,
        "chat",
        "vllm",
        SnapshotStatus.GOOD,
    )
    assert view.bytes == sum(map(len, FILES.values()))
    assert (view.capture_s, view.frozen_s, view.created_at) == (9.5, 2.25, 1_700_000_000.0)
    assert view.key == make_key().digest
    assert view.key_fields == make_key().fields
    assert view == store.view(view.id)


def test_an_empty_store_has_nothing_and_creates_nothing(store: SnapshotStore, state: StateDir) -> None:
    assert store.list() == []
    assert store.find(make_key()) is None
    assert store.nearest(make_key(), "chat", "vllm") is None
    assert not state.root.exists()
    assert store.sweep() == ()


@pytest.mark.parametrize(
    "snapshot_id", ["sn-0000000000000000", "", "..", "../../etc", ".staging", "sn-" + "0" * 17]
)
def test_an_id_that_names_no_snapshot_is_not_found(
    store: SnapshotStore, capture: Capture, snapshot_id: str
) -> None:
    capture()
    for call in (
        store.get,
        store.view,
        store.remove,
        lambda i: store.quarantine(i, ""),
        lambda i: store.record_restore(i, True),
    ):
        with pytest.raises(NotFound, match="no snapshot"):
            call(snapshot_id)


def test_listing_is_newest_first(store: SnapshotStore, capture: Capture, clock: ManualClock) -> None:
    keys = [make_key(f"im-{n}") for n in range(3)]
    for key in keys:
        capture(key)
        clock.advance(1)
    assert [view.id for view in store.list()] == [key.id for key in reversed(keys)]


def test_a_broken_manifest_is_listed_refused_explained_and_replaceable(
    store: SnapshotStore, capture: Capture
) -> None:
    snapshot = capture()
    (snapshot.path / MANIFEST_NAME).write_bytes(b"{")
    with pytest.raises(SnapshotInvalid, match="not JSON"):
        store.find(make_key())
    [view] = store.list()
    assert view.status is SnapshotStatus.QUARANTINED
    assert "not JSON" in (view.reason or "")
    nearest = store.nearest(make_key(), "chat", "vllm")
    assert nearest is not None
    assert "not JSON" in nearest.reason
    capture()
    assert store.find(make_key()) is not None


@pytest.mark.parametrize("kind", ["folder", "file", "link elsewhere", "dangling"])
def test_something_foreign_under_a_snapshot_s_name_is_refused_and_removable(
    store: SnapshotStore, capture: Capture, state: StateDir, tmp_path: Path, kind: str
) -> None:
    capture(make_key("im-2"))
    link = state.snapshots / make_key().id
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("data")

    def place() -> None:
        if kind == "folder":
            link.mkdir()
            (link / "f").write_text("x")
        elif kind == "file":
            link.write_text("x")
        elif kind == "link elsewhere":
            link.symlink_to(elsewhere)
        else:
            link.symlink_to(f".generations/{make_key().id}.gone")

    place()
    with pytest.raises(SnapshotInvalid):
        store.find(make_key())
    assert len(store.list()) == 2
    store.remove(make_key().id)
    assert not os.path.lexists(link)
    place()
    capture()
    store.get(make_key().id).verify()
    assert (elsewhere / "precious").read_text() == "data"


def test_the_nearest_snapshot_of_the_same_server_explains_the_miss(
    store: SnapshotStore, capture: Capture, clock: ManualClock
) -> None:
    capture(make_key("im-1", port=1, env={}))
    capture(make_key("im-1", port=2))
    clock.advance(1)
    newest = capture(make_key("im-1", port=3))
    capture(make_key("im-9", port=8000), app="other")
    nearest = store.nearest(make_key("im-1", port=9), "chat", "vllm")
    assert nearest is not None
    assert nearest.snapshot_id == newest.id
    assert nearest.differences == [("port", "9", "3")]
    assert nearest.reason == "port is 9, was 3"
    assert store.nearest(make_key("im-1", port=9), "chat", "other-server") is None


def test_sweeping_removes_what_the_dead_left_and_spares_the_living(
    store: SnapshotStore, capture: Capture, state: StateDir
) -> None:
    kept = capture()
    dead, living = make_key("im-2"), make_key("im-3")
    generations = state.snapshots / ".generations"
    (state.snapshot_staging / f"{dead.id}.abcd1234").mkdir()
    write_files(state.snapshot_staging / f"{dead.id}.abcd1234")
    (state.snapshot_staging / f"{dead.id}.lock").touch()
    (state.snapshot_staging / f"{dead.id}.abcd1234.link").symlink_to("nowhere")
    (generations / f"{dead.id}.zzzz").mkdir()
    (state.snapshot_staging / "not ours").touch()
    with store.begin(living) as staging:
        write_files(staging.path)
        removed = store.sweep()
        assert removed == (
            f"{dead.id}.abcd1234",
            f"{dead.id}.abcd1234.link",
            f"{dead.id}.lock",
            f"{dead.id}.zzzz",
        )
        staging.commit(make_draft())
    assert {view.id for view in store.list()} == {kept.id, living.id}
    assert garbage(state) == ["not ours"]


def test_readers_always_find_a_whole_snapshot_while_it_is_replaced_and_removed(
    store: SnapshotStore, capture: Capture, state: StateDir
) -> None:
    capture(files=OLD)
    stop = threading.Event()

    def read() -> int:
        restores = 0
        while not (stop.is_set() and restores):
            snapshot = store.find(make_key())
            if snapshot is None:
                continue
            try:
                with snapshot.pin():
                    snapshot.verify()
                    restores += 1
            except NotFound:
                continue
        return restores

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for round_number in range(15):
                capture(files=NEW if round_number % 2 else OLD)
                if round_number % 5 == 2:
                    store.remove(make_key().id, force=True)
        finally:
            stop.set()
        assert all(reader.result(60) for reader in readers)
    store.sweep()
    assert garbage(state) == []
