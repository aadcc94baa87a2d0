"""A snapshot captured on one node is restored on another that has an empty cache, by way of the region."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cloud import running_cloud
from tests.e2e.live import TOOLBOX, UP_TIMEOUT_S, Live
from tests.ports import free_port
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc
from tests.snapshot.kept_files import flip_a_bit

from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import SnapshotStatus, StartPath

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]

APP_FILE = """
import glowplug as gp

app = gp.App("moving")


@app.server(
    image=gp.Image.host_python(), memory="256MiB", scaledown_window_s=60, snapshot=True, env={env!r},
    runtime={runtime!r},
)
def web():
    return {command!r}
"""


@pytest.fixture
def region(tmp_path: Path) -> str:
    folder = tmp_path / "region"
    folder.mkdir()
    return str(folder)


@pytest.fixture
def first(region: str) -> Iterator[Live]:
    with Live(GLOWPLUG_REGION=region) as live:
        yield live


@pytest.fixture(scope="module")
def shared_region(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("region"))


@pytest.fixture(scope="module")
def node(shared_region: str) -> Iterator[Live]:
    """For tests of one snapshot each, whose servers have nothing in common."""
    with Live(GLOWPLUG_REGION=shared_region) as live:
        yield live


SLOW_TO_START = "import time; time.sleep(2)\n"
"""What starts at once is not worth bytes from a region, and a node knows that."""


def deploy(live: Live, folder: Path, runtime: str = "runsc") -> str:
    """The same server wherever it is deployed, and no other test's."""
    if runtime == "runc":
        require_runc()
    file = folder / "app.py"
    command = ["python3", "-c", SLOW_TO_START + TOOLBOX.read_text()]
    env = {"GLOWPLUG_TEST": str(folder)}
    file.write_text(APP_FILE.format(command=command, env=env, runtime=runtime))
    name = live.new_name("moving")
    live.deploy(file, name)
    return name


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_a_pushed_snapshot_is_restored_by_a_node_that_never_ran_the_server(
    node: Live, shared_region: str, tmp_path: Path, runtime: str
) -> None:
    name = deploy(node, tmp_path, runtime)
    node.get(f"/{name}/web/who")
    snapshot = node.wait_for_snapshot(name)
    assert not node.listing("snapshot", "show", snapshot.id)["is_in_region"]
    assert node.listing("snapshot", "push", snapshot.id)["sent_bytes"] > 0
    assert node.listing("snapshot", "push", snapshot.id)["sent_bytes"] == 0, "what is there is not sent"
    assert node.listing("snapshot", "show", snapshot.id)["is_in_region"]
    with Live(GLOWPLUG_REGION=shared_region) as other:
        assert other.listing("snapshot", "pull", snapshot.id)["bytes"] == 0
        [known] = other.listing("snapshot", "ls")
        assert (known["id"], known["status"], known["here_bytes"]) == (snapshot.id, "good", 0)
        same = deploy(other, tmp_path, runtime)
        (app,) = other.listing("status")["apps"]
        assert app["servers"][0]["heat"] == {"heat": "region", "snapshot_id": snapshot.id, "reason": None}
        other.restored(same)
        assert other.cold_starts(same)[0].path is StartPath.CPU_SNAPSHOT
        [restored] = other.listing("snapshot", "ls")
        assert restored["here_bytes"] > restored["bytes"] * 0.9, "the memory has come with the restore"
        other.wait_for(lambda: other.snapshot(snapshot.id).restores == 1, "the restore is noted")


def fetched_bytes(record: ColdStartRecord) -> int:
    return sum(count for tier, count in record.bytes_by_tier.items() if tier != "ssd")


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_a_server_is_restored_from_the_region_without_anybody_asking(
    region: str, tmp_path: Path, runtime: str
) -> None:
    with Live(GLOWPLUG_REGION=region, GLOWPLUG_SHARE_SNAPSHOTS="push") as first:
        name = deploy(first, tmp_path, runtime)
        first.get(f"/{name}/web/who")
        snapshot = first.wait_for_snapshot(name)
        first.wait_for(lambda: first.snapshot(snapshot.id).is_in_region, "the push")
    with Live(GLOWPLUG_REGION=region) as other:
        same = deploy(other, tmp_path, runtime)
        other.restored(same)  # its first start on this node
        (record,) = other.cold_starts(same)
        assert (record.path, record.snapshot_id) == (StartPath.CPU_SNAPSHOT, snapshot.id)
        assert fetched_bytes(record) > snapshot.bytes * 0.9
        assert "region" in other.cli("coldstarts", same).stdout
        [known] = other.listing("snapshot", "ls", same)
        assert (known["app"], known["used_by"]) == (name, [f"{same}/web"]), "listed for whoever uses it here"
        other.rest(same)
        other.restored(same)
        assert fetched_bytes(other.cold_starts(same)[0]) == 0, "by now it is here"


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_an_empty_node_restores_through_the_zone_cache(tmp_path: Path, runtime: str) -> None:
    with running_cloud("gp-snapshots") as cloud:
        with Live(**cloud.node, GLOWPLUG_SHARE_SNAPSHOTS="push") as first:
            name = deploy(first, tmp_path, runtime)
            first.get(f"/{name}/web/who")
            snapshot = first.wait_for_snapshot(name)
            first.wait_for(lambda: first.snapshot(snapshot.id).is_in_region, "the push")
        with Live(**cloud.node) as other:
            same = deploy(other, tmp_path, runtime)
            other.restored(same)
            (record,) = other.cold_starts(same)
            assert record.bytes_by_tier["zone"] > snapshot.bytes * 0.9
            asked_again_bytes = record.bytes_by_tier.get("region", 0)
            assert asked_again_bytes < snapshot.bytes * 0.1, (
                "a read that takes a second is tried elsewhere too"
            )
        cloud.server.kill()
        with Live(**cloud.node) as third:
            cold = deploy(third, tmp_path, runtime)
            assert third.get(f"/{cold}/web/who")["restored"] is False, "nobody tells which snapshot it is"


@pytest.mark.nightly
def test_a_snapshot_captured_before_the_region_was_there_is_brought_there_later(
    region: str, tmp_path: Path
) -> None:
    with Live(GLOWPLUG_REGION=region) as first:
        name = deploy(first, tmp_path)
        first.get(f"/{name}/web/who")
        snapshot = first.wait_for_snapshot(name)
        first.cli("down")
        first.environment["GLOWPLUG_SHARE_SNAPSHOTS"] = "push"
        first.cli("up", "--port", first.url.rpartition(":")[2], "--timeout", UP_TIMEOUT_S)
        first.wait_for(lambda: first.snapshot(snapshot.id).is_in_region, "the push")


@pytest.mark.parametrize("sharing", ["pull", pytest.param("off", marks=pytest.mark.nightly)])
def test_a_start_does_not_depend_on_the_region(region: str, tmp_path: Path, sharing: str) -> None:
    with Live(GLOWPLUG_REGION=f"http://127.0.0.1:{free_port()}", GLOWPLUG_SHARE_SNAPSHOTS=sharing) as live:
        name = deploy(live, tmp_path)
        assert live.get(f"/{name}/web/who")["restored"] is False
        (record,) = live.cold_starts(name)
        assert (record.fallback_reason or "").startswith("The region was asked") is (sharing == "pull")


@pytest.mark.nightly
@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_a_pull_with_content_restores_without_the_region(
    first: Live, region: str, tmp_path: Path, runtime: str
) -> None:
    name = deploy(first, tmp_path, runtime)
    first.get(f"/{name}/web/who")
    snapshot = first.wait_for_snapshot(name)
    first.cli("snapshot", "push", snapshot.id)
    with Live(GLOWPLUG_REGION=region) as other:
        pulled = other.listing("snapshot", "pull", snapshot.id, "--content")
        [known] = other.listing("snapshot", "ls")
        assert 0 < pulled["bytes"] == known["here_bytes"]
        Path(region).rename(Path(region).with_name("gone"))
        same = deploy(other, tmp_path, runtime)
        other.restored(same)


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_damage_on_the_disk_is_made_good_from_the_region(node: Live, tmp_path: Path, runtime: str) -> None:
    name = deploy(node, tmp_path, runtime)
    node.get(f"/{name}/web/who")
    snapshot = node.wait_for_snapshot(name)
    node.cli("snapshot", "push", snapshot.id)
    node.rest(name)
    flip_a_bit(node.state, snapshot.id)
    assert node.get(f"/{name}/web/who")["restored"] is False
    record = node.cold_starts(name)[0]
    assert "was altered" in (record.fallback_reason or "")
    [view] = node.snapshots(name)
    assert (view.status, view.failures) == (SnapshotStatus.GOOD, 1)
    node.rest(name)
    node.restored(name)
    assert node.snapshots(name)[0].created_at == snapshot.created_at, "it was not captured again"


@pytest.mark.nightly
def test_the_region_lists_and_forgets_snapshots(first: Live, tmp_path: Path) -> None:
    name = deploy(first, tmp_path)
    first.get(f"/{name}/web/who")
    snapshot = first.wait_for_snapshot(name)
    assert first.listing("snapshot", "ls", "--region") == []
    first.cli("snapshot", "push", snapshot.id)
    [there] = first.listing("snapshot", "ls", "--region")
    same = ("id", "app", "bytes", "content", "key", "created_at")
    assert {field: there[field] for field in same} == {field: getattr(snapshot, field) for field in same}
    first.cli("snapshot", "rm", snapshot.id)
    [there] = first.listing("snapshot", "ls", "--region")
    assert there["here_bytes"] == 0
    collect = ("snapshot", "gc", "--region", "--grace", "0")
    assert first.listing(*collect) == {"removed": 0, "waiting": 0}
    first.cli("snapshot", "rm", "--region", snapshot.id)
    assert first.listing("snapshot", "ls", "--region") == []
    assert first.listing(*collect) == {"removed": 0, "waiting": 0}, "nothing of it was left"
    assert "collect their own" in first.cli("snapshot", "gc", code=None).stderr
    assert "no snapshot" in first.cli("snapshot", "rm", "--region", snapshot.id, code=None).stderr


@pytest.mark.nightly
def test_collecting_garbage_spares_what_snapshots_and_images_need(first: Live, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(3 << 20))
    first.cli("image", "import", str(root), "kept:1")
    name = deploy(first, tmp_path)
    first.get(f"/{name}/web/who")
    snapshot = first.wait_for_snapshot(name)
    first.rest(name)
    first.cli("image", "gc")
    first.cli("image", "gc", "--region")
    first.cli("snapshot", "verify", snapshot.id)
    first.restored(name)
    first.rest(name)
    first.cli("snapshot", "rm", snapshot.id)
    [image] = first.listing("image", "ls")["indexes"]
    assert image["is_complete"], "what a removed snapshot had is not what an image has"
    assert first.listing("image", "verify", "kept:1")["damaged"] == 0


def test_what_cannot_be_moved_says_why(node: Live) -> None:
    missing = "sn-0123456789abcdef"
    assert "no snapshot" in node.cli("snapshot", "push", missing, code=None).stderr
    assert "no snapshot" in node.cli("snapshot", "pull", missing, code=None).stderr
