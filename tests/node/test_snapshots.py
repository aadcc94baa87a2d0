"""Capture and restore: what survives, what is new in every copy, and what happens when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.cases import captured, case_server, class_server, folder_of, in_runtime
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import RUNTIMES
from tests.runtime.sandboxes import eventually
from tests.snapshot.kept_files import mounted_files

pytestmark = pytest.mark.sandbox


@pytest.fixture(params=RUNTIMES)
def agent(agent: LiveAgent, request: pytest.FixtureRequest) -> Iterator[LiveAgent]:
    with in_runtime(agent, request.param) as agent:
        yield agent


def test_the_second_start_is_a_restore_of_the_firsts_memory(agent: LiveAgent) -> None:
    server = case_server(agent, "restored")
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
    told = f"/v1/snapshots/{snapshot['id']}"
    eventually(lambda: agent.client.get(told).json()["restores"] == 2, "both restores are written down")


def test_four_copies_are_restored_at_once(agent: LiveAgent) -> None:
    server = case_server(agent, "four")
    captured(agent, server)
    ids = [agent.begin(server) for _ in range(4)]
    views = [agent.settled(one) for one in ids]
    assert [(view["state"], view["path"]) for view in views] == [("ready", "cpu_snapshot")] * 4
    assert [agent.ask(view, "/told")["replica_id"] for view in views] == ids


def test_secrets_and_environment_reach_a_restored_replica_and_are_not_in_the_snapshot(
    agent: LiveAgent,
) -> None:
    server = case_server(agent, "secrets", env={"MODEL": "tiny"})
    secret = "correct-horse-battery"
    snapshot = captured(agent, server, secrets={"TOKEN": secret})
    for file in mounted_files(agent.state, snapshot["id"]).iterdir():
        assert secret.encode() not in file.read_bytes()
    view = agent.start(server, secrets={"TOKEN": "another-secret-value"})
    told = agent.ask(view, "/told")
    assert told["restored"] is True
    assert told["secrets"] == {"TOKEN": "another-secret-value"}
    assert told["env"]["MODEL"] == "tiny"


def test_a_server_that_keeps_a_secret_in_a_file_of_its_own_is_not_captured(agent: LiveAgent) -> None:
    """Compressible, so that it would be invisible in an archive that is compressed."""
    write = "open('/tmp/config', 'w').write(' ' * 2000 + '-'.join(['written', 'secret', 'value']))"
    command = ["sh", "-c", f'python3 -c "{write}"; exec python3 /servers/toolbox.py']
    server = case_server(agent, "written", command=command)
    snapshot = agent.captured(agent.start(server, secrets={"TOKEN": "written-secret-value"}))
    assert snapshot["status"] == "quarantined"
    assert "holds the secret(s) TOKEN" in snapshot["reason"]


def test_a_server_whose_memory_would_hold_a_secret_is_not_captured(agent: LiveAgent) -> None:
    server = case_server(agent, "leaking", env={"CONFIG": "token=leaked-secret-value"})
    view = agent.start(server, secrets={"TOKEN": "leaked-secret-value"})
    snapshot = agent.captured(view)
    assert snapshot["status"] == "quarantined"
    assert "holds the secret(s) TOKEN" in snapshot["reason"]
    assert "leaked-secret-value" not in json.dumps(snapshot["reason"])
    assert agent.ask(view) == "hello", "serving goes on"
    assert not folder_of(agent, snapshot).exists()


def test_a_secret_may_be_captured_where_that_was_asked_for(agent: LiveAgent) -> None:
    server = case_server(agent, "allowed", snapshot={"secrets_in_snapshot": True}, secrets=["TOKEN"])
    captured(agent, server, secrets={"TOKEN": "captured-secret-value"})
    view = agent.start(server, secrets={"TOKEN": "captured-secret-value"})
    assert view["path"] == "cpu_snapshot"
    assert agent.ask(view, "/env")["TOKEN"] == "captured-secret-value"
    other = agent.start(server, secrets={"TOKEN": "somebody-elses-value"})
    assert other["path"] == "cold", "never somebody else's secret"


def test_a_restored_replica_still_resolves_the_name_it_remembers(agent: LiveAgent) -> None:
    server = case_server(agent, "names")
    captured(agent, server)
    view = agent.start(server)
    remembered = agent.ask(view, "/state")["hostname"]
    assert agent.ask(view, f"/resolve?name={remembered}") == "127.0.0.1"
    assert agent.ask(view, f"/resolve?name={view['id']}") == "127.0.0.1"


def test_a_volume_is_shared_both_ways_after_a_restore(agent: LiveAgent, tmp_path: Path) -> None:
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = case_server(agent, "volume", volumes=[volume])
    captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    agent.ask(view, "/write?path=/data/inside&text=from-inside")
    assert (tmp_path / "inside").read_text() == "from-inside"
    (tmp_path / "outside").write_text("from-outside")
    assert agent.ask(view, "/read?path=/data/outside") == "from-outside"
    (tmp_path / "outside").write_text("changed-outside")
    assert agent.ask(view, "/read?path=/data/outside") == "changed-outside"


def test_copies_of_a_class_differ_where_they_must_and_agree_where_they_may(agent: LiveAgent) -> None:
    server = class_server(agent)
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
    is_command = kind.endswith("command")
    server = case_server(agent, f"before-{kind}", snapshot={"before_snapshot": hook})
    captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    assert {name: agent.ask(view, "/state")[name] for name in seen} == seen
    if is_command:
        assert agent.ask(view, "/read?path=/tmp/hooked") == "yes"
    agent.stop(view["id"], grace_s=0)

    server = case_server(agent, f"after-{kind}", snapshot={"after_restore": hook})
    captured(agent, server)
    view = agent.start(server)
    assert view["path"] == "cpu_snapshot"
    eventually(lambda: {name: agent.ask(view, "/state")[name] for name in seen} == seen)
    if is_command:
        assert agent.ask(view, "/read?path=/tmp/hooked") == "yes"


def test_a_hook_that_fails_after_a_restore_is_a_cold_start(agent: LiveAgent, tmp_path: Path) -> None:
    hook = {"command": ["sh", "-c", "test ! -e /data/broken || { echo hook is broken >&2; exit 4; }"]}
    volume = {"host_path": str(tmp_path), "mount_path": "/data"}
    server = case_server(agent, "bad-hook", snapshot={"after_restore": hook}, volumes=[volume])
    captured(agent, server)
    (tmp_path / "broken").touch()
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "exit code 4: hook is broken" in view["fallback_reason"]


def test_a_snapshot_can_be_captured_on_request(agent: LiveAgent) -> None:
    server = case_server(agent, "on-request")

    def next_start() -> dict[str, Any]:
        return dict(agent.client.post("/v1/next-start", json=agent.request(server)).json())

    assert next_start() == {
        "heat": "image",
        "snapshot_id": None,
        "reason": "no snapshot was captured yet",
    }
    answer = agent.client.post("/v1/snapshots", json=agent.request(server))
    assert answer.status_code == 202
    assert answer.json()["status"] == "capturing"
    one = f"/v1/snapshots/{answer.json()['id']}"
    assert agent.client.get(one).json()["status"] == "capturing"
    assert agent.client.post("/v1/snapshots", json=agent.request(server)).status_code == 409
    eventually(lambda: agent.client.get(one).json()["status"] == "good")
    assert next_start() == {"heat": "snapshot", "snapshot_id": answer.json()["id"], "reason": None}
    assert agent.start(server)["path"] == "cpu_snapshot"


def test_a_capture_for_which_there_is_no_room_waits_until_there_is(agent: LiveAgent) -> None:
    half = agent.client.get("/v1/node").json()["memory_bytes"] * 6 // 10
    server = case_server(agent, "room", resources={"memory_bytes": half})
    view = agent.start(server)
    assert [one for one in agent.snapshots() if one["server"] == view["server"]] == []
    agent.stop(view["id"])
    assert agent.captured(view)["status"] == "good"
