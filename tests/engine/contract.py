"""What every engine does, seen from outside: its port, the control API, and what runs on the machines.

A test class that inherits :class:`EngineContract` has a fixture ``site`` with machines of that engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from time import monotonic

import pytest

from glowplug.engine.port import Demand, Engine, Machine, MachineState
from glowplug.types.errors import GlowplugError, NotFound, ResourceExhausted, Unavailable

from .conftest import eventually

LONG_S = 120.0
AWAY_DEADLINE_S = 60.0


class Site(ABC):
    """A control plane, an engine, and two machines besides the control plane's own.

    ``is_control_on_a_machine`` is False where the control plane runs on none that the engine tells of.
    """

    engine: Engine
    others = 2
    is_control_on_a_machine = True

    @abstractmethod
    def agents_of(self, machine: Machine) -> int:
        """How many agents run on that machine."""

    @abstractmethod
    def kill_agent(self, machine: Machine) -> None:
        """As kill -9 of all that keeps the agent there, its supervisor too; returns when they are gone."""

    @abstractmethod
    def away(self) -> AbstractContextManager[Engine]:
        """An engine of this kind whose cluster does not answer."""

    @abstractmethod
    def run_replica(self) -> str:
        """Have the control plane place one, on any machine but its own; the node it is on."""

    @abstractmethod
    def nodes_of_replicas(self) -> list[str]:
        """Where ready replicas are."""

    @abstractmethod
    def node_names(self) -> set[str]:
        """What the control plane lists, but for its own."""

    def running(self) -> list[Machine]:
        """All machines but the control plane's, once each has its agent."""
        found: list[Machine] = []

        def are_all_there() -> bool:
            found[:] = [
                one
                for one in self.engine.reconcile()
                if one.state is MachineState.RUNNING and one.node in self.node_names()
            ]
            return len(found) == self.others

        eventually(are_all_there, LONG_S)
        return found

    def state_of(self, machine: Machine) -> MachineState | None:
        return next((one.state for one in self.engine.reconcile() if one.id == machine.id), None)


class EngineContract:
    """Inherit it, and give it a ``site``."""

    def test_machines_are_listed_with_what_they_have(self, site: Site) -> None:
        site.running()
        listed = site.engine.machines()
        assert [one.id for one in listed] == sorted({one.id for one in listed})
        assert len({one.node for one in listed}) == len(listed) >= site.others
        assert all(one.cpus > 0 and one.memory_bytes > 0 for one in listed)

    def test_an_agent_is_kept_on_each_however_often_that_is_asked_for(self, site: Site) -> None:
        before = site.running()
        for _ in range(3):
            site.engine.reconcile()
        assert [(one.id, one.node) for one in site.running()] == [(one.id, one.node) for one in before]
        assert [site.agents_of(one) for one in before] == [1] * site.others

    def test_reconciling_many_times_at_once_makes_one_agent_each(self, site: Site) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: site.engine.reconcile(), range(8)))
        assert [site.agents_of(one) for one in site.running()] == [1] * site.others

    def test_a_killed_agent_comes_back(self, site: Site) -> None:
        victim = site.running()[0]
        site.kill_agent(victim)
        eventually(lambda: site.agents_of(victim) == 1, LONG_S)
        assert victim.id in {one.id for one in site.running()}
        eventually(lambda: site.agents_of(victim) == 1, LONG_S)

    def test_a_machine_that_is_drained_hands_its_replica_to_another(self, site: Site) -> None:
        machines = site.running()
        node = site.run_replica()
        drained = next(one for one in machines if one.node == node)
        site.engine.drain(drained.id)
        eventually(lambda: site.state_of(drained) is MachineState.DRAINING, LONG_S)
        eventually(lambda: (found := site.nodes_of_replicas()) and node not in found, LONG_S)
        site.engine.drain(drained.id)

    def test_a_released_machine_has_no_agent_and_gets_none_again(self, site: Site) -> None:
        released, kept = site.running()
        site.engine.release(released.id)
        assert site.node_names() == {kept.node}
        for _ in range(3):
            assert site.state_of(released) is not MachineState.RUNNING
        assert site.state_of(kept) is MachineState.RUNNING
        assert site.node_names() == {kept.node}

    def test_what_machines_hold_may_be_asked_for_and_what_nobody_has_is_refused(self, site: Site) -> None:
        site.running()
        site.engine.ask([Demand(count=site.others, cpus=0.5)])
        with pytest.raises(ResourceExhausted) as refused:
            site.engine.ask([Demand(count=1, gpus=64, gpu_chip="H100")])
        assert "join" in refused.value.remedy
        site.engine.ask([])

    def test_a_machine_that_nobody_knows_is_said_to_be_unknown(self, site: Site) -> None:
        for call in (site.engine.drain, site.engine.release):
            with pytest.raises(NotFound) as unknown:
                call("ab" * 28)
            assert unknown.value.remedy

    def test_the_control_planes_own_machine_is_not_released(self, site: Site) -> None:
        nodes = {one.node for one in site.running()}
        found = [one for one in site.engine.machines() if one.node not in nodes]
        assert len(found) == site.is_control_on_a_machine
        if not found:
            return
        (own,) = found
        with pytest.raises(GlowplugError) as refused:
            site.engine.release(own.id)
        assert refused.value.code == "conflict"
        assert own.id in {one.id for one in site.engine.machines()}

    def test_an_engine_that_is_away_is_said_to_be(self, site: Site) -> None:
        with site.away() as engine:
            for call in (engine.machines, engine.reconcile, lambda: engine.drain("ab" * 28)):
                began_s = monotonic()
                with pytest.raises(Unavailable) as away:
                    call()
                assert away.value.remedy
                assert monotonic() - began_s < AWAY_DEADLINE_S
