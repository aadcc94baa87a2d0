"""The loop with machines that become nodes: what it tells the control plane, and in which order."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glowplug.pool.planner.ledger import LedgerView
from glowplug.pool.planner.loop import PlannerLoop
from glowplug.pool.planner.metrics import METRICS_NAME
from glowplug.pool.planner.state import HeldMachine, Standing
from glowplug.pool.planner.workforce import NodeToken, Work
from glowplug.pool.providers.port import Order, Sighting, Supplier
from glowplug.pool.providers.shell import Ran
from glowplug.pool.providers.simulated import Market, SimulatedInspector, SimulatedProvider
from glowplug.types.errors import InvalidInput, Unavailable

from .test_loop import CLOCK, FILE, ONE, running, tick_until
from .world import DEMAND

JOINED: dict[str, Any] = {
    **ONE, "run": {**FILE["run"], "join": {"control": "10.0.0.1:8080"}, "lost_after_s": 2.0}
}  # fmt: skip


class Cluster:
    """In memory: a control plane, its nodes, and the machines that become nodes by what is run on them.

    ``log``: everything that happened, in order. ``busy``: replicas by node.
    """

    def __init__(self) -> None:
        self.paper = SimulatedProvider("paper", CLOCK.wall, Market(lead_time_s=0.1))
        self.nodes: dict[str, bool] = {}
        self.busy: dict[str, float] = {}
        self.log: list[str] = []
        self.answers = True
        self.removes = True
        self.is_reachable = True
        self._lock = threading.Lock()

    def supplier(self) -> Supplier:
        provider = Recording(self.paper, self.log)
        return Supplier(provider, SimulatedInspector(self.paper), lambda _machine, _address: self)

    # -- a machine's shell

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        if not self.is_reachable:
            raise Unavailable("It cannot be reached.", remedy="Wait.")
        with self._lock:
            if "cluster join" not in command:
                self.log.append("down")
                return Ran(0, "", "")
            node = command.partition("--name ")[2].split()[0]
            assert stdin == "secret\n"
            self.nodes[node] = False
            self.log.append("join")
            return Ran(0, "", "")

    # -- the control plane

    def look(self) -> Work:
        if not self.answers:
            raise Unavailable("The control plane does not answer.", remedy="Start it.")
        with self._lock:
            drained = frozenset(node for node, is_drained in self.nodes.items() if is_drained)
            return Work(dict(self.busy), frozenset(self.nodes), drained, frozenset(self.nodes))

    def token(self, ttl_s: float) -> NodeToken:
        return NodeToken("1", "secret")

    def revoke(self, token: NodeToken) -> None:
        return

    def drain(self, node: str, *, undo: bool) -> None:
        with self._lock:
            self.log.append("open" if undo else "drain")
            self.nodes[node] = not undo

    def remove(self, node: str) -> None:
        if not self.removes:
            raise Unavailable("The control plane does not answer.", remedy="Start it.")
        with self._lock:
            self.log.append("remove")
            self.nodes.pop(node, None)


class Recording:
    """Simulated: machines on paper; writes down what is terminated."""

    def __init__(self, paper: SimulatedProvider, log: list[str]) -> None:
        self.name = paper.name
        self._paper = paper
        self._log = log

    def request(self, order: Order, timeout_s: float) -> None:
        self._paper.request(order, timeout_s)

    def machines(self, fleet: str, timeout_s: float) -> list[Sighting]:
        return self._paper.machines(fleet, timeout_s)

    def terminate(self, machine: str, timeout_s: float) -> None:
        self._log.append("terminate")
        self._paper.terminate(machine, timeout_s)

    def cancel(self, order: str, timeout_s: float) -> None:
        self._paper.cancel(order, timeout_s)


def held_of(view: LedgerView) -> HeldMachine:
    (held,) = view.state.machines.values()
    return held


def is_ready(view: LedgerView) -> bool:
    return any(held.standing is Standing.READY for held in view.state.machines.values())


def ticks(loop: PlannerLoop, count: int) -> None:
    for _ in range(count):
        loop.tick()
        time.sleep(0.05)


def test_a_machine_is_drained_and_left_before_it_is_given_back(tmp_path: Path) -> None:
    cluster = Cluster()
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        node = held_of(tick_until(loop, tmp_path, is_ready)).node
        assert cluster.look().heard == {node}
        cluster.busy[node] = 2.0
    with running(tmp_path, cluster.supplier(), cluster, **{**JOINED, "demand": [DEMAND]}) as loop:
        tick_until(loop, tmp_path, lambda view: held_of(view).standing is Standing.DRAINING)
        ticks(loop, 5)
        assert cluster.log == ["join", "drain"], "it works: nothing is taken from under it"
        cluster.busy.clear()
        tick_until(loop, tmp_path, lambda view: not view.state.machines)
    assert cluster.log == ["join", "drain", "remove", "down", "terminate"]
    assert "glowplug_pool_failures" not in failures(tmp_path)


def test_a_machine_that_is_wanted_again_is_opened_again_and_one_that_somebody_drained_is_not(
    tmp_path: Path,
) -> None:
    cluster = Cluster()
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        node = held_of(tick_until(loop, tmp_path, is_ready)).node
        cluster.nodes[node] = True  # by hand
        ticks(loop, 4)
        assert cluster.log == ["join"]
        cluster.nodes[node] = False
        cluster.busy[node] = 1.0
    with running(tmp_path, cluster.supplier(), cluster, **{**JOINED, "demand": [DEMAND]}) as loop:
        tick_until(loop, tmp_path, lambda _view: "drain" in cluster.log)
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        tick_until(loop, tmp_path, is_ready)
        ticks(loop, 3)
    assert cluster.log == ["join", "drain", "open"]


def test_a_machine_that_cannot_be_reached_any_more_is_ended_all_the_same(tmp_path: Path) -> None:
    cluster = Cluster()
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        held = held_of(tick_until(loop, tmp_path, is_ready))
        cluster.is_reachable = False
        cluster.nodes.clear()  # its power is off: the control plane has forgotten it
        tick_until(loop, tmp_path, lambda view: held.machine not in view.state.machines)
    assert cluster.log[:3] == ["join", "remove", "terminate"]
    assert 'glowplug_pool_failures_total{what="leave"} 1.0' in failures(tmp_path)


def test_while_the_control_plane_is_silent_nothing_is_concluded_about_nodes(tmp_path: Path) -> None:
    cluster = Cluster()
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        held = held_of(tick_until(loop, tmp_path, is_ready))
        cluster.answers = False
        began_s = time.monotonic()
        while time.monotonic() < began_s + JOINED["run"]["lost_after_s"] + 1.0:
            ticks(loop, 1)
        assert held_of(LedgerView.read(tmp_path)).machine == held.machine
    assert cluster.log == ["join"]


def test_the_node_of_a_machine_that_its_provider_took_is_removed_and_no_other(tmp_path: Path) -> None:
    cluster = Cluster()
    others = {"by-hand", "test-0123abcd-x", "test-89abcdef-1"}
    with running(tmp_path, cluster.supplier(), cluster, **JOINED) as loop:
        held = held_of(tick_until(loop, tmp_path, is_ready))
        cluster.nodes.update(dict.fromkeys(others, False))
        cluster.removes = False
        cluster.paper.take(held.machine)
        told = 'glowplug_pool_failures_total{what="remove"}'
        tick_until(loop, tmp_path, lambda _view: told in failures(tmp_path))
        cluster.removes = True
        tick_until(loop, tmp_path, lambda _view: held.node not in cluster.nodes)
        tick_until(loop, tmp_path, is_ready)
    assert others < set(cluster.nodes)
    assert (cluster.log.count("remove"), cluster.log.count("down")) == (1, 0)


def test_machines_on_paper_cannot_become_nodes(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="exist on paper only"), running(tmp_path, **JOINED):
        pass


def failures(folder: Path) -> str:
    lines = (folder / METRICS_NAME).read_text().splitlines()
    return os.linesep.join(line for line in lines if line.startswith("glowplug_pool_failures_total"))
