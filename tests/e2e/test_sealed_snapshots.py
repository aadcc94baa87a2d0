"""Snapshots of nodes that have keys: sealed on the disk and in the region, of use only to who has the key."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cloud import Cloud, running_cloud
from tests.e2e.live import GLOWPLUG, TOOLBOX, Live
from tests.e2e.test_moving_snapshots import SLOW_TO_START
from tests.runtime.conftest import RUNC_BY_NIGHT, require_runc
from tests.snapshot.kept_files import flip_a_bit

from glowplug.chunks.region_objects import ObstoreObjects
from glowplug.image.node_images import open_images
from glowplug.snapshot.sealing.content import SealedContent
from glowplug.snapshot.sealing.keys import KeyRing
from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import StartPath

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(300)]

# What is to be found in the server's memory is written nowhere: the app's file has its parts only.
MARKER = b"<a user's own words: %s>"
APP_FILE = """
import glowplug as gp

app = gp.App("sealed")


@app.server(
    image=gp.Image.host_python(), memory="256MiB", scaledown_window_s=60, snapshot=True, env={env!r},
    runtime={runtime!r},
)
def web():
    return {command!r}
"""


def deploy(live: Live, folder: Path, runtime: str) -> str:
    """A server whose memory holds the marker, the same wherever it is deployed."""
    if runtime == "runc":
        require_runc()
    file = folder / "app.py"
    keep = f"import os; KEPT = {MARKER!r} % os.environ['GLOWPLUG_TEST'].encode().hex().encode() * 100\n"
    file.write_text(
        APP_FILE.format(
            command=["python3", "-c", SLOW_TO_START + keep + TOOLBOX.read_text()],
            env={"GLOWPLUG_TEST": str(folder)},
            runtime=runtime,
        )
    )
    name = live.new_name("sealed")
    live.deploy(file, name)
    return name


def marker(folder: Path) -> bytes:
    return MARKER % str(folder).encode().hex().encode()


def new_keys(folder: Path) -> Path:
    file = folder / "keys"
    subprocess.run([str(GLOWPLUG), "snapshot", "keygen", str(file)], check=True, capture_output=True)
    return file


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    with running_cloud("gp-sealed") as cloud:
        yield cloud


def files_with(words: bytes, folder: Path) -> list[str]:
    command = ["grep", "-rlaF", "--devices=skip", words.decode(), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()


def objects_with(words: bytes, objects: ObstoreObjects) -> list[str]:
    infos = [info for prefix in ("packs/", "images/", "snapshots/") for info in objects.list(prefix)]
    assert len(infos) > 5
    return [info.key for info in infos if words in objects.read_all(info.key, 1 << 30, 30.0)]


def processes_with(words: str) -> list[str]:
    """Command lines, as `ps` shows them to everybody."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process.name] if words in (process / "cmdline").read_text(errors="replace") else []
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def newest(live: Live, name: str) -> ColdStartRecord:
    return live.cold_starts(name)[0]


@pytest.mark.parametrize("runtime", RUNC_BY_NIGHT)
def test_a_sealed_snapshot_is_restored_with_its_key_and_is_nothing_without(
    cloud: Cloud, tmp_path: Path, runtime: str
) -> None:
    keys = new_keys(tmp_path)
    secret = KeyRing.read(keys).first.secret.hex()
    sealing = {**cloud.node, "GLOWPLUG_SNAPSHOT_KEYS": keys.read_text(), "GLOWPLUG_SHARE_SNAPSHOTS": "push"}
    with Live(**sealing) as first:
        name = deploy(first, tmp_path, runtime)
        first.get(f"/{name}/web/who")
        snapshot = first.wait_for_snapshot(name)
        assert snapshot.sealed_with == KeyRing.read(keys).first.id
        first.wait_for(lambda: first.snapshot(snapshot.id).is_in_region, "the push")
        first.rest(name)
        first.restored(name)
        assert newest(first, name).path is StartPath.CPU_SNAPSHOT
        assert files_with(marker(tmp_path), first.state.root) == []
        assert objects_with(marker(tmp_path), ObstoreObjects(cloud.region, cloud.server.options)) == []
        assert objects_with(str(tmp_path).encode(), ObstoreObjects(cloud.region, cloud.server.options)) == []
        told = [first.http.get(path).text for path in ("/metrics", "/api/v1/snapshots", "/api/v1/status")]
        assert not any(secret in text for text in told)
        assert processes_with(secret) == []
        assert files_with(secret.encode(), first.state.root) == []
        content = snapshot.content
        images = open_images(first.state)
        try:
            opening = SealedContent(images.files, KeyRing.read(keys), tmp_path / "unsealed")
            with opening.using(content):
                assert files_with(marker(tmp_path), opening.open(content)) != [], "it is in what was captured"
        finally:
            images.close()

    with Live(**cloud.node) as without:
        same = deploy(without, tmp_path, runtime)
        assert without.get(f"/{same}/web/who")["restored"] is False
        reason = newest(without, same).fallback_reason or ""
        assert f"{snapshot.id} is sealed with the key {snapshot.sealed_with}" in reason
        [locked] = without.listing("snapshot", "ls", "--region")
        assert (locked["status"], locked["app"], locked["key_fields"]) == ("locked", "", {})
        error = without.cli("snapshot", "pull", snapshot.id, code=None).stderr
        assert f"sealed with the key {snapshot.sealed_with}" in error
        assert "no snapshot keys" in without.cli("snapshot", "reseal", code=None).stderr

    with Live(**cloud.node, GLOWPLUG_SNAPSHOT_KEYS_FILE=str(keys)) as other:
        same = deploy(other, tmp_path, runtime)
        other.restored(same)  # its first start on this node
        assert newest(other, same).snapshot_id == snapshot.id
        assert other.listing("snapshot", "reseal") == {"resealed": [], "region": [], "left": []}
        other.rest(same)
        flip_a_bit(other.state, snapshot.id)
        assert other.get(f"/{same}/web/who")["restored"] is False
        assert "is corrupt" in (newest(other, same).fallback_reason or "")
        other.rest(same)
        other.restored(same)  # made good from the region
