"""What is done on machines in the background: nothing that undoes what is still being done."""

from __future__ import annotations

import threading
import time

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.plan_file import PlanFile
from glowplug.pool.planner.decision import Decision, Source
from glowplug.pool.planner.joining import NodeJoiner
from glowplug.pool.planner.machine_calls import MachineCalls
from glowplug.pool.planner.state import FleetState, HeldMachine, Standing
from glowplug.pool.providers.port import Supplier
from glowplug.pool.providers.shell import Ran
from glowplug.pool.providers.simulated import SimulatedInspector

from .test_joined_loop import JOINED, Cluster
from .test_loop import FILE

POOL = PoolId("paper", "r", "m", Purchase.ON_DEMAND)
HELD = HeldMachine("m-1", "test-1", POOL, "L4", 1, 2.0, Standing.JOINING, 0.0, 0.0, node="test-1")


class SlowCluster(Cluster):
    """Simulated: a boot that ends when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.boots, self.let_go = threading.Event(), threading.Event()

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        if "cluster join" in command:
            self.boots.set()
            assert self.let_go.wait(timeout_s)
        return super().run(command, timeout_s, stdin)


def test_a_machine_leaves_after_it_has_joined_and_not_meanwhile() -> None:
    cluster = SlowCluster()
    settings = PlanFile.model_validate({**FILE, **JOINED}).run
    assert settings.join is not None
    suppliers = {"paper": Supplier(cluster.paper, SimulatedInspector(cluster.paper), lambda *_: cluster)}
    failures: list[str] = []
    calls = MachineCalls(
        settings,
        suppliers,
        NodeJoiner(settings.join, cluster),
        time.monotonic,
        lambda _key: None,
        lambda what, words: failures.append(f"{what}: {words}"),
    )
    try:
        calls.act(Decision(0.0, Source.PLAN, join=("m-1",)), FleetState("test", "n", machines={"m-1": HELD}))
        assert cluster.boots.wait(60)
        for _ in range(5):
            assert not calls.has_left(HELD)
            time.sleep(0.05)
        assert cluster.log == []
        cluster.let_go.set()
        deadline_s = time.monotonic() + 60
        while not calls.has_left(HELD):
            assert time.monotonic() < deadline_s, failures
            time.sleep(0.05)
            calls.collect()
    finally:
        cluster.let_go.set()
        calls.close()
    assert (cluster.log, failures) == (["join", "remove", "down"], [])
