"""Listings: tables for people, the API's JSON for programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Glowplug, cold_start, deployment, replica, snapshot
from .fake_control import FakeControl


def test_ps_shows_how_each_replica_came_to_life(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica(), replica(id="chat-vllm-bbbbbb", state="starting", stage="host_init",
                                           ready_at=None, path="cold")]  # fmt: skip
    first, second = glowplug("ps").stdout.splitlines()[1:]
    for word in ("chat-vllm-aaaaaa", "chat/vllm", "ready", "cpu_snapshot", "1.39 s", "1.96 GB"):
        assert word in first
    assert "starting (host_init)" in second


def test_ps_shows_device_memory_where_there_is_a_gpu(control: FakeControl, glowplug: Glowplug) -> None:
    assert "DEVICE" not in glowplug("ps").stdout
    control.replicas = [
        replica(gpus=["GPU-1"], device_bytes=7_500_000_000),
        replica(id="chat-web-bbbbbb"),
    ]
    head, first, second = glowplug("ps").stdout.splitlines()
    assert "SHARE  DEVICE  " in head
    assert "7.50 GB" in first
    assert "7.50 GB" not in second


def test_ps_shows_where_the_device_memory_of_what_is_parked_is(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.replicas = [replica(state="parked", device_bytes=0, suspended_bytes=7_500_000_000)]
    head, line = glowplug("ps").stdout.splitlines()
    assert "DEVICE" in head
    assert "0 B, 7.50 GB on host" in line
    (told,) = json.loads(glowplug("ps", "--json").stdout)
    assert (told["device_bytes"], told["suspended_bytes"]) == (0, 7_500_000_000)


def test_ps_shows_what_is_parked_and_how_long_it_took_to_wake(
    control: FakeControl, glowplug: Glowplug
) -> None:
    woken = {"path": "parked", "ready_at": 9_000.0, "stages_s": {"host_init": 0.01, "first_answer": 0.03}}
    control.replicas = [replica(state="parked", is_pushed_out=True), replica(id="chat-vllm-b", **woken)]
    first, second = glowplug("ps").stdout.splitlines()[1:]
    assert "parked (in swap)" in first
    assert "40 ms" in second or "0.04 s" in second


def test_ps_shows_the_nodes_where_there_are_several(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica()]
    assert "NODE" not in glowplug("ps").stdout
    control.replicas = [replica(node="alpha"), replica(id="chat-vllm-b", node="beta")]
    head, first, second = glowplug("ps").stdout.splitlines()
    assert "NODE" in head
    assert ("alpha" in first, "beta" in second) == (True, True)


def test_ps_hides_stopped_replicas_unless_asked(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica(id="a", state="stopped"), replica(id="b", state="failed")]
    assert [view["id"] for view in json.loads(glowplug("ps", "--json").stdout)] == ["b"]
    assert [view["id"] for view in json.loads(glowplug("ps", "--all", "--json").stdout)] == ["a", "b"]


def test_ps_of_one_app(control: FakeControl, glowplug: Glowplug) -> None:
    control.replicas = [replica(), replica(id="x", app="other")]
    assert [view["id"] for view in json.loads(glowplug("ps", "other", "--json").stdout)] == ["x"]


def _app(name: str, **servers: dict[str, object] | None) -> dict[str, object]:
    counts = dict.fromkeys(("ready", "starting", "desired", "in_flight", "held"), 0)
    return {
        "name": name, "deployment_id": f"{name}-v1", "version": 1,
        "servers": [
            {"name": server, "url": f"/{name}/{server}", "heat": heat, **counts}
            for server, heat in servers.items()
        ],
    }  # fmt: skip


def test_servers_at_zero_are_listed_with_what_their_next_start_would_find(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.replicas = [replica()]
    control.status["apps"] = [
        _app("chat", vllm={"heat": "running"}, told={"heat": "snapshot", "snapshot_id": "sn-1"}),
        _app("far", web={"heat": "region"}, cold={"heat": "image", "reason": "no snapshot"}, unknown=None),
        _app("parked", web={"heat": "parked"}),
    ]
    lines = glowplug("ps").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["chat-vllm-aaaaaa", "chat/told", "far/web", "far/cold"]
    assert "zero (snapshot on SSD)" in lines[1]
    assert "zero (snapshot in the region)" in lines[2]
    assert "zero (image only)" in lines[3]
    assert lines[3].rstrip().endswith("no snapshot")
    assert len(glowplug("ps", "far").stdout.splitlines()) == 3
    assert [view["id"] for view in json.loads(glowplug("ps", "--json").stdout)] == ["chat-vllm-aaaaaa"]
    status = glowplug("status").stdout
    assert "snapshot in the region" in status
    (_chat, far, _parked) = json.loads(glowplug("status", "--json").stdout)["apps"]
    assert [server["heat"] and server["heat"]["heat"] for server in far["servers"]] == [
        "region",
        "image",
        None,
    ]
    assert "GET /api/v1/status?heat=true" in control.asked


def test_an_empty_listing_says_so_on_stderr(glowplug: Glowplug) -> None:
    result = glowplug("ps")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert "No replicas" in result.stderr


def test_quiet_leaves_only_answers(glowplug: Glowplug) -> None:
    result = glowplug("--quiet", "ps")
    assert (result.stdout, result.stderr) == ("", "")


def test_a_servers_words_cannot_drive_the_terminal(control: FakeControl, glowplug: Glowplug) -> None:
    hostile = {"code": "replica_failed", "message": "\x1b[2J\x07[red]boo[/red]\r"}
    control.replicas = [replica(state="failed", error=hostile)]
    output = glowplug("ps").stdout
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "[red]boo[/red]" in output


@pytest.mark.parametrize(
    ("command", "attribute", "views"),
    [
        (["ps"], "replicas", [replica()]),
        (["deployments"], "deployments", [deployment()]),
        (["snapshot", "ls"], "snapshots", [snapshot()]),
        (["coldstarts"], "cold_starts", [cold_start()]),
    ],
)
def test_json_of_a_listing_is_that_of_the_api(
    control: FakeControl,
    glowplug: Glowplug,
    command: list[str],
    attribute: str,
    views: list[dict[str, object]],
) -> None:
    setattr(control, attribute, views)
    (printed,) = json.loads(glowplug(*command, "--json").stdout)
    (sent,) = views
    assert {name: printed[name] for name in sent if name != "spec"} == {
        name: value for name, value in sent.items() if name != "spec"
    }


def test_status_shows_nodes_and_servers(control: FakeControl, glowplug: Glowplug) -> None:
    node = {
        "name": "here", "agent_pid": 1, "version": "1", "cpus": 2, "cpus_used": 1, "memory_bytes": 8e9,
        "memory_used_bytes": 1e9, "runtime": "runsc 1",
    }  # fmt: skip
    server = {
        "name": "vllm", "url": "/chat/vllm", "ready": 1, "starting": 0, "desired": 1, "in_flight": 3,
        "held": 0,
    }  # fmt: skip
    control.status = {
        "version": "0.1.0", "uptime_s": 7200,
        "nodes": [{"name": "here", "is_reachable": True, "view": node}, {"name": "x", "is_reachable": False}],
        "apps": [{"name": "chat", "deployment_id": "chat-v2", "version": 2, "servers": [server]}],
    }  # fmt: skip
    output = glowplug("status").stdout
    for word in (
        "Glowplug 0.1.0",
        "up for 2 h",
        "1 of 2",
        "1.00 GB of 8.00 GB",
        "unreachable",
        "chat/vllm",
        "v2",
    ):
        assert word in output
    assert json.loads(glowplug("status", "--json").stdout)["apps"][0]["version"] == 2
    assert "leads" not in output


@pytest.mark.parametrize(
    ("leadership", "words"),
    [
        ({"role": "leader", "term": 7, "is_shared": True}, "It leads, term 7."),
        (
            {"role": "standby", "term": 7, "leader": "http://a:8080", "is_shared": True},
            "It stands by; http://a:8080 leads, term 7.",
        ),
        ({"role": "cut_off", "term": 7, "is_shared": True}, "does not say who leads now"),
    ],
)
def test_status_of_one_of_several_control_planes_says_who_leads(
    control: FakeControl, glowplug: Glowplug, leadership: dict[str, Any], words: str
) -> None:
    control.status = {"version": "0.1.0", "uptime_s": 1, "nodes": [], "apps": [], "leadership": leadership}
    result = glowplug("status")
    assert words in result.stdout
    # Who stands by does not know what is deployed, and does not say that nothing is.
    assert ("No app is deployed" in result.stdout + result.stderr) == (leadership["role"] != "standby")


def test_coldstarts_shows_waterfalls_of_both_kinds_and_quantiles(
    control: FakeControl, glowplug: Glowplug
) -> None:
    restored = [
        cold_start(id=f"cs-{n}", path="cpu_snapshot", total_s=3.0 + n / 10, stages_s={"host_init": 3.0},
                   bytes_by_tier={"ssd": 1_960_000_000}, chunks_by_tier={"ssd": 2040})
        for n in range(10)
    ]  # fmt: skip
    control.cold_starts = [*restored, cold_start(), cold_start(id="f", outcome="failed", error="no memory")]
    output = glowplug("coldstarts").stdout
    for word in ("Newest cold start", "Newest restored start", "host_init", "1.96 GB", "no memory", "92.0 s"):
        assert word in output
    assert "2040 chunks" in " ".join(output.split())
    assert "cpu_snapshot  10" in output
    assert "cpu_snapshot is faster than cold by: p50 26.7x" in output


def test_coldstarts_asks_only_for_what_was_wanted(control: FakeControl, glowplug: Glowplug) -> None:
    glowplug("coldstarts", "chat", "--since", "1h", "--limit", "7")
    assert control.asked == ["GET /api/v1/coldstarts?app=chat&since_s=3600.0&limit=7"]


def test_a_wrong_duration_is_wrong_usage(glowplug: Glowplug) -> None:
    result = glowplug("coldstarts", "--since", "yesterday")
    assert result.exit_code == 2
    assert "is not a duration" in result.stderr


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_coldstarts_draws_a_picture(
    control: FakeControl, glowplug: Glowplug, tmp_path: Path, suffix: str
) -> None:
    control.cold_starts = [cold_start(), cold_start(path="cpu_snapshot", total_s=3.4)]
    assert glowplug("coldstarts", "--svg", str(tmp_path / f"cdf.{suffix}")).exit_code == 0
    assert (tmp_path / f"cdf.{suffix}").stat().st_size > 1000


def test_coldstarts_draws_in_the_terminal(control: FakeControl, glowplug: Glowplug) -> None:
    control.cold_starts = [cold_start(), cold_start(path="parked", total_s=0.04)]
    output = glowplug("coldstarts", "--plot").stdout
    assert "100% ┤" in output
    assert "■ parked        n = 1" in output


def test_deployments_marks_the_active_version(control: FakeControl, glowplug: Glowplug) -> None:
    control.deployments = [deployment(version=2), deployment(active=False)]
    first, second = glowplug("deployments").stdout.splitlines()[1:]
    assert "active" in first
    assert "active" not in second


def test_snapshot_ls_filters_by_app(control: FakeControl, glowplug: Glowplug) -> None:
    control.snapshots = [snapshot(), snapshot(id="sn-2", app="other", status="quarantined", reason="canary")]
    output = glowplug("snapshot", "ls", "other").stdout
    assert "sn-2" in output
    assert "canary" in output
    assert "sn-1" not in output


def test_a_snapshot_is_listed_for_whoever_uses_it_here_and_shown_with_whose_it_was(
    control: FakeControl, glowplug: Glowplug
) -> None:
    control.snapshots = [snapshot(app="old", server="web", used_by=["new/web", "newer/web"])]
    for app in ("old", "new", "newer"):
        output = glowplug("snapshot", "ls", app).stdout
        assert "new/web, newer/web" in output
        assert "old/web" not in output
    assert "sn-1" not in glowplug("snapshot", "ls", "ne").stdout
    assert "old/web" in glowplug("snapshot", "show", "sn-1").stdout


def test_snapshot_show_spells_out_the_key(control: FakeControl, glowplug: Glowplug) -> None:
    control.snapshots = [snapshot()]
    output = glowplug("snapshot", "show", "sn-1").stdout
    assert "epyc" in output
    assert "5.40 s" in output


def test_snapshot_show_says_which_gpus_it_needs(control: FakeControl, glowplug: Glowplug) -> None:
    gpu = {"uuid": "GPU-1", "chip": "NVIDIA H100", "memory_bytes": 80_000_000_000}
    used = gpu | {"uuid": "GPU-2", "is_given": True, "held_bytes": 7_500_000_000}
    control.snapshots = [snapshot(gpus=[gpu, used])]
    lines = [line.strip() for line in glowplug("snapshot", "show", "sn-1").stdout.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("gpus"))
    assert lines[first].endswith("NVIDIA H100 (80.00 GB): 7.50 GB of it captured")
    assert lines[first + 1] == "NVIDIA H100 (80.00 GB): in the machine, not used"
    assert "a restore needs" in lines[first + 2]
    control.snapshots = [snapshot()]
    assert "gpus" not in glowplug("snapshot", "show", "sn-1").stdout


def test_image_inspect_prints_what_it_was_made_from(control: FakeControl, glowplug: Glowplug) -> None:
    control.images = [{"id": "im-1", "kind": "host_python", "spec": {"kind": "host_python", "workdir": "/w"}}]
    assert json.loads(glowplug("image", "inspect", "im-1").stdout)["spec"]["workdir"] == "/w"


def test_names_from_the_command_line_stay_one_part_of_the_path(
    control: FakeControl, glowplug: Glowplug
) -> None:
    glowplug("image", "rm", "im-../replicas?x=1")
    assert control.asked == ["DELETE /api/v1/images/im-..%2Freplicas%3Fx%3D1"]
