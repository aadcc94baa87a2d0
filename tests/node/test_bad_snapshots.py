"""A snapshot is wrong, or what it is asked: the caller gets a cold answer, and the reason is told."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.cases import captured, case_server, class_server, folder_of, in_runtime
from tests.node.live_agent import LiveAgent, live_agent
from tests.runtime.conftest import RUNC_BY_NIGHT, RUNTIMES
from tests.runtime.sandboxes import eventually
from tests.snapshot.kept_files import cut_off_the_pack, flip_a_bit, lose_the_index, zero_a_chunk

from glowplug.snapshot import Manifest, SnapshotKey

pytestmark = pytest.mark.sandbox

ALTERED = r"pages(-1)?\.img was altered"
# gVisor lets nobody connect; CRIU cannot save the connection.
CONNECTED = """
import contextlib, socket
host = socket.socket(socket.AF_UNIX)
with contextlib.suppress(OSError):
    host.connect("/data/listening")
exec(open("/servers/toolbox.py").read())
"""


@pytest.fixture(params=RUNC_BY_NIGHT)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agent(agent: LiveAgent, runtime: str) -> Iterator[LiveAgent]:
    with in_runtime(agent, runtime) as agent:
        yield agent


def test_a_class_whose_copy_cannot_be_made_fails_with_its_own_traceback(agent: LiveAgent) -> None:
    view = agent.fail(class_server(agent), secrets={"TOKEN": "broken"})
    assert "failed in enter(snap=False)" in view["error"]["message"]
    assert "ConnectionError: the token is refused" in view["error"]["message"]


def test_a_wrong_canary_answer_is_a_cold_start_counted_and_after_three_a_new_capture(
    agent: LiveAgent, tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    answer.write_text("Paris")
    canary = {"canary": [{"path": "/read?path=/data/answer"}]}
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = case_server(agent, "canary", snapshot=canary, volumes=[volume])
    snapshot = captured(agent, server)
    counter = 'glowplug_fallbacks_total{reason_class="wrong_answer"}'
    before = agent.metric(counter)

    answer.write_text("Rome")
    view = agent.start(server)
    assert (view["path"], view["snapshot_id"]) == ("cold", None)
    assert "answered differently" in view["fallback_reason"]
    assert "instead of" in view["fallback_reason"]
    assert agent.ask(view, "/read?path=/data/answer") == "Rome", "the caller gets the cold start's answer"
    assert agent.metric(counter) == before + 1
    assert agent.captured(view)["failures"] == 1
    assert agent.captured(view)["created_at"] == snapshot["created_at"], "one failure is no reason to capture"

    agent.start(server)
    third = agent.start(server)
    fresh = eventually(lambda: _fresh(agent, third, snapshot), "it is captured anew")
    assert fresh["status"] == "good"
    assert agent.start(server)["path"] == "cpu_snapshot"


def _fresh(agent: LiveAgent, view: dict[str, Any], old: dict[str, Any]) -> dict[str, Any] | None:
    found = agent.captured(view)
    return found if found["created_at"] > old["created_at"] else None


def test_a_flipped_bit_in_memory_is_noticed_quarantined_and_captured_anew(agent: LiveAgent) -> None:
    server = case_server(agent, "flipped")
    snapshot = captured(agent, server)
    flip_a_bit(agent.state, snapshot["id"])
    view = agent.start(server)
    assert view["path"] == "cold"
    assert re.search(ALTERED, view["fallback_reason"])
    assert agent.ask(view) == "hello"
    assert eventually(lambda: _fresh(agent, view, snapshot))["status"] == "good"
    assert agent.start(server)["path"] == "cpu_snapshot"


@pytest.mark.parametrize(
    "damage",
    [
        "zeros",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("truncated pack", "missing index", "missing manifest")
        ),
        "garbage manifest",
    ],
)
def test_a_damaged_snapshot_is_a_cold_start_with_a_reason(agent: LiveAgent, damage: str) -> None:
    server = case_server(agent, damage.replace(" ", "-"))
    snapshot = captured(agent, server)
    manifest = folder_of(agent, snapshot) / "manifest.json"
    match damage:
        case "zeros":
            zero_a_chunk(agent.state, snapshot["id"])
        case "truncated pack":
            cut_off_the_pack(agent.state, snapshot["id"])
        case "missing index":
            lose_the_index(agent.state, snapshot["id"])
        case "missing manifest":
            manifest.unlink()
        case "garbage manifest":
            manifest.write_bytes(os.urandom(500))
    view = agent.start(server)
    assert view["path"] == "cold"
    expected = {
        "zeros": ALTERED,
        "truncated pack": f"{ALTERED}|failed while being verified",
        "missing index": "content is damaged",
        "missing manifest": "is missing",
        "garbage manifest": "is not JSON",
    }[damage]
    assert re.search(expected, view["fallback_reason"])
    assert eventually(lambda: _fresh(agent, view, snapshot))["status"] == "good"
    assert agent.start(server)["path"] == "cpu_snapshot"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_damage_is_found_on_request_too_and_the_snapshot_never_restored(agent: LiveAgent) -> None:
    server = case_server(agent, "verified")
    snapshot = captured(agent, server)
    verify = f"/v1/snapshots/{snapshot['id']}/verify"
    assert agent.client.post(verify).json()["status"] == "good"
    flip_a_bit(agent.state, snapshot["id"])
    answer = agent.client.post(verify)
    assert answer.json()["status"] == "quarantined"
    assert re.search(ALTERED, answer.json()["reason"])
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "is quarantined" in view["fallback_reason"]


@pytest.mark.parametrize(
    ("field", "theirs", "told"),
    [
        ("runtime", "runsc 1.2.3", r"runtime is run[sc]+ .*, was runsc 1\.2\.3"),
        pytest.param(
            "runtime_flags",
            '["--platform=ptrace"]',
            r"runtime_flags is \[.*, was \[\"--platform=ptrace\"\]",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "cpu_model", "Another CPU", r"cpu_model is .*, was Another CPU", marks=pytest.mark.nightly
        ),
        ("cpu_features", "avx9000 sse", r"cpu_features lacks avx9000, also has "),
        pytest.param("kernel", "5.4", r"kernel is \d.*, was 5\.4", marks=pytest.mark.nightly),
    ],
)
def test_a_snapshot_made_by_another_runtime_or_machine_is_a_cold_start_that_names_both(
    agent: LiveAgent, field: str, theirs: str, told: str
) -> None:
    """The same server, captured where one thing differed: the key of the stored one is another."""
    server = case_server(agent, f"other-{field.replace('_', '-')}")
    snapshot = captured(agent, server)
    _pretend_captured_with(agent, snapshot, {field: theirs})
    view = agent.start(server)
    assert view["path"] == "cold"
    assert re.fullmatch(told + ".*", view["fallback_reason"])


def _pretend_captured_with(agent: LiveAgent, snapshot: dict[str, Any], fields: dict[str, str]) -> None:
    """Rename a snapshot to what its id would be had it been captured where these fields differed."""
    old = folder_of(agent, snapshot)
    manifest = Manifest.decode((old / "manifest.json").read_bytes(), snapshot["id"])
    key = SnapshotKey({**manifest.key, **fields})
    other = manifest.model_copy(update={"key": dict(key.fields), "id": key.id})
    generation = old.resolve()
    (generation / "manifest.json").write_bytes(other.encode())
    renamed = generation.with_name(generation.name.replace(snapshot["id"], key.id))
    generation.rename(renamed)
    (agent.state.snapshots / key.id).symlink_to(Path(".generations") / renamed.name)
    old.unlink()


def test_a_changed_environment_is_another_snapshot(agent: LiveAgent) -> None:
    captured(agent, case_server(agent, "changed", env={"A": "1"}))
    view = agent.start(case_server(agent, "changed", env={"A": "2"}))
    assert view["path"] == "cold"
    assert "env is" in view["fallback_reason"]


def test_a_canary_that_is_not_repeatable_is_refused_and_serving_unaffected(agent: LiveAgent) -> None:
    server = case_server(agent, "unstable", snapshot={"canary": [{"path": "/clock"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "is not repeatable" in snapshot["reason"]
    assert agent.ask(view) == "hello"


def test_a_canary_that_only_the_captured_replica_can_answer_is_found_by_the_trial(agent: LiveAgent) -> None:
    server = case_server(agent, "trial", snapshot={"canary": [{"path": "/told"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "answered differently" in snapshot["reason"]
    assert not folder_of(agent, snapshot).exists(), "what failed its trial cannot be found by anybody"


def test_a_warm_up_that_is_refused_fails_the_capture_with_its_answer(agent: LiveAgent) -> None:
    server = agent.server(
        "python3", "-m", "http.server", "8000", name="warm", snapshot={"warmup": [{"path": "/nothing/here"}]}
    )
    snapshot = agent.captured(agent.start(server))
    assert snapshot["status"] == "quarantined"
    assert "/nothing/here was answered with 404" in snapshot["reason"]


def test_a_server_that_dies_while_it_is_captured_fails_the_capture_only(agent: LiveAgent) -> None:
    server = case_server(agent, "dying", snapshot={"warmup": [{"path": "/exit?code=3"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert agent.view(view["id"])["state"] == "ready"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_server_with_a_connection_that_cannot_be_saved_serves_whatever_becomes_of_its_capture(
    agent: LiveAgent, tmp_path: Path
) -> None:
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "listening"))
        listener.listen()
        server = case_server(agent, "connected", command=["python3", "-c", CONNECTED], volumes=[volume])
        view = agent.start(server)
        snapshot = agent.captured(view)
    if agent.runtime == "runc":
        assert snapshot["status"] == "quarantined"
        assert "capture failed: `runc checkpoint` failed: unix" in snapshot["reason"]
        assert "\n" not in snapshot["reason"]
        assert not folder_of(agent, snapshot).exists()
    else:
        assert snapshot["status"] == "good"
    assert list(agent.state.snapshot_staging.glob("sn-*")) == [], "nothing half-written is left"
    assert agent.ask(view) == "hello", "serving is unaffected"


@contextlib.contextmanager
def _small_disk(path: Path, size_mib: int) -> Iterator[None]:
    """A filesystem of its own at ``path``; it can only be unmounted once nobody uses it any more."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(path)], check=True)
    umount = ["umount", "--quiet", str(path)]
    try:
        yield
    finally:
        eventually(lambda: subprocess.run(umount, check=False).returncode == 0, "unmount")


@pytest.mark.parametrize("free_mb", [10, 4], ids=["full at the checkpoint", "full before"])
def test_a_full_disk_fails_the_capture_and_nothing_else(
    fit_machine: None, root: Path, runtime: str, free_mb: int
) -> None:
    with _small_disk(root, 32), live_agent(root) as own_agent, in_runtime(own_agent, runtime) as agent:
        (root / "filler").write_bytes(bytes(shutil.disk_usage(root).free - free_mb * 1_000_000))
        server = case_server(agent, "full", resources={"memory_bytes": 32 << 20})
        view = agent.start(server)
        snapshot = agent.captured(view)
        assert snapshot["status"] == "quarantined"
        assert re.search("full|needs about .* are free", snapshot["reason"])
        assert agent.ask(view) == "hello", "serving is unaffected"
        assert list(agent.state.snapshot_staging.glob("sn-*")) == [], "nothing half-written is left"
        assert agent.stop(view["id"])["state"] == "stopped"


def test_a_disk_without_a_byte_left_is_named_and_what_runs_can_be_stopped(
    fit_machine: None, root: Path, runtime: str
) -> None:
    with _small_disk(root, 8), live_agent(root) as own_agent, in_runtime(own_agent, runtime) as agent:
        view = agent.start(agent.server())
        with contextlib.suppress(OSError), (root / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        failed = agent.fail(agent.server())
        assert failed["error"]["code"] == "resource_exhausted"
        assert "the disk is full" in failed["error"]["message"]
        assert agent.stop(view["id"])["state"] == "stopped"
        assert agent.leftovers() == []
