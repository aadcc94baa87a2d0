"""What a node concludes from how starts go: canaries, opt-out, quarantine; captures that never storm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.cases import captured, case_server, folder_of, in_runtime
from tests.node.live_agent import LiveAgent
from tests.runtime.conftest import RUNC_BY_NIGHT, RUNTIMES
from tests.runtime.sandboxes import eventually
from tests.snapshot.kept_files import flip_a_bit

from glowplug.node.capture import CAPTURES_AT_ONCE, FIRST_RETRY_S, SLOWEST_RETRY_S, _Attempts

pytestmark = pytest.mark.sandbox


@pytest.fixture(params=RUNC_BY_NIGHT)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agent(agent: LiveAgent, runtime: str) -> Iterator[LiveAgent]:
    with in_runtime(agent, runtime) as agent:
        yield agent


@pytest.fixture
def own_agent(own_agent: LiveAgent, runtime: str) -> Iterator[LiveAgent]:
    with in_runtime(own_agent, runtime) as own_agent:
        yield own_agent


def test_warm_up_answers_that_come_again_are_canaries_and_others_are_not(
    agent: LiveAgent, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text("Paris")
    paths = ["/read?path=/data/answer", "/clock", "/random", "/die"]
    server = case_server(
        agent,
        "recorded",
        snapshot={"warmup": [{"path": path} for path in paths]},
        volumes=[{"host_path": str(tmp_path), "mount_path": "/data"}],
    )
    snapshot = captured(agent, server)
    assert snapshot["canary"] == ["GET /read?path=/data/answer (recorded at warm-up)"]
    (tmp_path / "answer").write_text("Rome")
    view = agent.start(server)
    assert view["path"] == "cold"
    assert "answered differently" in view["fallback_reason"]


def test_without_a_warm_up_answer_that_comes_again_the_ready_call_is_the_canary(agent: LiveAgent) -> None:
    server = case_server(agent, "unrepeatable", snapshot={"warmup": [{"path": "/clock"}]})
    assert captured(agent, server)["canary"] == ["GET / (the ready call)"]


def test_answers_of_a_server_with_secrets_are_not_recorded(agent: LiveAgent) -> None:
    """A captured replica has none of them, a copy does: it may answer otherwise, and rightly."""
    server = case_server(agent, "keyed", snapshot={"warmup": [{"path": "/env"}]}, secrets=["TOKEN"])
    assert captured(agent, server)["canary"] == ["GET / (the ready call)"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_declared_canary_is_shown_as_such(agent: LiveAgent) -> None:
    server = case_server(agent, "declared", snapshot={"canary": [{"path": "/"}], "warmup": [{"path": "/"}]})
    assert captured(agent, server)["canary"] == ["GET / (declared)"]


@pytest.mark.nightly
def test_a_snapshot_whose_restores_are_slower_than_cold_starts_is_given_up_for_good(
    own_agent: LiveAgent,
) -> None:
    """The hook takes longer than all of a cold start."""
    slow = {"after_restore": {"command": ["sleep", "6"]}}
    server = case_server(own_agent, "slow", snapshot=slow)
    snapshot = captured(own_agent, server)

    def start() -> tuple[str, str | None]:
        view = own_agent.start(server)
        own_agent.stop(view["id"], grace_s=0)
        return view["path"], view["fallback_reason"]

    def restores_noted() -> int:
        """Noted beside the serving, which does not wait for it."""
        return len(json.loads(own_agent.state.start_times.read_text())["keys"][snapshot["id"]]["restored_s"])

    assert [start() for _ in range(3)] == [("cpu_snapshot", None)] * 3
    eventually(lambda: restores_noted() == 3, "all three are noted")
    for number in (2, 3):
        path, reason = start()
        assert path == "cold"
        assert f"a cold start is measured ({number} of 3)" in str(reason)
    own_agent.kill()
    own_agent.start_again()
    path, reason = start()
    assert path == "cold"
    assert "opted out: restores are not faster" in str(reason)
    [view] = own_agent.snapshots()
    assert (view["status"], view["reason"]) == ("opted_out", reason)
    assert own_agent.metric("glowplug_opted_out_snapshots") == 1
    assert own_agent.metric('glowplug_fallbacks_total{reason_class="opted_out"}') == 1

    assert own_agent.client.delete(f"/v1/snapshots/{snapshot['id']}").status_code == 204
    assert start()[0] == "cold"
    assert own_agent.snapshots() == [], "nor is it captured again"
    changed = case_server(own_agent, "slow", env={"VERSION": "2"})
    assert captured(own_agent, changed)["status"] == "good", "another key is another chance"


def test_a_node_whose_restores_fail_whatever_is_restored_stops_restoring_until_one_works(
    own_agent: LiveAgent,
) -> None:
    sound = case_server(own_agent, "sound")
    captured(own_agent, sound)
    broken = [case_server(own_agent, f"broken-{number}") for number in range(3)]
    for server in broken:
        flip_a_bit(own_agent.state, captured(own_agent, server)["id"])
    for server in broken:
        view = own_agent.start(server)
        assert view["path"] == "cold"
        eventually(lambda: not [one for one in own_agent.snapshots() if one["status"] == "capturing"])

    view = own_agent.start(sound)
    assert view["path"] == "cold"
    assert "the node is quarantined: restores of " in view["fallback_reason"]
    assert own_agent.client.get("/v1/node").json()["quarantine"]
    assert own_agent.metric("glowplug_node_quarantined") == 1

    own_agent.kill()
    record = json.loads(own_agent.state.probation.read_text())
    own_agent.state.probation.write_text(json.dumps({**record, "trial_at": 1.0, "backoff_s": 1.0}))
    own_agent.start_again()
    assert own_agent.start(sound)["path"] == "cpu_snapshot", "the trial"
    eventually(lambda: own_agent.client.get("/v1/node").json()["quarantine"] is None, "its success is noted")
    assert own_agent.metric("glowplug_node_quarantined") == 0


@pytest.mark.timeout(600)
def test_twenty_replicas_that_ask_at_once_cause_one_capture_per_key_and_one_at_a_time(
    agent: LiveAgent,
) -> None:
    succeeded = 'glowplug_captures_total{outcome="succeeded"}'
    before = agent.metric(succeeded)
    keys = [
        case_server(agent, f"storm-{number}", resources={"memory_bytes": 64 << 20}) for number in range(4)
    ]
    names = {server["name"] for server in keys}
    servers = [keys[0]] * 11 + keys[1:] * 3
    begun = [agent.begin(server) for server in servers]
    at_once = [0]

    def all_captured() -> bool:
        ours = [one for one in agent.snapshots() if one["server"] in names]
        at_once.append(sum(one["status"] == "capturing" for one in ours))
        return len(ours) == len(keys) and all(one["status"] == "good" for one in ours)

    eventually(all_captured, "all are captured", 300)
    assert max(at_once) <= CAPTURES_AT_ONCE
    assert {agent.settled(one)["state"] for one in begun} == {"ready"}
    assert agent.metric(succeeded) - before == len(keys)


def test_two_keys_of_one_server_live_side_by_side(agent: LiveAgent) -> None:
    """As on nodes of two processor types, or while a new version is rolled out."""
    one, other = (case_server(agent, "two-keys", env={"MODEL": model}) for model in ("old", "new"))
    first = captured(agent, one)
    second = captured_anew(agent, other, first)
    assert first["id"] != second["id"]
    assert folder_of(agent, first).exists()
    for server, snapshot in ((one, first), (other, second), (one, first)):
        view = agent.start(server)
        assert (view["path"], view["snapshot_id"]) == ("cpu_snapshot", snapshot["id"])


def captured_anew(agent: LiveAgent, server: Any, old: dict[str, Any]) -> dict[str, Any]:
    view = agent.start(server)
    assert re.search(r"env is .*new.*, was .*old", view["fallback_reason"])

    def found() -> dict[str, Any] | None:
        good = [one for one in agent.snapshots() if one["status"] == "good" and one["id"] != old["id"]]
        return next((one for one in good if one["server"] == view["server"]), None)

    snapshot = dict(eventually(found, "it is captured", 180))
    agent.stop(view["id"], grace_s=0)
    return snapshot


def test_a_key_waits_longer_after_each_failure_and_from_its_second_recapture_on() -> None:
    assert _Attempts().wait_s() == 0
    assert _Attempts(captures=1).wait_s() == 0
    assert [_Attempts(captures=count).wait_s() for count in (2, 3)] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S]
    assert [_Attempts(failures=count).wait_s() for count in (1, 2)] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S]
    assert _Attempts(failures=1, captures=5).wait_s() == FIRST_RETRY_S
    assert _Attempts(failures=50).wait_s() == SLOWEST_RETRY_S
