"""Cold starts: what becomes ready, and what fails with an error its user can act on."""

from __future__ import annotations

from typing import Any

import pytest
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually

from glowplug.types.leader import TERM_HEADER

pytestmark = pytest.mark.sandbox

SERVE = ["python3", "-m", "http.server", "8000"]
LISTENING_S = 8
"""Python listens by then, also on a busy machine."""


def test_a_cold_start_passes_its_stages_and_answers(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    assert view["path"] == "cold"
    assert list(view["stages_s"]) == ["allocate", "mount", "host_init"]
    assert view["fallback_reason"] == "snapshots are disabled for this server"
    assert view["memory_bytes"] > 1 << 20
    assert agent.ask(view) == "hello"


def test_a_replica_knows_its_name_and_resolves_it(agent: LiveAgent) -> None:
    view = agent.start(agent.server())
    assert agent.ask(view, "/state")["hostname"] == view["id"]
    assert agent.ask(view, f"/resolve?name={view['id']}") == "127.0.0.1"


def test_environment_and_secrets_reach_a_cold_replica(agent: LiveAgent) -> None:
    view = agent.start(agent.server(env={"MODEL": "tiny"}), secrets={"TOKEN": "very-secret-value"})
    env = agent.ask(view, "/env")
    assert (env["MODEL"], env["TOKEN"]) == ("tiny", "very-secret-value")
    assert agent.ask(view, "/told") == {
        "replica_id": view["id"],
        "restored": False,
        "env": {"MODEL": "tiny"},
        "secrets": {"TOKEN": "very-secret-value"},
    }
    record = (agent.state.replicas / view["id"] / "replica.json").read_text()
    assert "very-secret-value" not in record, "what is kept for a successor holds no secrets"


def test_one_id_asked_for_twice_is_one_start(agent: LiveAgent) -> None:
    request = agent.request(agent.server())
    answers = [agent.client.post("/v1/replicas", json=request) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    view = agent.settled(request["replica_id"])
    assert agent.client.post("/v1/replicas", json=request).json()["pid"] == view["pid"]
    assert len([one for one in agent.client.get("/v1/replicas").json() if one["id"] == view["id"]]) == 1


def test_a_leader_that_was_succeeded_starts_nothing(agent: LiveAgent) -> None:
    term = 2**52
    assert agent.client.get("/v1/replicas", headers={TERM_HEADER: str(term)}).status_code == 200
    request = agent.request(agent.server())
    refused = agent.client.post("/v1/replicas", json=request, headers={TERM_HEADER: str(term - 1)})
    assert (refused.status_code, refused.json()["code"]) == (503, "not_leader")
    listed = agent.client.get("/v1/replicas", headers={TERM_HEADER: str(term)}).json()
    assert request["replica_id"] not in {view["id"] for view in listed}
    assert agent.state.leader_term.exists()


def test_an_id_that_failed_is_not_started_again_by_a_repeated_request(agent: LiveAgent) -> None:
    request = agent.request(agent.server("false"))
    agent.client.post("/v1/replicas", json=request)
    first = agent.settled(request["replica_id"])
    assert agent.client.post("/v1/replicas", json=request).json() == first


def test_a_command_that_exits_is_told_with_its_code_and_last_words(agent: LiveAgent) -> None:
    view = agent.fail(agent.server("sh", "-c", "echo I need a model; exit 7"))
    assert view["exit_code"] == 7
    assert "exit code 7" in view["error"]["message"]
    assert view["error"]["code"] == "replica_failed"
    assert view["error"]["details"]["log"] == "I need a model"
    assert view["id"] in view["error"]["remedy"]


def test_a_command_that_does_not_exist_is_named(agent: LiveAgent) -> None:
    view = agent.fail(agent.server("vlm", "serve"))
    assert "'vlm' is not in its image" in view["error"]["message"]
    assert view["error"]["code"] == "replica_failed"


def test_a_server_that_dies_of_a_signal_is_told_so(agent: LiveAgent) -> None:
    view = agent.fail(agent.server("sh", "-c", "kill -SEGV $$"))
    assert "(signal 11)" in view["error"]["message"]


@pytest.mark.usefixtures("no_swap")
def test_out_of_memory_names_the_limit(agent: LiveAgent) -> None:
    hog = "x = bytearray(b'x') * (900 << 20)\nimport time\ntime.sleep(1000)"
    view = agent.fail(agent.server("python3", "-c", hog))
    assert "ran out of memory" in view["error"]["message"]
    assert "0.12 GiB" in view["error"]["message"]
    assert "memory=" in view["error"]["remedy"]


def test_never_ready_names_what_it_listens_on_instead(agent: LiveAgent) -> None:
    view = agent.fail(agent.server(env={"PORT": "9000"}, startup_timeout_s=LISTENING_S))
    assert view["error"]["code"] == "deadline_exceeded"
    assert f"on port 8000 within {LISTENING_S} s" in view["error"]["message"]
    assert "It listens on 9000 (all addresses)." in view["error"]["message"]
    assert "port=" in view["error"]["remedy"]


def test_listening_on_loopback_only_is_told(agent: LiveAgent) -> None:
    view = agent.fail(agent.server(env={"ADDRESS": "127.0.0.1"}, startup_timeout_s=LISTENING_S))
    assert "8000 (127.0.0.1 only)" in view["error"]["message"]
    assert "0.0.0.0" in view["error"]["remedy"]


def test_listening_on_nothing_is_told(agent: LiveAgent) -> None:
    view = agent.fail(agent.server("sleep", "1000", startup_timeout_s=1))
    assert "It listens on no TCP port." in view["error"]["message"]


def test_a_ready_path_that_is_refused_is_told_with_its_status(agent: LiveAgent) -> None:
    server = agent.server(*SERVE, ready={"path": "/no/such/file"}, startup_timeout_s=LISTENING_S)
    assert "the last answer was 404" in agent.fail(server)["error"]["message"]


def test_an_image_that_does_not_exist_fails_the_replica(agent: LiveAgent) -> None:
    view = agent.fail(agent.server(), image_id="im-0000000000000000")
    assert view["error"]["code"] == "not_found"


def test_what_does_not_fit_is_refused_with_the_numbers(agent: LiveAgent) -> None:
    answer = agent.post(agent.server(resources={"memory_bytes": 1 << 50}))
    assert answer.status_code == 503
    assert "1048576.2 GiB of memory" in answer.json()["message"]
    assert "GiB are free" in answer.json()["message"]
    answer = agent.post(agent.server(resources={"gpu": "H100:2"}))
    assert answer.status_code == 503
    assert "needs 2 GPU(s)" in answer.json()["message"]


def test_memory_is_promised_once_and_taken_back(agent: LiveAgent) -> None:
    free = agent.client.get("/v1/node").json()
    most = free["memory_bytes"] - free["memory_used_bytes"] - (256 << 20)
    view = agent.start(agent.server(resources={"memory_bytes": most}))
    assert agent.post(agent.server(resources={"memory_bytes": 1 << 30})).status_code == 503
    agent.stop(view["id"], grace_s=0)
    assert agent.client.get("/v1/node").json()["memory_used_bytes"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"replica_id": "../../etc"},
        {"replica_id": "a/b"},
        {"replica_id": ""},
        {"replica_id": "x" * 64},
        {"replica_id": "ends-with-"},
        {"app": "../up"},
        {"app": "a\nb"},
        {"deployment_id": "v 1"},
        {"secrets": {"A=B": "x"}},
        {"secrets": {"A": "nul\0"}},
        {"secrets": {"": "x"}},
        {"secrets": {"A": "x" * 100_000}},
        {"server": {"name": "web"}},
    ],
)
def test_hostile_requests_are_refused_before_anything_is_made(
    agent: LiveAgent, changes: dict[str, Any]
) -> None:
    answer = agent.client.post("/v1/replicas", json=agent.request(agent.server()) | changes)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_input"
    assert answer.json()["remedy"]
    assert agent.leftovers() == []


def test_unknown_replicas_are_not_found(agent: LiveAgent) -> None:
    for path in ("/v1/replicas/nobody", "/v1/replicas/nobody/logs", "/v1/replicas/%2e%2e/logs"):
        assert agent.client.get(path).status_code == 404
    assert agent.client.post("/v1/replicas/nobody/stop").status_code == 404


def test_the_watch_tells_what_exists_and_then_what_changes(agent: LiveAgent) -> None:
    with agent.client.stream("GET", "/v1/watch") as answer:
        lines = answer.iter_lines()
        while '"synced"' not in next(lines):
            pass
        replica_id = agent.begin(agent.server())
        while not (replica_id in (line := next(lines)) and '"ready"' in line):
            pass
        while '"heartbeat"' not in next(lines):
            pass


def test_the_agent_is_small_at_rest(agent: LiveAgent) -> None:
    def resident_mb() -> float:
        status = open(f"/proc/{agent.pid}/status").read()  # noqa: PTH123, SIM115
        return int(status.partition("VmRSS:")[2].split()[0]) / 1000

    assert resident_mb() < 150
    before = resident_mb()
    views = [agent.start(agent.server()) for _ in range(3)]
    assert resident_mb() - before < 5 * len(views)


def test_four_start_at_once(agent: LiveAgent) -> None:
    ids = [agent.begin(agent.server()) for _ in range(4)]
    assert [agent.settled(one)["state"] for one in ids] == ["ready"] * 4
    eventually(lambda: agent.client.get("/v1/node").json()["replicas"] == 4)
