"""Of each server the latest used snapshots stay, and whatever happens the latest good one."""

from __future__ import annotations

import os

import pytest

from glowplug.snapshot import Snapshot, SnapshotStore
from glowplug.snapshot.manifest import MANIFEST_NAME, STATUS_NAME
from glowplug.snapshot.per_server import KEPT, VARIABLE, PerServer, kept_from_environment
from glowplug.types.errors import InvalidInput
from glowplug.types.paths import StateDir

from .conftest import Capture, garbage, make_key


@pytest.fixture
def removed() -> list[int]:
    return []


@pytest.fixture
def per_server(store: SnapshotStore, removed: list[int]) -> PerServer:
    return PerServer(store, 2, removed.append)


def _versions(capture: Capture, count: int, app: str = "chat") -> list[Snapshot]:
    """Of one server, the oldest first."""
    made = [capture(make_key(env={"APP": app, "VERSION": str(number)}), app=app) for number in range(count)]
    for number, snapshot in enumerate(made):
        _used_at(snapshot, 1_000_000.0 + number)
    return made


def _used_at(snapshot: Snapshot, at: float) -> None:
    for name in (MANIFEST_NAME, STATUS_NAME):
        if (snapshot.path / name).exists():
            os.utime(snapshot.path / name, (at, at))


def test_the_latest_used_of_each_server_stay_and_the_others_go_with_their_content(
    store: SnapshotStore, capture: Capture, state: StateDir, per_server: PerServer, removed: list[int]
) -> None:
    chat, told = _versions(capture, 4), _versions(capture, 2, app="told")
    _used_at(chat[0], 2_000_000.0)  # rolled back to
    assert set(per_server.run()) == {chat[1].id, chat[2].id}
    assert {view.id for view in store.list()} == {chat[0].id, chat[3].id, told[0].id, told[1].id}
    assert garbage(state) == []
    assert per_server.run() == []
    assert removed == [2]


def test_one_that_another_server_uses_stays(
    store: SnapshotStore, capture: Capture, per_server: PerServer
) -> None:
    chat = _versions(capture, 3)
    store.record_restore(chat[0].id, True, server="other/web")
    _used_at(chat[0], 1.0)
    assert per_server.run() == []


def test_the_good_stay_before_those_that_are_not(
    store: SnapshotStore, capture: Capture, per_server: PerServer
) -> None:
    chat = _versions(capture, 4)
    for bad in chat[1:]:
        store.quarantine(bad.id, "wrong answers")
        _used_at(bad, 2_000_000.0 + chat.index(bad))
    assert set(per_server.run()) == {chat[1].id, chat[2].id}
    assert {view.id for view in store.list()} == {chat[0].id, chat[3].id}


def test_one_that_is_in_use_or_cannot_be_read_stays(
    store: SnapshotStore, capture: Capture, per_server: PerServer, removed: list[int]
) -> None:
    chat = _versions(capture, 4)
    (chat[0].path / MANIFEST_NAME).write_text("{}")
    with chat[1].pin():
        assert per_server.run() == []
    assert removed == []
    assert per_server.run() == [chat[1].id]
    assert len(store.list()) == 3


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "٣"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=VARIABLE):
        kept_from_environment({VARIABLE: text})


def test_a_number_is_kept_unless_told_otherwise() -> None:
    assert kept_from_environment({}) == KEPT
    assert kept_from_environment({VARIABLE: "1"}) == 1
