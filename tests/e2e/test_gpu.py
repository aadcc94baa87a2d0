"""A server with device memory as its user has it, on a node whose GPUs are those of the fake driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.live import Live
from tests.node.gpu_node import two_h100
from tests.runtime.conftest import require_runc
from tests.runtime.sandboxes import eventually
from tests.snapshot.gpu.machine import build_driver

from glowplug.types.coldstart import Outcome
from glowplug.types.replica import Stage, StartPath

pytestmark = pytest.mark.sandbox

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpu_server.py"


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    require_runc()
    libraries = build_driver(tmp_path_factory.getbasetemp().parent)
    machine = two_h100(tmp_path_factory.mktemp("machine") / "gpus", libraries)
    environment = {name: machine.environment[name] for name in ("FAKE_GPU_DIR", "LD_LIBRARY_PATH")}
    with Live(**environment, GLOWPLUG_CDI=str(machine.describe_to_containers(libraries))) as live:
        yield live
    eventually(lambda: machine.device_bytes() == 0, "no device memory is held")


def test_the_example_answers_from_its_gpu_after_it_was_scaled_to_zero(live: Live) -> None:
    name = live.new_name("cubes")
    live.deploy(EXAMPLE, name, GLOWPLUG_GPU_VENV=sys.prefix)
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

    live.wait_for(lambda: held() == 8 * 500_000, "its device memory to be told")
    assert "DEVICE" in live.cli("ps", name).stdout
    live.remove({name})
