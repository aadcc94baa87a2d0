"""Replicas with device memory, captured and restored by the node agent in runc, on the fake driver.

The fake shows order and safety, never speed, and not what a real driver does under CRIU.
"""

from __future__ import annotations

import json
import signal
from itertools import groupby
from typing import Any

import pytest
from tests.node.cases import folder_of
from tests.node.gpu_node import DEVICE_BYTES, MACHINE_BYTES, GpuNode
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import H100, CudaProcess

pytestmark = pytest.mark.sandbox

COUNTED = 'glowplug_gpu_stage_seconds_count{stage="%s"}'
FAILED_RESTORES = 'glowplug_restores_total{outcome="failed"}'
STAGES = ("quiesce", "lock", "checkpoint", "host_snapshot", "host_restore", "restore", "unlock", "canary")


def counted(node: GpuNode) -> dict[str, float]:
    return {stage: node.metric(COUNTED % stage) for stage in STAGES}


def restored(node: GpuNode, server: dict[str, Any]) -> dict[str, Any]:
    view = node.start(server)
    assert (view["path"], view["fallback_reason"]) == ("gpu_snapshot", None)
    return view


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_copies_answer_from_the_device_memory_that_was_captured(node: GpuNode, processes: int) -> None:
    server = node.device_server("survives", processes)
    before, calls = counted(node), len(node.machine.calls())
    first = node.start(server)
    assert first["fallback_reason"] == "no snapshot was captured yet"
    assert first["gpus"] == node.machine.uuids[:1]
    snapshot = node.captured(first)
    assert snapshot["status"] == "good", snapshot["reason"]
    own = node.ask(first)
    node.stop(first["id"])
    copies = [restored(node, server) for _ in range(2)]
    answers = [node.ask(copy) for copy in copies]
    assert answers[0] == answers[1]
    assert len(answers[0]["digests"]) == processes
    assert not set(answers[0]["digests"]) & set(own["digests"]), "it is the memory of the captured replica"
    assert list(copies[0]["stages_s"]) == ["allocate", "mount", "host_init", "device_init", "first_answer"]
    # Captured on the second GPU, as the first replica had the other: so one of the copies was moved.
    for copy, uuid in zip(copies, node.machine.uuids, strict=True):
        assert copy["gpus"] == [uuid]
        assert node.ask(copy, "/more") == {"takes_more": True, "uuid": uuid}
        held = processes * DEVICE_BYTES
        eventually(lambda copy=copy, held=held: node.view(copy["id"])["device_bytes"] > held, "it is told")
    made = [(call, result) for call, _, result in node.machine.calls()[calls:] if call != "init"]
    assert [(call, len(list(group))) for (call, _), group in groupby(made)] == [
        (call, processes)
        for call in ("lock", "checkpoint", *("restore", "unlock") * 3)  # a trial, two copies
    ]
    assert {result for _, result in made} == {"CUDA_SUCCESS"}
    grown = {stage: count - before[stage] for stage, count in counted(node).items()}
    assert grown == dict.fromkeys(STAGES[:4], 1) | dict.fromkeys(STAGES[4:], 3)


def test_a_copy_whose_gpu_has_too_little_memory_starts_cold_before_anything_is_read(node: GpuNode) -> None:
    server = node.device_server("no-room")
    snapshot = node.good_snapshot(server)
    failed = node.metric(FAILED_RESTORES)
    squatter = CudaProcess(node.machine, device=0, size_bytes=MACHINE_BYTES - DEVICE_BYTES // 2)
    try:
        squatter.await_ready()
        view = node.start(server)
    finally:
        squatter.end()
    assert view["path"] == "cold"
    assert view["fallback_reason"] == (
        "GPU 0 has 0.5 MiB of device memory free, and the snapshot needs 1.0 MiB."
    )
    assert node.metric(FAILED_RESTORES) == failed
    found = node.snapshot_of(server)
    assert found is not None
    assert (found["created_at"], found["failures"]) == (snapshot["created_at"], 0)
    node.stop(view["id"])
    assert node.ask(restored(node, server))["digests"]


def test_a_gpu_that_needs_a_reset_is_not_given_to_replicas_any_more(node: GpuNode) -> None:
    server = node.device_server("broken", snapshot={"enabled": False})
    sick = node.machine.folder / "health" / "0"
    sick.write_text("recovery 1\n")  # what NVML says after an Xid error
    try:
        eventually(lambda: node.metric("glowplug_gpus_refused") == 1, "it is noticed")
        eventually(lambda: node.client.get("/v1/node").json()["gpus"] == [H100], "it is given to nobody")
        view = node.start(server)
        assert view["gpus"] == [node.machine.uuids[1]]
        assert node.ask(view, "/more")["uuid"] == node.machine.uuids[1]
        refused = node.post(server)
        assert refused.status_code == 503
        assert "needs 1 GPU(s) (H100), and 0 of 1 are free" in refused.json()["message"]
    finally:
        sick.unlink()
    eventually(lambda: len(node.client.get("/v1/node").json()["gpus"]) == 2, "it is well again")


def test_a_server_without_a_gpu_snapshot_is_never_captured(node: GpuNode) -> None:
    server = node.device_server("plain", snapshot={})
    view = node.start(server)
    assert view["fallback_reason"] == (
        "snapshots are disabled for this server: it has gpu=, and no Snapshot(gpu=True)"
    )
    assert node.snapshot_of(server) is None
    answer = node.client.post("/v1/snapshots", json=node.request(server))
    assert answer.status_code == 400


def test_a_server_that_uses_no_cuda_is_told_so(node: GpuNode) -> None:
    server = node.device_server("no-cuda") | {"command": ["python3", "/servers/toolbox.py"]}
    snapshot = node.capture(server)
    assert snapshot["status"] == "quarantined"
    assert "None of these processes uses CUDA" in snapshot["reason"]


def test_device_memory_that_its_own_memory_has_no_room_for_stops_the_capture(node: GpuNode) -> None:
    server = node.device_server("too-large")
    server["env"]["DEVICE_BYTES"] = str(MACHINE_BYTES - (8 << 20))
    server["resources"]["memory_bytes"] = 128 << 20
    snapshot = node.capture(server)
    assert snapshot["status"] == "quarantined"
    assert "more than its limit of 128 MiB" in snapshot["reason"]


def test_gvisor_is_given_no_gpu(node: GpuNode) -> None:
    answer = node.post(node.device_server("gvisor", snapshot={"enabled": False}) | {"runtime": "runsc"})
    assert answer.status_code == 500
    assert "A container of runsc is given no GPU" in answer.json()["message"]
    assert node.client.get("/v1/node").json()["gpus_used"] == 0


def test_an_agent_killed_while_a_replica_is_suspended_leaves_nothing_of_it(node: GpuNode) -> None:
    server = node.device_server("interrupted", 2)
    with node.machine.held_at("checkpoint_done"):
        answer = node.client.post("/v1/snapshots", json=node.request(server))
        assert answer.status_code == 202
        node.await_strike()
        node.kill()
    node.start_again()
    node.no_device_memory_is_held()
    assert node.good_snapshot(server)
    assert node.ask(restored(node, server))["digests"]


def test_gpus_of_another_machine_take_it_over_and_another_driver_does_not(
    node: GpuNode,
) -> None:
    server = node.device_server("moved")
    snapshot = node.good_snapshot(server)
    captured_on = [gpu for gpu in manifest_gpus(node, snapshot) if gpu["is_given"]]
    assert [gpu["held_bytes"] for gpu in captured_on] == [DEVICE_BYTES]

    node.machine.become([H100, H100], MACHINE_BYTES)  # as a node has that pulled the snapshot
    node.restart(signal.SIGTERM)
    assert captured_on[0]["uuid"] not in node.machine.uuids
    view = restored(node, server)
    assert node.ask(view, "/more") == {"takes_more": True, "uuid": node.machine.uuids[0]}
    node.stop(view["id"])

    node.machine.become([H100], MACHINE_BYTES)
    node.restart(signal.SIGTERM)
    view = node.start(server)
    assert view["path"] == "cold"
    assert "no GPU here can take the place of a NVIDIA H100" in view["fallback_reason"]
    node.stop(view["id"])

    node.machine.become([H100, H100], MACHINE_BYTES, driver="590.10.01")
    node.restart(signal.SIGTERM)
    view = node.start(server)
    assert view["path"] == "cold"
    assert "gpu_driver is 590.10.01, was 580.82.07" in view["fallback_reason"]


def manifest_gpus(node: GpuNode, snapshot: dict[str, Any]) -> list[dict[str, Any]]:
    content = json.loads((folder_of(node, snapshot) / "manifest.json").read_text())
    return list(content["gpus"])
