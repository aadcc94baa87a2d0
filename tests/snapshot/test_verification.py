from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.manifest import MANIFEST_NAME
from glowplug.types.errors import SnapshotInvalid
from glowplug.types.paths import StateDir

from .conftest import FILES, Capture, make_draft, make_key, write_files


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_named(capture: Capture, name: str) -> None:
    snapshot = capture()
    os.truncate(snapshot.path / name, len(FILES[name]) - 1)
    with pytest.raises(SnapshotInvalid, match=f"{name} has .* bytes instead of"):
        snapshot.verify()
    (snapshot.path / name).unlink()
    with pytest.raises(SnapshotInvalid, match=f"{name} is missing"):
        snapshot.verify()


def test_a_file_nobody_listed_is_named(capture: Capture) -> None:
    snapshot = capture()
    (snapshot.path / "extra.img").write_bytes(b"x")
    with pytest.raises(SnapshotInvalid, match=r"extra\.img is not listed"):
        snapshot.verify()


@pytest.mark.parametrize("target", ["link", "pipe", "folder"])
def test_a_file_that_became_something_else_is_refused(capture: Capture, tmp_path: Path, target: str) -> None:
    snapshot = capture()
    path = snapshot.path / "pages.img"
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
    store = SnapshotStore(StateDir(tmp_path_factory.getbasetemp() / "flips"))
    snapshot = store.find(make_key())
    if snapshot is None:
        with store.begin(make_key()) as staging:
            write_files(staging.path)
            snapshot = staging.commit(make_draft())
    path = snapshot.path / data.draw(st.sampled_from([*FILES, MANIFEST_NAME]))
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
    with ThreadPoolExecutor(1) as pool:
        assert snapshot.start_verification(pool).result(30) is None
        (snapshot.path / "pages.img").write_bytes(b"\0" * len(FILES["pages.img"]))
        with pytest.raises(SnapshotInvalid, match=r"pages\.img was altered"):
            snapshot.start_verification(pool).result(30)


def test_progress_ends_at_the_total(capture: Capture) -> None:
    snapshot = capture(files={"a": b"x" * (3 << 20), "b": b"y"})
    seen: list[tuple[int, int]] = []
    snapshot.verify(lambda done, total: seen.append((done, total)))
    assert len(seen) >= 4
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (snapshot.manifest.total_bytes, snapshot.manifest.total_bytes)
