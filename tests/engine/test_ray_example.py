"""``examples/ray``: the planner of its pool file, with its real loop, asks an engine for machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from glowplug.engine.engine_provider import engine_supplier
from glowplug.engine.port import Demand
from glowplug.pool.plan_file import PlanFile, read_plan_file
from glowplug.pool.planner.inputs import FileInputs
from glowplug.pool.planner.ledger import Ledger, LedgerView
from glowplug.pool.planner.loop import PlannerLoop
from glowplug.pool.planner.state import Standing
from glowplug.pool.providers.choose import suppliers
from glowplug.sdk.loader import load_app
from glowplug.types.clock import SystemClock
from glowplug.types.errors import InvalidInput

from .recording_engine import RecordingEngine

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "ray"
WORKER = Demand(1, cpus=8.0)


class At(SystemClock):
    """The machine's clock, set to another day."""

    def __init__(self, day: datetime) -> None:
        self._offset_s = day.timestamp() - time.time()

    def wall(self) -> float:
        return time.time() + self._offset_s


@pytest.fixture
def file() -> PlanFile:
    return read_plan_file(EXAMPLE / "pool.yaml")


@pytest.mark.parametrize(
    ("day", "count"),
    [(datetime(2026, 11, 29, 12, tzinfo=UTC), 1), (datetime(2026, 12, 1, 12, tzinfo=UTC), 3)],
    ids=["sunday", "tuesday"],
)
def test_its_planner_asks_for_the_machines_of_the_day_and_takes_those_that_come(
    file: PlanFile, tmp_path: Path, day: datetime, count: int
) -> None:
    engine, clock = RecordingEngine(), At(day)
    with Ledger.lead(tmp_path, file.run.fleet, "0123abcd") as ledger:
        of_engine = engine_supplier(tmp_path, lambda: engine)
        chosen = suppliers(file, tmp_path, clock.wall, of_engine)
        loop = PlannerLoop(file, tmp_path, ledger, chosen, FileInputs(file, EXAMPLE), clock)
        try:
            tick_until(loop, lambda: engine.wanted == [WORKER] * count)
            engine.give(*(f"worker-{number}" for number in range(count + 1)))
            tick_until(loop, lambda: ready(tmp_path) == {f"worker-{number}" for number in range(count)})
        finally:
            loop.close()
    assert engine.wanted == [WORKER] * count
    assert engine.released == []


def test_a_worker_of_the_manifest_is_what_its_pool_says(file: PlanFile) -> None:
    documents = yaml.safe_load_all((REPOSITORY / "deploy" / "kuberay" / "raycluster.yaml").read_text())
    (cluster,) = [one for one in documents if one["kind"] == "RayCluster"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    entry = file.run.providers["ray"]
    assert entry.kind == "engine"
    assert entry.machines["worker"].cpus == float(container["resources"]["requests"]["cpu"])
    assert file.pools[0].quota == group["maxReplicas"]


def test_its_planner_runs_beside_an_engine_only(file: PlanFile, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no engine that machines of ray could come from"):
        suppliers(file, tmp_path, SystemClock().wall)


def test_its_app_is_one_light_server_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOWPLUG_DEMO_REPLICAS", "9")
    spec, _ = load_app(EXAMPLE / "app.py").to_spec()
    (server,) = spec["servers"]
    assert (spec["name"], server["name"]) == ("light", "web")
    assert server["scaling"]["max_replicas"] == 9


def ready(folder: Path) -> set[str]:
    machines = LedgerView.read(folder, 0).state.machines.values()
    return {held.address for held in machines if held.standing is Standing.READY}


def tick_until(loop: PlannerLoop, is_met: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_met():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        loop.tick()
        time.sleep(0.05)
