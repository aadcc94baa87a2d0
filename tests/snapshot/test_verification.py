from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.snapshot.manifest import MANIFEST_NAME
from glowplug.snapshot.stored import Progress, Snapshot
from glowplug.snapshot.verification import Verifications
from glowplug.types.errors import Conflict, SnapshotInvalid
from glowplug.types.paths import StateDir

from .conftest import FILES, Capture, make_draft, make_key, open_store, write_files


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(capture: Capture, name: str) -> None:
    snapshot = capture()
    os.truncate(snapshot.open() / name, len(FILES[name]) - 1)
    with pytest.raises(SnapshotInvalid, match=f"{name} has .* bytes instead of"):
        snapshot.verify()
    (snapshot.open() / name).unlink()
    with pytest.raises(SnapshotInvalid, match=f"{name} is missing"):
        snapshot.verify()


def test_a_file_nobody_listed_is_named(capture: Capture) -> None:
    snapshot = capture()
    (snapshot.open() / "extra.img").write_bytes(b"x")
    with pytest.raises(SnapshotInvalid, match=r"extra\.img is not listed"):
        snapshot.verify()


@pytest.mark.parametrize("target", ["link", "pipe", "folder"])
def test_a_file_that_became_something_else_is_refused(capture: Capture, tmp_path: Path, target: str) -> None:
    snapshot = capture()
    path = snapshot.open() / "pages.img"
    path.rename(tmp_path / "pages.img")
    if target == "link":
        path.symlink_to(tmp_path / "pages.img")
    elif target == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(SnapshotInvalid, match=r"pages\.img"):
        snapshot.verify()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_in_any_file_is_noticed(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store(StateDir(tmp_path_factory.getbasetemp() / "flips"))
    snapshot = store.find(make_key())
    if snapshot is None:
        with store.begin(make_key()) as staging:
            write_files(staging.path)
            snapshot = staging.commit(make_draft())
    name = data.draw(st.sampled_from([*FILES, MANIFEST_NAME]))
    path = (snapshot.path if name == MANIFEST_NAME else snapshot.open()) / name
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    try:
        with pytest.raises(SnapshotInvalid) as caught:
            store.get(snapshot.id).verify()
    finally:
        path.write_bytes(good)
    assert caught.value.details["file"] == path.name
    store.get(snapshot.id).verify()


def test_verification_runs_beside_the_restore_and_its_future_holds_the_verdict(capture: Capture) -> None:
    snapshot = capture()
    verifications = Verifications()
    with ThreadPoolExecutor(1) as pool:
        assert verifications.join(snapshot, pool).result(30) is None
        (snapshot.open() / "pages.img").write_bytes(b"\0" * len(FILES["pages.img"]))
        with pytest.raises(SnapshotInvalid, match=r"pages\.img was altered"):
            verifications.join(snapshot, pool).result(30)


@dataclass(frozen=True)
class HeldUp(Snapshot):
    """A snapshot whose verification waits at its first byte; ``readings`` counts them."""

    go: threading.Event = field(default_factory=threading.Event, compare=False)
    readings: list[str] = field(default_factory=list, compare=False)

    def verify(self, progress: Progress | None = None, stopped: threading.Event | None = None) -> None:
        assert stopped is not None
        self.readings.append("reading")
        while not self.go.wait(0.001):
            if stopped.is_set():
                raise Conflict("stopped")
        super().verify(progress, stopped)


@pytest.fixture
def held_up(capture: Capture) -> HeldUp:
    snapshot = capture()
    return HeldUp(snapshot.path, snapshot.stored, snapshot.content, snapshot.on_unpinned)


def test_copies_that_are_restored_at_once_are_proved_by_one_reading(held_up: HeldUp) -> None:
    verifications = Verifications()
    with ThreadPoolExecutor(4) as pool:
        verdicts = [verifications.join(held_up, pool) for _ in range(4)]
        held_up.go.set()
        assert [verdict.result(30) for verdict in verdicts] == [None] * 4
        assert len(held_up.readings) == 1
        verifications.join(held_up, pool).result(30)
        assert len(held_up.readings) == 2, "a later restore is proved by a reading of its own"


def test_all_of_them_hear_of_a_wrong_byte(held_up: HeldUp) -> None:
    (held_up.open() / "pages.img").write_bytes(b"\0" * len(FILES["pages.img"]))
    verifications = Verifications()
    with ThreadPoolExecutor(4) as pool:
        verdicts = [verifications.join(held_up, pool) for _ in range(3)]
        held_up.go.set()
        failures = [verdict.exception(30) for verdict in verdicts]
    named = [failure.details["file"] for failure in failures if isinstance(failure, SnapshotInvalid)]
    assert named == ["pages.img"] * 3
    assert len({id(failure) for failure in failures}) == 3


def test_who_leaves_does_not_stop_it_for_the_others_but_the_last_one_does(held_up: HeldUp) -> None:
    verifications = Verifications()
    with ThreadPoolExecutor(4) as pool:
        first, second, third = (verifications.join(held_up, pool) for _ in range(3))
        verifications.leave(held_up, first)
        assert isinstance(first.exception(0), Conflict), "at once"
        held_up.go.set()
        assert second.result(30) is third.result(30) is None
        held_up.go.clear()
        last = verifications.join(held_up, pool)
        verifications.leave(held_up, last)
        assert isinstance(last.exception(30), Conflict)
        assert len(held_up.readings) == 2
        verifications.leave(held_up, last)  # it is over: nothing happens


def test_progress_ends_at_the_total(capture: Capture) -> None:
    snapshot = capture(files={"a": b"x" * (3 << 20), "b": b"y"})
    seen: list[tuple[int, int]] = []
    snapshot.verify(lambda done, total: seen.append((done, total)))
    assert len(seen) >= 4
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (snapshot.manifest.total_bytes, snapshot.manifest.total_bytes)


def test_a_verification_that_nobody_waits_for_is_stopped(capture: Capture) -> None:
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Conflict):
        capture().verify(stopped=stopped)
