from __future__ import annotations

import os
from dataclasses import replace

import pytest

from glowplug.snapshot import SnapshotStore
from glowplug.snapshot.canary import record
from glowplug.snapshot.manifest import MANIFEST_NAME
from glowplug.types.errors import Conflict, ResourceExhausted, SnapshotInvalid
from glowplug.types.paths import StateDir
from glowplug.types.spec import HttpCall

from .conftest import Capture, garbage, make_draft, make_key, write_files


def test_a_capture_that_fails_leaves_nothing(store: SnapshotStore, state: StateDir) -> None:
    def fail_while_capturing() -> None:
        with store.begin(make_key()) as staging:
            write_files(staging.path)
            raise RuntimeError("the runtime said no")

    with pytest.raises(RuntimeError, match="said no"):
        fail_while_capturing()
    assert store.find(make_key()) is None
    assert garbage(state) == []


def test_a_second_capture_of_one_key_conflicts_and_of_another_does_not(
    store: SnapshotStore, capture: Capture
) -> None:
    with store.begin(make_key()):
        with pytest.raises(Conflict, match="being captured"):
            capture()
        capture(make_key("im-2"))
    capture()


def test_a_sealed_snapshot_can_be_tried_before_anybody_finds_it(store: SnapshotStore) -> None:
    with store.begin(make_key()) as staging:
        write_files(staging.path)
        sealed = staging.seal(make_draft())
        with sealed.pin():
            sealed.verify()
        assert sealed.path == staging.path
        assert [path.name for path in staging.path.iterdir()] == [MANIFEST_NAME], "the files have moved"
        assert store.find(make_key()) is None
        published = staging.publish()
        assert not staging.path.exists()
    published.verify()
    assert published.manifest == sealed.manifest


def test_sealing_and_publishing_happen_once_and_in_order(store: SnapshotStore) -> None:
    with store.begin(make_key()) as staging:
        write_files(staging.path)
        with pytest.raises(Conflict, match="not sealed"):
            staging.publish()
        staging.commit(make_draft())
        with pytest.raises(Conflict, match="sealed already"):
            staging.seal(make_draft())
        with pytest.raises(Conflict, match="published already"):
            staging.publish()


@pytest.mark.parametrize("odd", ["folder", "link", "pipe", "manifest", "nothing", "name"])
def test_a_capture_no_manifest_can_describe_is_refused(
    store: SnapshotStore, state: StateDir, odd: str
) -> None:
    with store.begin(make_key()) as staging:
        if odd != "nothing":
            write_files(staging.path)
        if odd == "folder":
            (staging.path / "deep").mkdir()
        elif odd == "link":
            (staging.path / "link").symlink_to("/etc/passwd")
        elif odd == "pipe":
            os.mkfifo(staging.path / "pipe")
        elif odd == "manifest":
            (staging.path / MANIFEST_NAME).write_text("{}")
        elif odd == "name":
            (staging.path / "two words").write_text("")
        with pytest.raises(SnapshotInvalid):
            staging.commit(make_draft())
    assert garbage(state) == []


def test_too_little_space_is_told_before_anything_is_written(store: SnapshotStore, state: StateDir) -> None:
    with pytest.raises(ResourceExhausted, match="GB are free") as caught, store.begin(make_key(), 1 << 60):
        pytest.fail("the block must not run")
    assert "snapshot rm" in caught.value.remedy
    assert garbage(state) == []


def test_a_canary_that_is_not_plain_json_is_refused_when_sealed(
    store: SnapshotStore, state: StateDir
) -> None:
    # No model lets it in; what is written is checked all the same.
    call = HttpCall(path="/").model_copy(update={"json_body": {"temperature": float("nan")}})
    draft = replace(make_draft(), canary=[record(call, 200, {}, b"{}")])
    with store.begin(make_key()) as staging:
        write_files(staging.path)
        with pytest.raises(SnapshotInvalid, match="cannot be written"):
            staging.commit(draft)
    assert garbage(state) == []
