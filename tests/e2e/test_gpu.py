"""A server with device memory as its user has it, on a node whose GPUs are those of the fake driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.live import Live
from tests.node.gpu_node import MACHINE_BYTES
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import H100, Machine, build_driver

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import ReplicaState, Stage, StartPath

pytestmark = pytest.mark.sandbox

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TABLE_BYTES = 8 * 500_000


@pytest.fixture(params=[(H100, H100)], ids=["two-gpus"])
def live(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Live]:
    require_runc()
    libraries = build_driver(tmp_path_factory.getbasetemp().parent)
    machine = Machine(tmp_path_factory.mktemp("machine") / "gpus", libraries, request.param, MACHINE_BYTES)
    environment = {name: machine.environment[name] for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH")}
    with Live(**environment, GLOWPLUG_CDI=str(machine.describe_to_containers(libraries))) as live:
        yield live
    eventually(lambda: machine.device_bytes() == 0, "no device memory is held")


def test_the_example_answers_from_its_gpu_after_it_was_scaled_to_zero(live: Live) -> None:
    name = live.new_name("cubes")
    live.deploy(EXAMPLES / "gpu_server.py", name, GLOWPLUG_GPU_VENV=sys.prefix)
    first = live.http.get(f"/{name}/table/?of=123")
    assert first.text == "1860867\n"
    live.wait_for_snapshot(name)
    live.rest(name)
    assert live.http.get(f"/{name}/table/?of=123").text == first.text
    restored, cold = live.cold_starts(name)
    assert (cold.path, restored.path) == (StartPath.COLD, StartPath.GPU_SNAPSHOT)
    assert restored.fallback_reason is None
    assert restored.stages_s[Stage.DEVICE_INIT] > 0
    assert {cold.outcome, restored.outcome} == {Outcome.ANSWERED}
    assert "device_init" in live.cli("coldstarts", name).stdout

    def held() -> int:
        [replica] = json.loads(live.cli("ps", name, "--json").stdout)
        return int(replica["device_bytes"])

    live.wait_for(lambda: held() == TABLE_BYTES, "its device memory to be told")
    assert "DEVICE" in live.cli("ps", name).stdout
    live.remove({name})


@pytest.mark.parametrize("live", [(H100,)], ids=["one-gpu"], indirect=True)
def test_two_servers_take_turns_on_one_gpu_and_none_is_started_twice(live: Live) -> None:
    name = live.new_name("powers")
    live.deploy(EXAMPLES / "gpu_turns.py", name, GLOWPLUG_GPU_VENV=sys.prefix)
    for _ in range(2):
        for server, answer in (("squares", "144\n"), ("cubes", "1728\n")):
            assert live.http.get(f"/{name}/{server}/?of=12").text == answer
    first, second = sorted(live.replicas(name), key=lambda view: view.created_at)
    assert (first.server, first.state, first.suspended_bytes) == ("squares", ReplicaState.PARKED, TABLE_BYTES)
    assert (second.server, second.state, second.path) == ("cubes", ReplicaState.READY, StartPath.PARKED)
    assert first.gpus == []
    assert len(second.gpus) == 1
    records = live.cold_starts(name)
    assert {record.outcome for record in records} == {Outcome.ANSWERED}
    assert [record.path for record in records] == [StartPath.PARKED] * 2 + [StartPath.COLD] * 2
    assert all(record.stages_s[Stage.DEVICE_INIT] > 0 for record in records[:2])
    live.remove({name})
