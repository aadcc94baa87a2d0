"""``cluster`` and ``explain``: what is asked of the control plane, and how its answers look."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from glowplug.engine.ray import head
from glowplug.types.errors import Conflict, NotFound

from .conftest import Glowplug
from .fake_control import FakeControl

TOKEN = f"gpj1.{'ab' * 32}.{'s' * 43}"


def node(**changes: Any) -> dict[str, Any]:
    return {
        "name": "beta", "is_reachable": True, "state": "ready", "why": "", "address": "10.0.0.2:7443",
        "labels": {"zone": "east", "rack": "2"}, "replicas": 3, **changes,
    }  # fmt: skip


def test_a_token_is_all_that_is_printed_on_stdout(control: FakeControl, glowplug: Glowplug) -> None:
    control.join_token = {"id": "0123456789ab", "created_at": 1.0, "expires_at": 2.0, "token": TOKEN}
    result = glowplug("cluster", "token", "--ttl", "15m")
    assert result.stdout == f"{TOKEN}\n"
    assert "cluster join" in result.stderr
    assert control.asked == ["POST /api/v1/join-tokens?ttl_s=900.0"]
    listed = glowplug("cluster", "token", "--list").stdout
    assert "0123456789ab" in listed
    assert TOKEN not in listed
    glowplug("cluster", "token", "--revoke", "0123456789ab")
    assert control.asked[-1] == "DELETE /api/v1/join-tokens/0123456789ab"


def test_status_says_what_each_machine_may_be_used_for_and_why_not(
    control: FakeControl, glowplug: Glowplug
) -> None:
    why = "silent for 9 s: what ran there is started elsewhere"
    router = {"state": "following", "address": "10.0.0.2:8080", "table_age_s": 0.2}
    silent = {"state": "away", "address": "10.0.0.3:8080", "table_age_s": 70.0}
    control.nodes = [
        node(router=router),
        node(name="gamma", state="lost", why=why, labels={}, is_reachable=False, router=silent),
    ]
    head, first, second = glowplug("cluster", "status").stdout.splitlines()
    assert head.split()[:4] == ["NODE", "STATE", "ADDRESS", "REPLICAS"]
    assert "ROUTER" in head
    for word in ("beta", "ready", "10.0.0.2:7443", "10.0.0.2:8080 ", "rack=2 zone=east"):
        assert word in first
    assert "10.0.0.3:8080 (silent for 1 min)" in second
    assert ("lost" in second, why in second) == (True, True)
    assert json.loads(glowplug("cluster", "status", "--json").stdout)[1]["why"] == why


def test_drain_undo_and_remove(control: FakeControl, glowplug: Glowplug) -> None:
    control.nodes = [node()]
    glowplug("cluster", "drain", "beta")
    glowplug("cluster", "drain", "beta", "--undo")
    glowplug("cluster", "remove", "beta", "--force")
    assert control.asked == [
        "POST /api/v1/nodes/beta/drain", "POST /api/v1/nodes/beta/undrain",
        "DELETE /api/v1/nodes/beta?force=true",
    ]  # fmt: skip


def test_drain_waits_for_the_node_to_be_empty_but_not_for_ever(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.nodes = [node(replicas=2)]
    result = glowplug("cluster", "drain", "beta", "--wait", "0.1")
    assert result.exit_code == 1
    assert "2 replicas are still on beta" in result.stderr
    control.nodes = [node(replicas=0)]
    assert "Nothing runs on beta" in glowplug("cluster", "drain", "beta", "--wait", "10s").stderr


def test_errors_are_the_control_planes_own(control: FakeControl, glowplug: Glowplug) -> None:
    control.error = Conflict("3 replicas are on node beta.", remedy="Drain it.")
    result = glowplug("cluster", "remove", "beta")
    assert (result.exit_code, "Drain it." in result.stderr) == (1, True)
    control.error = NotFound("No node.", remedy="Look.")
    assert glowplug("cluster", "drain", "nobody").exit_code == 1


def test_explain_shows_every_part_of_every_nodes_score(control: FakeControl, glowplug: Glowplug) -> None:
    control.placement = {
        "replica_id": "chat-1", "node": "beta", "placed_at": 1.0,
        "scores": [
            {"node": "alpha", "total": 70, "parts": {"heat": 60, "cached": 10}, "refusal": "Disk full"},
            {"node": "beta", "total": 21.5, "parts": {"heat": 20, "memory": 1.5}},
            {"node": "gamma", "total": 0, "why_not": "draining: being drained"},
        ],
    }  # fmt: skip
    head, alpha, beta, gamma = glowplug("explain", "chat-1").stdout.splitlines()
    assert head.split()[:3] == ["NODE", "SCORE", "HEAT"]
    assert alpha.split()[:4] == ["alpha", "70", "60", "10"]
    assert ("Disk full" in alpha, "21.5" in beta, "draining" in gamma) == (True, True, True)
    assert json.loads(glowplug("explain", "chat-1", "--json").stdout)["node"] == "beta"
    assert control.asked[0] == "GET /api/v1/replicas/chat-1/placement"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["10.0.0.1:8080"], "belong together"),
        (["--token", TOKEN], "belong together"),
        (["--name", "beta"], "when it joins"),
        (["--serve", "127.0.0.1:8081"], "has not joined a cluster yet"),
        (["a:1", "--token", TOKEN, "--serve", "8080"], "no address to listen on"),
        ([], "has not joined a cluster yet"),
        (["10.0.0.1:8080", "--token", "nonsense"], "no join token"),
        (["ftp://x", "--token", TOKEN], "not the address"),
        (["a:1", "--token", TOKEN, "--listen", "7443"], "no address to listen on"),
        (["a:1", "--token", TOKEN, "--listen", "0.0.0.0:0"], "no address to listen on"),
        (["a:1", "--token", TOKEN, "--name", "No Name"], "node name"),
        (["a:1", "--token", TOKEN, "--listen", "10.0.0.2:1", "--label", "zone=a b"], "labels.zone"),
    ],
)
def test_a_machine_that_joins_says_what_is_wrong_before_it_asks(
    glowplug: Glowplug, control: FakeControl, words: list[str], said: str
) -> None:
    result: Result = glowplug("cluster", "join", *words)
    assert (result.exit_code, said in result.stderr) == (1, True), result.stderr
    assert control.asked == []


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ((), "--advertise"),
        (("--address", "ray://10.0.0.1:10001"), "HOST:PORT"),
        (("--address", "auto", "--node-state", "here"), "--node-state /var/lib"),
        (("--address", "auto", "--only", "Not Ours=x"), "NAME=VALUE"),
        (("--address", "auto", "--serve", "nowhere"), "HOST:PORT"),
    ],
)
def test_up_on_ray_says_what_it_wants_to_know(
    glowplug: Glowplug, words: tuple[str, ...], remedy: str
) -> None:
    result = glowplug("cluster", "up", "--engine", "ray", *words)
    assert (result.exit_code, remedy in result.stderr) == (1, True), result.stderr


def test_without_ray_its_commands_say_how_to_get_it(
    glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glowplug.engine.ray.head.importlib.util.find_spec", lambda name: None)
    for words in (
        ("up", "--engine", "ray", "--advertise", "10.0.0.1"), ("join", "10.0.0.1:6379", "--engine", "ray"),
    ):  # fmt: skip
        result = glowplug("cluster", *words)
        assert (result.exit_code, "glowplug[ray]" in result.stderr) == (1, True), result.stderr


def test_of_a_ray_node_nothing_else_is_said_when_it_joins(glowplug: Glowplug) -> None:
    for words in (
        ("--advertise", "10.0.0.2"), ("10.0.0.1:6379", "--name", "beta"), ("10.0.0.1:6379", "--label", "a=b"),
    ):  # fmt: skip
        result = glowplug("cluster", "join", *words, "--engine", "ray")
        assert (result.exit_code, "--engine ray" in result.stderr) == (1, True), result.stderr


def test_a_machine_that_was_in_no_ray_cluster_of_ours_is_told_how_to_get_in(
    glowplug: Glowplug, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glowplug.engine.ray.head.check_installed", lambda: None)
    for words, said in (((), "cluster up --engine ray"), (("a:1", "--token", "gpj1.x"), "no join token")):
        result = glowplug("cluster", "join", *words, "--engine", "ray")
        assert (result.exit_code, said in result.stderr) == (1, True), result.stderr


def test_down_where_nothing_runs_does_nothing(glowplug: Glowplug) -> None:
    assert "Nothing was running" in glowplug("cluster", "down").stderr


def test_a_join_token_of_the_environment_is_not_handed_on_to_whatever_ray_starts(
    glowplug: Glowplug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "environment"
    program = f"import json, os; print(json.dumps(dict(os.environ)), file=open({str(seen)!r}, 'w'))"
    monkeypatch.setattr(head, "check_installed", lambda: None)
    monkeypatch.setattr(head, "join_command", lambda *_, **__: [sys.executable, "-c", program])
    monkeypatch.setenv("GLOWPLUG_JOIN_TOKEN", "rays-own")
    glowplug("cluster", "join", "10.0.0.1:6379", "--engine", "ray")
    environment = json.loads(seen.read_text())
    assert environment["RAY_AUTH_TOKEN"] == "rays-own"
    assert "GLOWPLUG_JOIN_TOKEN" not in environment
