"""The engine ``embedded``: machines that people joined by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.control.conftest import state_directory
from tests.control.second_node import SecondNode

from glowplug.engine.control_api import ControlApi
from glowplug.engine.embedded_engine import EmbeddedEngine
from glowplug.engine.fitting import check_fits
from glowplug.engine.port import Demand, Engine, Machine, MachineState
from glowplug.types.errors import ResourceExhausted

from .contract import EngineContract, Site
from .loop_thread import LoopThread
from .small_site import SmallCluster


class HandJoined(Site):
    """On each machine a supervisor keeps agent and gateway: what is killed is back after a moment."""

    def __init__(self, cluster: SmallCluster, engine: EmbeddedEngine, machines: list[SecondNode]) -> None:
        self.cluster = cluster
        self.engine = engine
        self.machines = {machine.name: machine for machine in machines}

    def agents_of(self, machine: Machine) -> int:
        return int(machine.node in self.cluster.states())

    def kill_agent(self, machine: Machine) -> None:
        node = self.machines[machine.node]
        self.cluster.unplug(node)
        self.cluster.plug_in(node)

    @contextmanager
    def away(self) -> Iterator[Engine]:
        with ControlApi("http://127.0.0.1:1", timeout_s=2.0) as nobody:
            yield EmbeddedEngine(nobody)

    def run_replica(self) -> str:
        return self.cluster.run_replica()

    def nodes_of_replicas(self) -> list[str]:
        return self.cluster.nodes_of_replicas()

    def node_names(self) -> set[str]:
        return set(self.cluster.states())

    def heal(self) -> None:
        """All is as in the beginning."""
        self.cluster.undo()
        for name in self.machines.keys() - self.cluster.states().keys():
            self.cluster.unplug(self.machines[name])
            self.cluster.join(self.machines[name])


@pytest.fixture(scope="module")
def joined() -> Iterator[HandJoined]:
    with ExitStack() as owned:
        states = [owned.enter_context(state_directory()) for _ in range(3)]
        cluster = SmallCluster(owned.enter_context(LoopThread()), states[0])
        owned.callback(cluster.close)
        machines = [
            cluster.add(state, name) for state, name in zip(states[1:], ("beta", "gamma"), strict=True)
        ]
        for machine in machines:
            cluster.join(machine)
        control = owned.enter_context(ControlApi(cluster.control.url))
        yield HandJoined(cluster, EmbeddedEngine(control), machines)


@pytest.fixture
def site(joined: HandJoined) -> Iterator[Site]:
    yield joined
    joined.heal()


class TestEmbeddedEngine(EngineContract):
    """All of the contract."""


def machine(name: str, **fields: object) -> Machine:
    state = MachineState.RUNNING
    return Machine(id=name, node=name, **{"state": state, "cpus": 4.0, "memory_bytes": 8 << 30} | fields)  # type: ignore[arg-type]


def test_demands_share_machines_but_never_one_that_does_not_run() -> None:
    machines = [machine("a"), machine("b", gpus=2, gpu_chip="H100"), machine("c", state=MachineState.GONE)]
    check_fits(machines, [Demand(3, cpus=2.0), Demand(1, cpus=1.0, gpus=2, gpu_chip="H100")], "buy")
    for too_much in (
        [Demand(5, cpus=2.0)], [Demand(1, cpus=5.0)], [Demand(1, memory_bytes=9 << 30)],
        [Demand(1, gpus=1, gpu_chip="A100")], [Demand(3, gpus=1)],
    ):  # fmt: skip
        with pytest.raises(ResourceExhausted, match="times") as refused:
            check_fits(machines, too_much, "buy")
        assert refused.value.remedy == "buy"
