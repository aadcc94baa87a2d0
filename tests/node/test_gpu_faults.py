"""Each call of the driver, each way in which it can go wrong, during a capture and a restore by the agent.

Whatever happens: a replica ends running and right, or dead and replaced by one that is; a capture ends with
no snapshot and can be tried again; nothing is left locked, and no device memory is lost. The guard alone is
tested in tests/snapshot/gpu. ``GLOWPLUG_FAULTS=all`` runs all of it (80 cases); otherwise a sample.
"""

from __future__ import annotations

import os
import re

import pytest
from tests.node.gpu_node import GpuNode

pytestmark = pytest.mark.sandbox

FAULTS = (
    "illegal_state",
    "out_of_memory",
    "timeout",
    "wrong_chip",
    "failed",
    "hang",
    "caller_dies",
    "caller_dies_asking",
    "caller_dies_done",
    "target_dies",
)
REFUSALS = FAULTS[:4]
CAPTURE = [(call, fault, count) for count in (1, 2) for call in ("lock", "checkpoint") for fault in FAULTS]
RESTORE = [(call, fault, count) for count in (1, 2) for call in ("restore", "unlock") for fault in FAULTS]
SAMPLE = {
    ("lock", "timeout", 2),
    ("checkpoint", "failed", 1),
    ("checkpoint", "caller_dies_done", 2),
    ("restore", "out_of_memory", 1),
    ("restore", "failed", 2),
    ("restore", "target_dies", 1),
    ("unlock", "caller_dies_done", 2),
}


def cases(every: list[tuple[str, str, int]]) -> pytest.MarkDecorator:
    chosen = every if os.environ.get("GLOWPLUG_FAULTS") == "all" else [one for one in every if one in SAMPLE]
    return pytest.mark.parametrize(("call", "fault", "processes"), chosen)


def strike(node: GpuNode, call: str, fault: str) -> None:
    action = fault.removesuffix("_done")
    node.machine.fail(call if fault == action else f"{call}_done", action)


def failures(node: GpuNode) -> float:
    lines = node.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("glowplug_gpu_failures_total{"))


@cases(CAPTURE)
def test_a_capture_ends_without_a_snapshot_and_the_next_one_works(
    node: GpuNode, call: str, fault: str, processes: int
) -> None:
    server = node.device_server(f"{call}-{fault.replace('_', '-')}", processes)
    counted = failures(node)
    strike(node, call, fault)
    snapshot = node.capture(server)
    assert snapshot["status"] == "quarantined"
    assert failures(node) == counted + 1
    if fault in (*REFUSALS, "failed"):
        assert re.search(rf"refuses to {call} process \d+ \(\w+\): CUDA_ERROR_", snapshot["reason"])
    node.no_device_memory_is_held()
    assert node.capture(server)["status"] == "good"


@cases(RESTORE)
def test_a_restore_ends_in_a_replica_that_answers_right(
    node: GpuNode, call: str, fault: str, processes: int
) -> None:
    server = node.device_server("restored-with-a-fault", processes)
    node.good_snapshot(server)
    right = node.start(server)
    answer = node.ask(right)
    node.stop(right["id"])
    counted = failures(node)
    strike(node, call, fault)
    view = node.start(server)
    assert failures(node) == counted + 1
    given = node.ask(view)  # a process that is left locked would not answer
    if view["path"] == "gpu_snapshot":
        assert given == answer, "the guard got them to run, with their memory"
    else:
        assert view["path"] == "cold"
        assert given["started"] != answer["started"]
        assert len(given["digests"]) == processes
        if fault in (*REFUSALS, "failed"):
            assert re.search(rf"refuses to {call} process \d+ \(\w+\): CUDA_ERROR_", view["fallback_reason"])
    assert view["path"] == "cold" or fault not in ("failed", "target_dies")
    node.stop(view["id"])
    again = node.start(server)
    assert (again["path"], again["fallback_reason"]) == ("gpu_snapshot", None)
    assert node.ask(again) == answer
