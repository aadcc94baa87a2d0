"""Parked replicas with device memory, in runc, on the fake driver: it shows order and safety, never speed.

Two models that do not fit on the device together take turns on it, and nothing that fails leaves a process
locked, device memory lost, or a replica that answers wrongly.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.node.gpu_node import GpuNode, gpu_node
from tests.node.test_gpu_faults import FAULTS, cases, failures, strike
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import H100, CudaProcess, Machine

from glowplug.runtime.cgroup import ReplicaCgroup
from glowplug.snapshot.gpu.inventory import read_inventory

pytestmark = pytest.mark.sandbox

MACHINE_BYTES = 64 << 20
MODEL_BYTES = 40 << 20
"""Two of them are more than there is."""

PARK = [(call, fault, count) for count in (1, 2) for call in ("lock", "checkpoint") for fault in FAULTS]
WAKE = [(call, fault, count) for count in (1, 2) for call in ("restore", "unlock") for fault in FAULTS]


@pytest.fixture(scope="module")
def shared_gpu_node(
    fit_machine: None, fake_driver: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GpuNode]:
    """With one H100."""
    require_runc()
    machine = Machine(tmp_path_factory.mktemp("machine") / "gpus", fake_driver, (H100,), MACHINE_BYTES)
    with (
        tempfile.TemporaryDirectory(prefix="gpn-") as name,
        gpu_node(Path(name), machine, fake_driver) as node,
    ):
        yield node


@pytest.fixture(autouse=True)
def _the_dead_hold_nothing(node: GpuNode) -> None:
    """Containers of the fake do not see who died in another: somebody outside has to look."""
    read_inventory()


def model(node: GpuNode, name: str, processes: int = 1, **changes: Any) -> dict[str, Any]:
    """A server that is never captured: parking does not need it."""
    server = node.device_server(name, processes, snapshot={"gpu": True, "enabled": False}, **changes)
    server["env"] |= {"DEVICE_BYTES": str(MODEL_BYTES // processes), "SLOW_S": "0"}
    return server


def move(node: GpuNode, view: dict[str, Any], step: str) -> httpx.Response:
    return node.client.post(f"/v1/replicas/{view['id']}/{step}")


def park(node: GpuNode, view: dict[str, Any]) -> dict[str, Any]:
    answer = move(node, view, "park")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def unpark(node: GpuNode, view: dict[str, Any]) -> dict[str, Any]:
    answer = move(node, view, "unpark")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_two_models_take_turns_on_one_device_and_keep_their_memory(node: GpuNode) -> None:
    first = node.start(model(node, "first"))
    answers = {first["id"]: node.ask(first)}
    park(node, first)
    second = node.start(model(node, "second"))
    answers[second["id"]] = node.ask(second)
    park(node, second)
    for view in (first, second) * 2:
        awake = unpark(node, view)
        assert (awake["state"], awake["path"], awake["gpus"]) == ("ready", "parked", node.machine.uuids)
        assert list(awake["stages_s"]) == ["host_init", "device_init", "first_answer"]
        assert node.ask(awake) == answers[view["id"]]
        assert node.ask(awake, "/more")["takes_more"]
        park(node, view)


def test_parked_it_holds_no_device_memory_and_says_what_lies_on_the_host(node: GpuNode) -> None:
    view = node.start(model(node, "told", 2))
    eventually(lambda: node.view(view["id"])["device_bytes"] == MODEL_BYTES, "its device memory is told")
    assert node.view(view["id"])["suspended_bytes"] is None
    calls = len(node.machine.calls())
    parked = park(node, view)
    assert (parked["state"], parked["gpus"], parked["suspended_bytes"]) == ("parked", [], MODEL_BYTES)
    assert ReplicaCgroup(view["id"]).is_frozen
    assert node.machine.device_bytes() == 0
    assert node.client.get("/v1/node").json()["gpus_used"] == 0
    told = node.view(view["id"])
    assert told["device_bytes"] == 0
    assert told["memory_bytes"] > MODEL_BYTES
    assert unpark(node, view)["suspended_bytes"] is None
    made = [(call, result) for call, _, result in node.machine.calls()[calls:] if call != "init"]
    assert [(call, len(list(group))) for (call, _), group in groupby(made)] == [
        ("lock", 2), ("checkpoint", 2), ("restore", 2), ("unlock", 2),
    ]  # fmt: skip
    assert {result for _, result in made} == {"CUDA_SUCCESS"}


def test_one_that_is_awake_is_not_made_to_share_its_device(node: GpuNode) -> None:
    first, second = model(node, "asleep"), model(node, "awake")
    sleeping = node.start(first)
    answer = node.ask(sleeping)
    park(node, sleeping)
    awake = node.start(second)
    refused = move(node, sleeping, "unpark")
    assert refused.status_code == 503
    assert "needs 1 GPU(s) (H100), and 0 of 1 are free" in refused.json()["message"]
    assert refused.json()["details"]["resource"] == "gpu"
    assert node.post(model(node, "third")).status_code == 503
    assert node.view(sleeping["id"])["state"] == "parked"
    park(node, awake)
    assert node.ask(unpark(node, sleeping)) == answer


def test_it_stays_parked_while_its_device_has_less_memory_free_than_it_was_measured_to_need(
    node: GpuNode,
) -> None:
    view = node.start(model(node, "measured"))
    answer = node.ask(view)
    park(node, view)
    squatter = CudaProcess(node.machine, size_bytes=MODEL_BYTES)
    try:
        squatter.await_ready()
        refused = move(node, view, "unpark")
        assert refused.status_code == 507
        needs = f"24.0 MiB of device memory free, and the memory of {view['id']} needs 40.0 MiB"
        assert needs in refused.json()["message"]
        assert refused.json()["details"]["resource"] == "gpu"
        assert node.view(view["id"])["state"] == "parked"
        another = node.fail(model(node, "measured"))
        assert "its server takes 40.0 MiB of device memory" in another["error"]["message"]
    finally:
        squatter.end()
    assert node.ask(unpark(node, view)) == answer


def test_device_memory_that_its_own_memory_has_no_room_for_keeps_it_awake(node: GpuNode) -> None:
    server = model(node, "too-large")
    server["env"]["DEVICE_BYTES"] = str(MACHINE_BYTES - (8 << 20))
    server["resources"]["memory_bytes"] = 100 << 20
    view = node.start(server)
    answer = node.ask(view)
    calls = node.machine.calls()
    refused = move(node, view, "park")
    assert refused.status_code == 507
    assert "more than its limit of 100 MiB" in refused.json()["message"]
    assert node.machine.calls() == calls, "nothing was begun"
    assert node.view(view["id"])["state"] == "ready"
    assert node.ask(view) == answer


def test_a_server_that_has_not_used_its_gpu_stays_awake(node: GpuNode) -> None:
    view = node.start(model(node, "no-cuda") | {"command": ["python3", "/servers/toolbox.py"]})
    refused = move(node, view, "park")
    assert refused.status_code == 404
    assert "None of these processes uses CUDA" in refused.json()["message"]
    assert node.view(view["id"])["state"] == "ready"


def test_its_hooks_are_told_before_and_after(node: GpuNode, tmp_path: Path) -> None:
    def touch(name: str) -> dict[str, Any]:
        return {"command": ["touch", f"/shared/{name}"]}

    hooks = {"before_snapshot": touch("asleep"), "after_restore": touch("awake")}
    server = model(node, "hooks", volumes=[{"host_path": str(tmp_path), "mount_path": "/shared"}])
    server["snapshot"] |= hooks
    view = node.start(server)
    park(node, view)
    assert [path.name for path in tmp_path.iterdir()] == ["asleep"]
    unpark(node, view)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asleep", "awake"]


def test_one_whose_hook_fails_is_killed(node: GpuNode) -> None:
    server = model(node, "bad-hook")
    server["snapshot"]["before_snapshot"] = {"command": ["false"]}
    view = node.start(server)
    assert "The hook 'false'" in move(node, view, "park").json()["message"]
    assert node.until(view["id"], "failed")
    node.no_device_memory_is_held()


def test_a_parked_one_is_stopped_at_once_for_its_end_would_wait_for_the_gpu(node: GpuNode) -> None:
    view = node.start(model(node, "stopped"))
    park(node, view)
    ended = node.stop(view["id"], grace_s=3000)
    assert (ended["state"], ended["exit_code"]) == ("stopped", 128 + signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_parked_is_adopted_and_wakes_with_its_memory(node: GpuNode, how: signal.Signals) -> None:
    view = node.start(model(node, "adopted"))
    answer = node.ask(view)
    park(node, view)
    node.restart(how)
    assert node.view(view["id"])["state"] == "parked"
    assert node.machine.device_bytes() == 0, "nobody has resumed it"
    other = node.start(model(node, "other"))
    park(node, other)
    assert node.ask(unpark(node, view)) == answer


@pytest.mark.parametrize(("step", "call"), [("park", "checkpoint_done"), ("unpark", "restore_done")])
def test_one_whose_memory_was_on_its_way_when_the_agent_died_is_replaced(
    node: GpuNode, step: str, call: str
) -> None:
    server = model(node, f"moved-{step}", 2)
    view = node.start(server)
    if step == "unpark":
        park(node, view)
    with node.machine.held_at(call):
        with pytest.raises(httpx.ReadTimeout):
            node.client.post(f"/v1/replicas/{view['id']}/{step}", timeout=0.5)
        node.await_strike()
        node.kill()
    node.start_again()
    ended = node.until(view["id"], "failed")
    assert "was being moved when the node agent died" in ended["error"]["message"]
    node.no_device_memory_is_held()
    assert node.ask(node.start(server))["digests"]


def test_a_capture_gives_its_gpu_to_who_is_woken(node: GpuNode) -> None:
    server = node.device_server("captured")
    view = node.start(server)
    answer = node.ask(view)
    park(node, view)  # now there is room for its capture

    def is_capturing() -> bool:
        found = node.snapshot_of(server)
        return found is not None and found["status"] == "capturing"

    eventually(is_capturing, "the capture begins")
    assert move(node, view, "unpark").status_code == 503
    eventually(lambda: move(node, view, "unpark").status_code == 200, "the capture gives way")
    assert node.ask(view) == answer
    assert node.snapshot_of(server) is None
    node.stop(view["id"], grace_s=0)

    def is_captured() -> bool:
        found = node.snapshot_of(server)
        if found is None:  # by hand: by itself it comes with the next occasion
            node.client.post("/v1/snapshots", json=node.request(server))
        return found is not None and found["status"] == "good"

    eventually(is_captured, "it is captured in the end", 90)


def test_a_restored_copy_is_parked_and_woken_as_any_other(node: GpuNode) -> None:
    server = node.device_server("restored", 2)
    node.good_snapshot(server)
    copy = node.start(server)
    assert copy["path"] == "gpu_snapshot"
    answer = node.ask(copy)
    for _ in range(2):
        park(node, copy)
        assert node.machine.device_bytes() == 0
        assert node.ask(unpark(node, copy)) == answer


def test_one_whose_gpu_is_taken_wakes_on_another_of_its_kind(node: GpuNode) -> None:
    node.machine.become([H100, H100], MACHINE_BYTES)
    node.restart(signal.SIGTERM)
    try:
        view = node.start(model(node, "moved"))
        answer = node.ask(view)
        park(node, view)
        taker = node.start(model(node, "taker"))
        assert taker["gpus"] == view["gpus"] == node.machine.uuids[:1]
        awake = unpark(node, view)
        assert awake["gpus"] == node.machine.uuids[1:]
        assert node.ask(awake) == answer
        assert node.ask(awake, "/more") == {"takes_more": True, "uuid": node.machine.uuids[1]}
        node.calm_down()
    finally:
        node.machine.become([H100], MACHINE_BYTES)
        node.restart(signal.SIGTERM)


def test_the_gpus_are_listed_by_the_resident_helper(node: GpuNode) -> None:
    listed_by_processes = "glowplug_gpu_inventory_processes_total"
    counted, helpers = node.metric(listed_by_processes), []
    for _ in range(2):
        view = node.start(model(node, "listed"))
        eventually(lambda view=view: node.view(view["id"])["device_bytes"] == MODEL_BYTES, "it is told")
        node.stop(view["id"], grace_s=0)
        read_inventory()
        helpers.append(json.loads((node.state.gpu_guard / "holder.json").read_text())["helper"])
    assert node.metric(listed_by_processes) == counted
    assert helpers[0] == helpers[1] is not None


@cases(PARK)
def test_what_fails_in_parking_leaves_it_running_and_right_or_dead(
    node: GpuNode, call: str, fault: str, processes: int
) -> None:
    server = model(node, f"park-{call}-{fault.replace('_', '-')}", processes)
    view = node.start(server)
    answer, counted = node.ask(view), failures(node)
    strike(node, call, fault)
    refused = move(node, view, "park")
    assert refused.status_code >= 400
    assert failures(node) == counted + 1
    if refused.json()["details"].get("left") == "running":
        assert node.view(view["id"])["state"] == "ready"
        assert node.ask(view) == answer  # a process that is left locked would not answer
        park(node, view)
        assert node.ask(unpark(node, view)) == answer
    else:
        assert node.until(view["id"], "failed")
        node.no_device_memory_is_held()
        assert len(node.ask(node.start(server))["digests"]) == processes


@cases(WAKE)
def test_what_fails_in_waking_leaves_it_running_and_right_or_dead(
    node: GpuNode, call: str, fault: str, processes: int
) -> None:
    server = model(node, f"wake-{call}-{fault.replace('_', '-')}", processes)
    view = node.start(server)
    answer, counted = node.ask(view), failures(node)
    park(node, view)
    strike(node, call, fault)
    woken = move(node, view, "unpark")
    assert failures(node) == counted + 1
    if woken.status_code == 200:
        assert node.ask(view) == answer
        park(node, view)
        assert node.ask(unpark(node, view)) == answer
    else:
        assert node.until(view["id"], "failed")
        node.no_device_memory_is_held()
        assert len(node.ask(node.start(server))["digests"]) == processes
