"""Capture and restore: what survives, what is new in every copy, and what happens when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.live_agent import LiveAgent, live_agent
from tests.runtime.sandboxes import eventually

from glowplug.snapshot import Manifest, SnapshotKey

pytestmark = pytest.mark.sandbox


def _server(agent: LiveAgent, name: str, *, snapshot: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A server with a snapshot key of its own: the name is part of its environment."""
    env = {"CASE": name, **changes.pop("env", {})}
    return agent.server(name=name, snapshot=snapshot or {}, env=env, **changes)


def _captured(agent: LiveAgent, server: Any, **changes: Any) -> dict[str, Any]:
    """The good snapshot of a server that was started cold once; nothing of it runs any more."""
    view = agent.start(server, **changes)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "good", snapshot
    agent.stop(view["id"], grace_s=0)
    return snapshot


def _files(agent: LiveAgent, snapshot: dict[str, Any]) -> Path:
    return agent.state.snapshots / snapshot["id"]


def _flip(path: Path) -> None:
    """One bit, in a page that is used."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# -- it works ------------------------------------------------------------------------------------------------


def test_the_second_start_is_a_restore_of_the_firsts_memory(agent: LiveAgent) -> None:
    server = _server(agent, "restored")
    first = agent.start(server)
    assert first["fallback_reason"] == "no snapshot was captured yet"
    snapshot = agent.captured(first)
    copies = [agent.start(server) for _ in range(2)]
    for view in copies:
        assert view["path"] == "cpu_snapshot"
        assert view["snapshot_id"] == snapshot["id"]
        assert view["restored_bytes"] == snapshot["bytes"] > 1 << 20
        assert view["fallback_reason"] is None
        assert list(view["stages_s"]) == ["allocate", "mount", "host_init", "first_answer"]
    states = [agent.ask(view, "/state") for view in [first, *copies]]
    assert states[1]["started"] == states[2]["started"] != states[0]["started"]
    assert agent.client.get(f"/v1/snapshots/{snapshot['id']}").json()["restores"] == 2


def test_four_copies_are_restored_at_once(agent: LiveAgent) -> None:
    server = _server(agent, "four")
    _captured(agent, server)
    ids = [agent.begin(server) for _ in range(4)]
    views = [agent.settled(one) for one in ids]
    assert [(view["state"], view["path"]) for view in views] == [("ready", "cpu_snapshot")] * 4
    assert [agent.ask(view, "/told")["replica_id"] for view in views] == ids


def test_secrets_and_environment_reach_a_restored_replica_and_are_not_in_the_snapshot(
    agent: LiveAgent,
) -> None:
    server = _server(agent, "secrets", env={"MODEL": "tiny"})
    secret = "correct-horse-battery"
    snapshot = _captured(agent, server, secrets={"TOKEN": secret})
    for file in _files(agent, snapshot).iterdir():
        assert secret.encode() not in file.read_bytes()
    view = agent.start(server, secrets={"TOKEN": "another-secret-value"})
    told = agent.ask(view, "/told")
    assert told["restored"] is True
    assert told["secrets"] == {"TOKEN": "another-secret-value"}
    assert told["env"]["MODEL"] == "tiny"


def test_a_server_whose_memory_would_hold_a_secret_is_not_captured(agent: LiveAgent) -> None:
    server = _server(agent, "leaking", env={"CONFIG": "token=leaked-secret-value"})
    view = agent.start(server, secrets={"TOKEN": "leaked-secret-value"})
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "holds the secret(s) TOKEN" in snapshot["reason"]
    assert "leaked-secret-value" not in json.dumps(snapshot["reason"])
    assert agent.ask(view) == "hello", "serving goes on"
    assert not _files(agent, snapshot).exists()


def test_a_secret_may_be_captured_where_that_was_asked_for(agent: LiveAgent) -> None:
    server = _server(agent, "allowed", snapshot={"secrets_in_snapshot": True}, secrets=["TOKEN"])
    _captured(agent, server, secrets={"TOKEN": "captured-secret-value"})
    view = agent.start(server, secrets={"TOKEN": "captured-secret-value"})
    assert view["path"] == "cpu_snapshot"
    assert agent.ask(view, "/env")["TOKEN"] == "captured-secret-value"
    other = agent.start(server, secrets={"TOKEN": "somebody-elses-value"})
    assert other["path"] == "cold", "never somebody else's secret"


def test_a_restored_replica_still_resolves_the_name_it_remembers(agent: LiveAgent) -> None:
    server = _server(agent, "names")
    _captured(agent, server)
    view = agent.start(server)
    remembered = agent.ask(view, "/state")["hostname"]
    assert agent.ask(view, f"/resolve?name={remembered}") == "127.0.0.1"
    assert agent.ask(view, f"/resolve?name={view['id']}") == "127.0.0.1"


def test_a_volume_is_shared_both_ways_after_a_restore(agent: LiveAgent, tmp_path: Path) -> None:
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = _server(agent, "volume", volumes=[volume])
    _captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    agent.ask(view, "/write?path=/data/inside&text=from-inside")
    assert (tmp_path / "inside").read_text() == "from-inside"
    (tmp_path / "outside").write_text("from-outside")
    assert agent.ask(view, "/read?path=/data/outside") == "from-outside"
    (tmp_path / "outside").write_text("changed-outside")
    assert agent.ask(view, "/read?path=/data/outside") == "changed-outside"


def test_copies_of_a_class_differ_where_they_must_and_agree_where_they_may(agent: LiveAgent) -> None:
    code = {
        "local_dir": str(Path(__file__).parent / "servers"),
        "module": "copies.py",
        "target": "Copies",
        "target_kind": "cls",
        "code_digest": "1",
    }
    command = "python3 -m glowplug.sdk.runner --module /app/copies.py --target Copies --kind cls --port 8000"
    server = agent.server(
        *command.split(),
        name="copies",
        code=code,
        snapshot={},
        secrets=["TOKEN"],
        ready={"path": "/.glowplug/ready"},
    )
    cold = agent.start(server, secrets={"TOKEN": "token-of-the-first"})
    assert agent.captured(cold)["status"] == "good"
    ids = [agent.begin(server, secrets={"TOKEN": f"token-number-{number}"}) for number in range(4)]
    views = [agent.settled(one) for one in ids]
    assert [view["path"] for view in views] == ["cpu_snapshot"] * 4
    answers = [_look(agent, view) for view in views]
    assert {answer["loaded"] for answer in answers} == {answers[0]["loaded"]}
    assert {answer["token_while_loading"] for answer in answers} == {None}
    assert [answer["token"] for answer in answers] == [f"token-number-{number}" for number in range(4)]
    for position in (0, 1):
        assert len({answer["drawn"][position] for answer in answers}) == 4, "randomness differs"
    assert [answer["hostname"] for answer in answers] == ids
    assert [answer["hostname_variable"] for answer in answers] == ids
    assert {answer["address"] for answer in answers} == {"127.0.0.1"}
    assert _look(agent, cold)["token"] == "token-of-the-first"


def _look(agent: LiveAgent, view: dict[str, Any]) -> dict[str, Any]:
    return dict(agent.ask(view, "/look", body={})["result"])


@pytest.mark.parametrize(
    ("hook", "seen"),
    [
        ({"signal": "SIGUSR1"}, {"signals": ["USR1"], "hooks": []}),
        ({"http": {"method": "POST", "path": "/hook?word=before"}}, {"signals": [], "hooks": ["before"]}),
        (
            {"command": ["python3", "-c", "open('/tmp/hooked', 'w').write('yes')"]},
            {"signals": [], "hooks": []},
        ),
    ],
    ids=["signal", "http", "command"],
)
def test_hooks_run_once_before_the_snapshot_and_once_in_every_copy(
    agent: LiveAgent, hook: dict[str, Any], seen: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.id
    server = _server(agent, f"before-{kind}", snapshot={"before_snapshot": hook})
    _captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    assert {name: agent.ask(view, "/state")[name] for name in seen} == seen
    if kind == "command":
        assert agent.ask(view, "/read?path=/tmp/hooked") == "yes"
    agent.stop(view["id"], grace_s=0)

    server = _server(agent, f"after-{kind}", snapshot={"after_restore": hook})
    _captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    eventually(lambda: {name: agent.ask(view, "/state")[name] for name in seen} == seen)
    if kind == "command":
        assert agent.ask(view, "/read?path=/tmp/hooked") == "yes"


def test_a_hook_that_fails_after_a_restore_is_a_cold_start(agent: LiveAgent, tmp_path: Path) -> None:
    hook = {"command": ["sh", "-c", "test ! -e /data/broken || { echo hook is broken >&2; exit 4; }"]}
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = _server(agent, "bad-hook", snapshot={"after_restore": hook}, volumes=[volume])
    _captured(agent, server)
    (tmp_path / "broken").touch()
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "exit code 4: hook is broken" in view["fallback_reason"]


def test_a_snapshot_can_be_captured_on_request(agent: LiveAgent) -> None:
    server = _server(agent, "on-request")
    answer = agent.client.post("/v1/snapshots", json=agent.request(server))
    assert answer.status_code == 202
    assert answer.json()["status"] == "capturing"
    one = f"/v1/snapshots/{answer.json()['id']}"
    assert agent.client.get(one).json()["status"] == "capturing"
    assert agent.client.post("/v1/snapshots", json=agent.request(server)).status_code == 409
    eventually(lambda: agent.client.get(one).json()["status"] == "good")
    assert agent.start(server)["path"] == "cpu_snapshot"


# -- something is wrong --------------------------------------------------------------------------------------


def test_a_wrong_canary_answer_is_a_cold_start_counted_and_after_three_a_new_capture(
    agent: LiveAgent, tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    answer.write_text("Paris")
    canary = {"canary": [{"path": "/read?path=/data/answer"}]}
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = _server(agent, "canary", snapshot=canary, volumes=[volume])
    snapshot = _captured(agent, server)
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
    server = _server(agent, "flipped")
    snapshot = _captured(agent, server)
    _flip(_files(agent, snapshot) / "pages.img")
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "pages.img was altered" in view["fallback_reason"]
    assert agent.ask(view) == "hello"
    assert eventually(lambda: _fresh(agent, view, snapshot))["status"] == "good"
    assert agent.start(server)["path"] == "cpu_snapshot"


@pytest.mark.parametrize("damage", ["truncated", "missing file", "missing manifest", "garbage manifest"])
def test_a_damaged_snapshot_is_a_cold_start_with_a_reason(agent: LiveAgent, damage: str) -> None:
    server = _server(agent, damage.replace(" ", "-"))
    snapshot = _captured(agent, server)
    files = _files(agent, snapshot)
    match damage:
        case "truncated":
            os.truncate(files / "checkpoint.img", 1000)
        case "missing file":
            (files / "pages_meta.img").unlink()
        case "missing manifest":
            (files / "manifest.json").unlink()
        case "garbage manifest":
            (files / "manifest.json").write_bytes(os.urandom(500))
    view = agent.start(server)
    assert view["path"] == "cold"
    expected = {"truncated": "has 1000 bytes", "garbage manifest": "is not JSON"}.get(damage, "is missing")
    assert expected in view["fallback_reason"]
    assert eventually(lambda: _fresh(agent, view, snapshot))["status"] == "good"
    assert agent.start(server)["path"] == "cpu_snapshot"


def test_damage_is_found_on_request_too_and_the_snapshot_never_restored(agent: LiveAgent) -> None:
    server = _server(agent, "verified")
    snapshot = _captured(agent, server)
    verify = f"/v1/snapshots/{snapshot['id']}/verify"
    assert agent.client.post(verify).json()["status"] == "good"
    _flip(_files(agent, snapshot) / "pages.img")
    answer = agent.client.post(verify)
    assert answer.json()["status"] == "quarantined"
    assert "pages.img was altered" in answer.json()["reason"]
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "is quarantined" in view["fallback_reason"]


def test_a_runtime_of_another_version_is_a_cold_start_that_names_it(agent: LiveAgent) -> None:
    """The same server, captured by a runsc whose version differs: the key of the stored one is another."""
    server = _server(agent, "version")
    snapshot = _captured(agent, server)
    _pretend_captured_by(agent, snapshot, "runsc 1.2.3")
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "runtime is runsc" in view["fallback_reason"]
    assert "was runsc 1.2.3" in view["fallback_reason"]


def _pretend_captured_by(agent: LiveAgent, snapshot: dict[str, Any], runtime: str) -> None:
    """Rename a snapshot to what its id would be had another runtime captured it."""
    old = _files(agent, snapshot)
    manifest = Manifest.decode((old / "manifest.json").read_bytes(), snapshot["id"])
    key = SnapshotKey({**manifest.key, "runtime": runtime})
    other = manifest.model_copy(update={"key": dict(key.fields), "id": key.id})
    generation = old.resolve()
    (generation / "manifest.json").write_bytes(other.encode())
    renamed = generation.with_name(generation.name.replace(snapshot["id"], key.id))
    generation.rename(renamed)
    (agent.state.snapshots / key.id).symlink_to(Path(".generations") / renamed.name)
    old.unlink()


def test_a_changed_environment_is_another_snapshot(agent: LiveAgent) -> None:
    _captured(agent, _server(agent, "changed", env={"A": "1"}))
    view = agent.start(_server(agent, "changed", env={"A": "2"}))
    assert view["path"] == "cold"
    assert "env is" in view["fallback_reason"]


def test_a_canary_that_is_not_repeatable_is_refused_and_serving_unaffected(agent: LiveAgent) -> None:
    server = _server(agent, "unstable", snapshot={"canary": [{"path": "/clock"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "is not repeatable" in snapshot["reason"]
    assert agent.ask(view) == "hello"


def test_a_canary_that_only_the_captured_replica_can_answer_is_found_by_the_trial(agent: LiveAgent) -> None:
    server = _server(agent, "trial", snapshot={"canary": [{"path": "/told"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "answered differently" in snapshot["reason"]
    assert not _files(agent, snapshot).exists(), "what failed its trial cannot be found by anybody"


def test_a_warm_up_that_is_refused_fails_the_capture_with_its_answer(agent: LiveAgent) -> None:
    server = agent.server(
        "python3", "-m", "http.server", "8000", name="warm", snapshot={"warmup": [{"path": "/nothing/here"}]}
    )
    snapshot = agent.captured(agent.start(server))
    assert snapshot["status"] == "quarantined"
    assert "/nothing/here was answered with 404" in snapshot["reason"]


def test_a_server_that_dies_while_it_is_captured_fails_the_capture_only(agent: LiveAgent) -> None:
    server = _server(agent, "dying", snapshot={"warmup": [{"path": "/exit?code=3"}]})
    view = agent.start(server)
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert agent.view(view["id"])["state"] == "ready"


@contextlib.contextmanager
def _small_disk(path: Path, size_mib: int) -> Iterator[None]:
    """A filesystem of its own at ``path``; it can only be unmounted once nobody uses it any more."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(path)], check=True)
    umount = ["umount", "--quiet", str(path)]
    try:
        yield
    finally:
        eventually(lambda: subprocess.run(umount, check=False).returncode == 0, "unmount", 5)


@pytest.mark.parametrize("free_mb", [10, 4], ids=["full at the checkpoint", "full before"])
def test_a_full_disk_fails_the_capture_and_nothing_else(fit_machine: None, root: Path, free_mb: int) -> None:
    with _small_disk(root, 32), live_agent(root) as agent:
        (root / "filler").write_bytes(bytes(shutil.disk_usage(root).free - free_mb * 1_000_000))
        server = _server(agent, "full", resources={"memory_bytes": 32 << 20})
        view = agent.start(server)
        snapshot = agent.captured(view)
        assert snapshot["status"] == "quarantined"
        assert re.search("full|needs about .* are free", snapshot["reason"])
        assert agent.ask(view) == "hello", "serving is unaffected"
        assert list(agent.state.snapshot_staging.glob("sn-*")) == [], "nothing half-written is left"
        assert agent.stop(view["id"])["state"] == "stopped"


def test_a_disk_without_a_byte_left_is_named_and_what_runs_can_be_stopped(
    fit_machine: None, root: Path
) -> None:
    with _small_disk(root, 8), live_agent(root) as agent:
        view = agent.start(agent.server())
        with contextlib.suppress(OSError), (root / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        failed = agent.fail(agent.server())
        assert failed["error"]["code"] == "resource_exhausted"
        assert "the disk is full" in failed["error"]["message"]
        assert agent.stop(view["id"])["state"] == "stopped"
        assert agent.leftovers() == []
