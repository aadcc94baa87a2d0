"""The loop with its real threads, ledger and files; and as a process that is killed again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from glowplug.pool.market.history import lives
from glowplug.pool.market.supply_log import Happened, SupplyLog, SupplyRecord
from glowplug.pool.plan_file import PlanFile, read_plan_file
from glowplug.pool.planner.decision import EventKind
from glowplug.pool.planner.inputs import FileInputs
from glowplug.pool.planner.ledger import Ledger, LedgerView
from glowplug.pool.planner.loop import SUPPLY_LOG_NAME, PlannerLoop
from glowplug.pool.planner.metrics import METRICS_NAME
from glowplug.pool.planner.state import Standing
from glowplug.pool.planner.workforce import Work, Workforce
from glowplug.pool.providers.choose import suppliers
from glowplug.pool.providers.port import Order, Sighting, Supplier, Verdict
from glowplug.pool.providers.simulated import Market, SimulatedInspector, SimulatedProvider
from glowplug.pool.scarcity import read_prices
from glowplug.types.clock import SystemClock
from glowplug.types.errors import InvalidInput, NotFound, SystemUnfit, Unavailable

from .world import DEMAND, POOL, NoNodes

CLOCK = SystemClock()
FILE: dict[str, Any] = {
    "version": 1,
    "horizon": {"periods": 6, "first_s": 15, "last_s": 600, "length_s": 900},
    "budget_usd_per_h": 20.0,
    "pools": [{**POOL, "lead_time_s": 1.0, "quota": 3}],  # a slow machine has it ask for more: these are late
    "demand": [{**DEMAND, "floor": 3}],
    "run": {
        "fleet": "test", "every_s": 1.0, "call_s": 2.0, "release_after_s": 2.0, "solve_s": 60.0,
        "providers": {"paper": {"kind": "simulated", "lead_time_s": 0.3}},
    },
}  # fmt: skip
ONE: dict[str, Any] = {
    "pools": [{**FILE["pools"][0], "quota": 1}],
    "demand": [{**DEMAND, "floor": 1}],
}
"""Of one machine."""


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return path


@contextmanager
def running(
    folder: Path, supplier: Supplier | None = None, workforce: Workforce | None = None, **changes: Any
) -> Iterator[PlannerLoop]:
    path = written(folder, **changes)
    file = read_plan_file(path)
    with Ledger.lead(folder, "test", "0123abcd") as ledger:
        chosen = {"paper": supplier} if supplier else suppliers(file, folder, CLOCK.wall)
        inputs = FileInputs(file, folder)
        loop = PlannerLoop(file, folder, ledger, chosen, inputs, CLOCK, workforce=workforce)
        try:
            yield loop
        finally:
            loop.close()


def tick_until(
    loop: PlannerLoop, folder: Path, is_met: Callable[[LedgerView], bool], timeout_s: float = 120.0
) -> LedgerView:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        loop.tick()
        view = LedgerView.read(folder, 1_000)
        if is_met(view):
            return view
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {[event.words for event in view.events]}")


def ready(view: LedgerView) -> int:
    return sum(held.standing is Standing.READY for held in view.state.machines.values())


def test_machines_get_ready_and_all_that_happened_is_in_the_supply_log(tmp_path: Path) -> None:
    with running(tmp_path) as loop:
        tick_until(loop, tmp_path, lambda view: ready(view) == 3)
    happened = [record.happened for record in SupplyLog(tmp_path / SUPPLY_LOG_NAME).read()]
    assert (happened.count(Happened.ASKED), happened.count(Happened.GRANTED)) == (3, 3)
    (price,) = read_prices(tmp_path, CLOCK.wall())
    assert (price.gpu, price.gpus) == ("L4", 1)
    metrics = (tmp_path / METRICS_NAME).read_text()
    assert 'glowplug_pool_machines{pool="paper/r/m/on_demand",standing="ready"} 3.0' in metrics
    assert "glowplug_pool_spend_usd_per_hour 6.0" in metrics


class Hanging:
    """Simulated: a cloud some of whose calls hang until they are let go."""

    def __init__(self) -> None:
        self.name = "paper"
        self.paper = SimulatedProvider("paper", CLOCK.wall, Market(lead_time_s=0.1))
        self.let_go = threading.Event()
        self.hangs: set[str] = set()
        self.listings = 0

    def request(self, order: Order, timeout_s: float) -> None:
        self._perhaps_hang("request")
        self.paper.request(order, timeout_s)

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        self.listings += 1
        self._perhaps_hang("machines")
        return self.paper.machines(fleet, timeout_s)

    def terminate(self, machine: str, timeout_s: float) -> None:
        self.paper.terminate(machine, timeout_s)

    def cancel(self, order: str, timeout_s: float) -> None:
        self.paper.cancel(order, timeout_s)

    def _perhaps_hang(self, what: str) -> None:
        if what in self.hangs:
            self.let_go.wait(120)


def test_a_provider_that_hangs_ends_up_silent_and_then_goes_on(tmp_path: Path) -> None:
    cloud = Hanging()
    cloud.hangs = {"machines"}
    run = {**FILE["run"], "call_s": 0.3}
    with running(tmp_path, Supplier(cloud, SimulatedInspector(cloud.paper)), run=run) as loop:
        decision = loop.tick()
        assert decision is not None
        assert not decision.requests
        assert LedgerView.read(tmp_path).state.silent_since_s.keys() == {"paper"}
        cloud.hangs = set()  # the call that hangs is left behind, for ever
        tick_until(loop, tmp_path, lambda view: ready(view) == 3)
    cloud.let_go.set()


def test_a_listing_that_takes_longer_than_a_step_is_used_when_it_comes(tmp_path: Path) -> None:
    cloud = Hanging()
    cloud.hangs = {"machines"}
    run = {**FILE["run"], "call_s": 30.0}
    with running(tmp_path, Supplier(cloud, SimulatedInspector(cloud.paper)), run=run) as loop:
        first = loop.tick()
        assert first is not None
        assert not first.requests
        cloud.let_go.set()
        asked: tuple[Order, ...] = ()
        while not asked:  # the thread that lists may need a moment
            second = loop.tick()
            assert second is not None
            asked = second.requests
        assert len(asked) == 3
        assert cloud.listings == 1


def test_a_request_that_hangs_is_made_again_and_makes_one_machine(tmp_path: Path) -> None:
    cloud = Hanging()
    cloud.hangs = {"request"}
    run = {**FILE["run"], "call_s": 0.3}
    with running(tmp_path, Supplier(cloud, SimulatedInspector(cloud.paper)), run=run, **ONE) as loop:
        loop.tick()
        cloud.hangs = set()
        tick_until(loop, tmp_path, lambda view: ready(view) == 1)
        cloud.let_go.set()  # now the first call gets through as well
        for _ in range(3):
            loop.tick()
        assert ready(LedgerView.read(tmp_path)) == 1
        assert len(cloud.paper.existing()) == 1


class Uncertain:
    """Simulated: an inspector that cannot tell at first."""

    def __init__(self, paper: SimulatedProvider) -> None:
        self._paper = SimulatedInspector(paper)
        self._silences = 2

    def inspect(self, machine: str, address: str, gpu: str, gpus: int, timeout_s: float) -> Verdict:
        if self._silences:
            self._silences -= 1
            raise Unavailable("The engine has said nothing lately.", remedy="Wait.")
        return self._paper.inspect(machine, address, gpu, gpus, timeout_s)


def test_a_machine_of_which_nobody_can_tell_at_the_moment_is_looked_at_again(tmp_path: Path) -> None:
    paper = SimulatedProvider("paper", CLOCK.wall, Market(lead_time_s=0.1))
    with running(tmp_path, Supplier(paper, Uncertain(paper)), **ONE) as loop:
        view = tick_until(loop, tmp_path, lambda view: ready(view) == 1)
    assert EventKind.UNFIT not in {event.kind for event in view.events}
    assert 'glowplug_pool_failures_total{what="inspect"} 2.0' in (tmp_path / METRICS_NAME).read_text()


def test_the_log_of_another_life_is_settled(tmp_path: Path) -> None:
    log = SupplyLog(tmp_path / SUPPLY_LOG_NAME)
    log.append(
        SupplyRecord(
            at_s=CLOCK.wall() - 900, request="forgotten", happened=Happened.ASKED, cloud="paper", region="r",
            machine="m", purchase="on_demand", gpu="L4",
        )
    )  # fmt: skip
    with running(tmp_path) as loop:
        loop.tick()
    (life, *_others) = lives(log.read(), CLOCK.wall()).lives
    assert life.is_failed
    assert not life.is_awaited


def test_inputs_that_break_later_stop_nothing(tmp_path: Path) -> None:
    prices = tmp_path / "prices.csv"
    prices.write_text(
        f"region,machine,purchase,gpu,gpus,usd_per_h,at\nr,m,on_demand,L4,1,2.0,{CLOCK.wall() - 60}\n"
    )
    pool = {
        name: value
        for name, value in FILE["pools"][0].items()
        if name not in ("price_usd_per_h", "gpu", "gpus")
    }
    changes = {"pools": [pool], "prices": [{"file": "prices.csv", "cloud": "paper"}]}
    with running(tmp_path, **changes) as loop:
        tick_until(loop, tmp_path, lambda view: ready(view) == 3)
        prices.write_text("this is no price file")
        assert loop.tick() is not None
        assert 'glowplug_pool_failures_total{what="inputs"} 1.0' in (tmp_path / METRICS_NAME).read_text()
        prices.unlink()
        assert loop.tick() is not None
        assert ready(LedgerView.read(tmp_path)) == 3


def test_a_ledger_that_cannot_be_written_ends_the_loop_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as loop:

        def broken(*_arguments: object) -> None:
            raise SystemUnfit("The disk is full.", remedy="Make room.")

        monkeypatch.setattr(Ledger, "commit", broken)
        with pytest.raises(SystemUnfit):
            loop.tick()
    assert not (tmp_path / "simulated-paper.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget_usd_per_h": None}, "within a limit only"),
        ({"run": {**FILE["run"], "providers": {}}}, "Nobody gives machines of paper"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = PlanFile.model_validate({**FILE, **changes})
    with pytest.raises(InvalidInput, match=words):
        suppliers(file, tmp_path, CLOCK.wall)


class Nodes(NoNodes):
    """Simulated: a control plane that says what runs where, or does not answer."""

    def __init__(self) -> None:
        self.work: Work | None = Work()

    def look(self) -> Work:
        if self.work is None:
            raise Unavailable("The control plane does not answer.", remedy="Start it.")
        return self.work


def test_a_machine_that_works_drains_until_its_work_ends_and_a_dumb_control_plane_means_it_works(
    tmp_path: Path,
) -> None:
    nodes = Nodes()
    with running(tmp_path, workforce=nodes, **ONE) as loop:
        view = tick_until(loop, tmp_path, lambda view: ready(view) == 1)
        (held,) = view.state.machines.values()
        nodes.work = Work({held.address: 2.0}, frozenset({held.address}))
    with running(tmp_path, workforce=nodes, demand=[DEMAND]) as loop:
        tick_until(
            loop, tmp_path, lambda view: view.state.machines[held.machine].standing is Standing.DRAINING
        )
        for _ in range(5):
            loop.tick()
        nodes.work = None
        for _ in range(5):
            loop.tick()
        assert LedgerView.read(tmp_path).state.machines[held.machine].standing is Standing.DRAINING
        assert 'glowplug_pool_failures_total{what="workforce"} 5.0' in (tmp_path / METRICS_NAME).read_text()
        nodes.work = Work()
        tick_until(loop, tmp_path, lambda view: not view.state.machines)


# -- the process ---------------------------------------------------------------------------------------------


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "glowplug.cli",
            "--state",
            str(folder),
            "pool",
            "run",
            str(folder / "pool.yaml"),
            *options,
        ],
        stderr=(folder / "log").open("ab"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def wait_until(
    is_met: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 120.0
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_met():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline_s, "too long"
        time.sleep(0.05)


def is_led(folder: Path) -> bool:
    try:
        return LedgerView.read(folder).is_led
    except NotFound:
        return False


def test_killed_again_and_again_it_rents_no_more_and_leaves_no_orphan(tmp_path: Path) -> None:
    """Each life is cut short at a random moment; the paper cloud lies in a file, and so outlives them."""
    pools = [{**FILE["pools"][0], "quota": 20}]
    written(tmp_path, budget_usd_per_h=6.0, pools=pools, demand=[{**DEMAND, "floor": 5}])
    chance, folder = random.Random(11), tmp_path / "pools"
    for _ in range(4):
        process = start(tmp_path)
        wait_until(lambda: is_led(folder), process)
        time.sleep(chance.uniform(0.0, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    process = start(tmp_path)
    try:
        wait_until(lambda: is_led(folder) and ready(LedgerView.read(folder)) == 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
    view = LedgerView.read(folder, 1_000)
    assert ready(view) == 3, (tmp_path / "log").read_text()
    assert view.state.spend_usd_per_h <= 6.0
    machines = json.loads((folder / "simulated-paper.json").read_text())["machines"]
    living = {name for name, paper in machines.items() if paper["ends_at_s"] > CLOCK.wall()}
    assert living == set(view.state.machines)
    assert [event for event in view.events if event.kind is EventKind.RETURNED] == []


def test_two_planners_at_once_are_one(tmp_path: Path) -> None:
    written(tmp_path)
    first = start(tmp_path)
    try:
        wait_until(lambda: is_led(tmp_path / "pools"), first)
        second = start(tmp_path, "--steps", "1")
        assert second.wait(120) == 1
        assert "Another planner runs" in (tmp_path / "log").read_text()
        assert first.poll() is None
    finally:
        first.kill()
        first.wait(60)
