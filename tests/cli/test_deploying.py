"""deploy, run, stop, rollback, image build, snapshot create and verify against a control plane over HTTP."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from glowplug.cli.deploy import example_request

from .conftest import Glowplug, deployment, replica, snapshot
from .fake_control import FakeControl

APP = """
import glowplug as gp
app = gp.App("chat")

@app.server(image=gp.Image.host_python(), port=8000, ready="/health",
            secrets=[gp.Secret.from_dict({"KEY": "value"})])
def vllm():
    return ["python3", "-m", "http.server", "8000"]
"""
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def app_file(tmp_path: Path) -> str:
    (tmp_path / "app.py").write_text(APP)
    return str(tmp_path / "app.py")


def finished(control: FakeControl) -> None:
    control.deploy_events = [
        {"text": "building image", "fraction": 0.1},
        {"text": "registering", "fraction": 0.9},
        {"deployment": deployment()},
    ]


def test_deploy_prints_addresses_and_something_to_paste(
    control: FakeControl, glowplug: Glowplug, app_file: str
) -> None:
    finished(control)
    result = glowplug("deploy", app_file)
    assert result.exit_code == 0
    assert f"{control.url}/chat/vllm" in result.stdout
    assert f"curl {control.url}/chat/vllm/health" in result.stderr
    assert "building image" in result.stderr
    assert control.bodies[0]["app"]["name"] == "chat"
    assert control.bodies[0]["secrets"] == {"KEY": "value"}


def test_deploy_as_json_is_the_deployment(control: FakeControl, glowplug: Glowplug, app_file: str) -> None:
    finished(control)
    assert json.loads(glowplug("deploy", app_file, "--json").stdout)["id"] == "chat-v1"


def test_deploy_under_another_name(control: FakeControl, glowplug: Glowplug, app_file: str) -> None:
    finished(control)
    glowplug("deploy", f"{app_file}:chat", "--name", "other")
    assert control.bodies[0]["app"]["name"] == "other"


def test_deploy_refuses_a_name_that_cannot_be_one(glowplug: Glowplug, app_file: str) -> None:
    result = glowplug("deploy", app_file, "--name", "No Name")
    assert result.exit_code == 1
    assert "is not allowed" in result.stderr


def test_a_failed_deploy_is_an_error(control: FakeControl, glowplug: Glowplug, app_file: str) -> None:
    error = {"code": "invalid_input", "message": "pip failed.", "remedy": "Fix it.", "details": {}}
    control.deploy_events = [{"text": "building"}, {"error": error}]
    result = glowplug("deploy", app_file)
    assert result.exit_code == 1
    assert "Error: pip failed.\nRemedy: Fix it." in result.stderr


def test_a_deploy_that_breaks_off_is_an_error(
    control: FakeControl, glowplug: Glowplug, app_file: str
) -> None:
    control.deploy_events = [{"text": "building"}]
    result = glowplug("deploy", app_file)
    assert result.exit_code == 1
    assert "stopped reporting" in result.stderr


def test_deploy_of_a_missing_file_is_an_error(glowplug: Glowplug) -> None:
    result = glowplug("deploy", "nowhere.py")
    assert result.exit_code == 1
    assert "nowhere.py cannot be read" in result.stderr


def test_ctrl_c_cancels_a_deploy(control: FakeControl, start_glowplug: Start, app_file: str) -> None:
    control.deploy_events, control.deploy_stalls = [{"text": "building"}], True
    process = start_glowplug("deploy", app_file)
    assert control.is_streaming.wait(60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert control.deploy_was_cut.wait(60)


def test_the_example_request_is_the_canary_when_there_is_one() -> None:
    call = {"method": "POST", "path": "/v1/x", "json_body": {"a": "it's"}}
    words = example_request("http://h/chat/vllm", {"snapshot": {"canary": [call]}})
    assert words == (
        "curl http://h/chat/vllm/v1/x -H 'Content-Type: application/json' -d '{\"a\": \"it'\"'\"'s\"}'"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_attached_run_shows_logs_and_removes_the_app_at_the_end(
    control: FakeControl, start_glowplug: Start, how: signal.Signals
) -> None:
    control.deploy_events = [
        {"deployment": deployment(app="http-server", urls={"server": "/http-server/server"})}
    ]
    control.registers = deployment(app="http-server", id="http-server-v1")
    control.replicas = [replica(id="r1", app="http-server")]
    control.log, control.log_never_ends = b"serving on 8000\n", True
    process = start_glowplug("run", "--env", "A=b", "--", "python3", "-m", "http.server", "8000")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert f"{control.url}/http-server/server" in lines[1].decode()
    assert lines[2] == b"serving on 8000\n"
    process.send_signal(how)
    assert process.wait(60) == 130
    assert control.asked[-1] == "POST /api/v1/apps/http-server/stop?remove=true"
    server = control.bodies[0]["app"]["servers"][0]
    assert server["command"] == ["python3", "-m", "http.server", "8000"]
    assert (server["port"], server["env"]) == (8000, {"A": "b"})


def test_ctrl_c_while_an_attached_run_deploys_leaves_nothing(
    control: FakeControl, start_glowplug: Start
) -> None:
    control.deploy_events, control.deploy_stalls = [{"text": "building"}], True
    process = start_glowplug("run", "--", "python3", "-m", "http.server", "8000")
    assert control.is_streaming.wait(60)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert control.deploy_was_cut.wait(60)
    assert not any("stop" in asked for asked in control.asked)


def test_an_attached_run_over_a_deployed_app_gives_it_back(
    control: FakeControl, start_glowplug: Start
) -> None:
    control.deployments = [deployment(app="http-server")]
    control.deploy_events = [{"deployment": deployment(app="http-server", id="http-server-v2", version=2)}]
    control.registers = deployment(app="http-server", id="http-server-v2", version=2)
    control.replicas = [replica(id="r1", app="http-server")]
    control.log, control.log_never_ends = b"serving\n", True
    process = start_glowplug("run", "--", "python3", "-m", "http.server", "8000")
    assert process.stdout is not None
    while process.stdout.readline() != b"serving\n":
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert control.asked[-1] == "POST /api/v1/apps/http-server/rollback?version=1"


def test_a_run_says_which_recipe_it_took_and_what_that_filled_in(
    control: FakeControl, glowplug: Glowplug
) -> None:
    finished(control)
    words = ["--canary", "GET /version", "--image", "any", "--", "vllm", "serve", "/m", "--port", "9000"]
    result = glowplug("run", "--detach", *words)
    assert result.exit_code == 0
    assert "server: Recipe vllm: port 9000, ready /health" in result.stderr
    snapshot = control.bodies[0]["app"]["servers"][0]["snapshot"]
    assert [call["path"] for call in snapshot["canary"]] == ["/version"]
    assert [call["path"] for call in snapshot["warmup"]] == ["/v1/completions"]
    result = glowplug("run", "--detach", "--recipe", "none", *words)
    assert "Recipe" not in result.stderr
    assert control.bodies[1]["app"]["servers"][0]["ready"]["path"] == "/"


def test_recipes_are_listed_for_people_and_for_programs(glowplug: Glowplug) -> None:
    assert "sglang.launch_server" in glowplug("recipes").stdout
    recipes = {recipe["name"]: recipe for recipe in json.loads(glowplug("recipes", "--json").stdout)}
    assert recipes["vllm"]["warmup"][0]["path"] == "/v1/completions"
    (sleeping,) = [v for v in recipes["vllm"]["variants"] if v["flag"] == "--enable-sleep-mode"]
    assert sleeping["after_restore"]["http"]["path"] == "/wake_up"


def test_a_detached_run_leaves_it_deployed(control: FakeControl, glowplug: Glowplug) -> None:
    finished(control)
    words = [
        "--name",
        "files",
        "--memory",
        "64MiB",
        "--min-replicas",
        "1",
        "--no-snapshot",
        "--runtime",
        "runc",
    ]
    result = glowplug("run", "--detach", *words, "--", "python3", "-m", "http.server", "8000")
    assert result.exit_code == 0
    assert not any("stop" in asked for asked in control.asked)
    app = control.bodies[0]["app"]
    server = app["servers"][0]
    assert app["name"] == "files"
    assert server["resources"]["memory_bytes"] == 64 << 20
    assert server["scaling"]["min_replicas"] == 1
    assert server["snapshot"]["enabled"] is False
    assert server["runtime"] == "runc"


def test_a_run_may_capture_the_memory_of_its_gpus(control: FakeControl, glowplug: Glowplug) -> None:
    finished(control)
    words = ["run", "--detach", "--name", "model", "--gpu-snapshot", "--gpu", "H100"]
    command = ["--", "python3", "-m", "http.server", "8000"]
    refused = glowplug(*words, *command)
    assert refused.exit_code != 0
    assert "runc" in refused.stderr
    assert glowplug(*words, "--runtime", "runc", *command).exit_code == 0
    assert control.bodies[0]["app"]["servers"][0]["snapshot"]["gpu"] is True


def test_a_runtime_that_does_not_exist_is_told_with_those_that_do(glowplug: Glowplug) -> None:
    result = glowplug("run", "--runtime", "docker", "--", "python3")
    assert result.exit_code != 0
    assert 'runtime="runsc", "runc" or "auto"' in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--env", "novalue", "--", "python3"],
        ["--volume", "/only", "--", "python3"],
        ["--volume", "/a:/b:wx", "--", "python3"],
        ["--venv", "/a", "--image-dir", "/b", "--", "python3"],
        [],
    ],
)
def test_a_malformed_run_is_wrong_usage(glowplug: Glowplug, words: list[str]) -> None:
    assert glowplug("run", *words).exit_code == 2


def test_stop_knows_a_replica_from_an_app(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica()]
    for target in ("chat-vllm-aaaaaa", "chat", "chat/vllm"):
        glowplug("stop", target)
    assert [asked for asked in control.asked if asked.startswith("POST")] == [
        "POST /api/v1/replicas/chat-vllm-aaaaaa/stop",
        "POST /api/v1/apps/chat/stop",
        "POST /api/v1/apps/chat/stop?server=vllm",
    ]


def test_stop_remove_says_that_it_is_gone(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica()]
    result = glowplug("stop", "chat", "--remove")
    assert "Stopping 1 replica of chat. It is no longer deployed." in result.stderr


def test_rollback_to_a_version(control: FakeControl, glowplug: Glowplug) -> None:
    control.deployments = [deployment(version=2), deployment(version=1)]
    assert "Version 1 of chat is active." in glowplug("rollback", "chat").stderr
    glowplug("rollback", "chat", "--to", "2")
    assert control.asked[-1] == "POST /api/v1/apps/chat/rollback?version=2"


def test_logs_prints_the_newest_replicas_log(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [
        replica(id="old", created_at=1.0), replica(id="new", created_at=2.0),
        replica(id="ended", created_at=3.0, state="failed"),
        replica(id="capture", created_at=4.0, purpose="capture"),
    ]  # fmt: skip
    control.log = "grüße\n".encode()
    assert glowplug("logs", "chat/vllm", "--tail", "5").stdout == "grüße\n"
    assert control.asked[-1] == "GET /api/v1/replicas/new/logs?tail=5"
    glowplug("logs", "ended", "-f")
    assert control.asked[-1] == "GET /api/v1/replicas/ended/logs?follow=true"


def test_logs_of_nothing_says_where_to_look(glowplug: Glowplug) -> None:
    result = glowplug("logs", "nothing")
    assert result.exit_code == 1
    assert "`glowplug ps --all`" in result.stderr


def test_image_build_builds_what_the_servers_need(
    control: FakeControl, glowplug: Glowplug, app_file: str
) -> None:
    view = {"id": "im-1", "kind": "host_python", "spec": {"kind": "host_python"}}
    control.build_events = [{"text": "binding /usr", "fraction": 0.5}, {"image": view}]
    result = glowplug("image", "build", app_file)
    assert "binding /usr" in result.stderr
    assert "im-1" in result.stdout
    assert control.bodies[0]["image"]["kind"] == "host_python"


def test_snapshot_create_waits_until_it_is_good(control: FakeControl, glowplug: Glowplug) -> None:
    control.deployments = [deployment()]
    control.captures = [snapshot(status="capturing"), snapshot(status="capturing"), snapshot()]
    result = glowplug("snapshot", "create", "chat", "--json")
    assert json.loads(result.stdout)["status"] == "good"
    assert control.bodies == [{"app": "chat", "server": "vllm"}]


def test_snapshot_create_of_an_app_with_several_servers_asks_which(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.deployments = [deployment(servers=["a", "b"])]
    result = glowplug("snapshot", "create", "chat")
    assert result.exit_code == 1
    assert "Say which: chat/a." in result.stderr


def test_a_failed_capture_is_an_error(control: FakeControl, glowplug: Glowplug) -> None:
    control.deployments = [deployment()]
    control.captures = [
        snapshot(status="capturing"),
        snapshot(status="quarantined", reason="the canary answered differently"),
    ]
    result = glowplug("snapshot", "create", "chat/vllm")
    assert result.exit_code == 1
    assert "the canary answered differently" in result.stderr


def test_verifying_a_bad_snapshot_is_an_error(control: FakeControl, glowplug: Glowplug) -> None:
    control.snapshots = [snapshot(), snapshot(id="sn-2", status="quarantined", reason="pages.img differs")]
    assert glowplug("snapshot", "verify", "sn-1").exit_code == 0
    result = glowplug("snapshot", "verify", "sn-2")
    assert result.exit_code == 1
    assert "pages.img differs" in result.stderr
