"""The engine ``ray`` on a Ray in memory: who gets an agent, who joins, who is let go, what is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from glowplug.engine.counts import EngineCounts
from glowplug.engine.port import Demand, Machine, MachineState
from glowplug.engine.ray.engine import FORGET_AFTER_S, RayEngine
from glowplug.engine.ray.released import Released
from glowplug.engine.ray.settings import RaySettings
from glowplug.types.clock import ManualClock
from glowplug.types.cluster import NodeState
from glowplug.types.errors import Conflict, NotFound, ResourceExhausted, Unavailable

from .fake_ray import OWN_ID, FakeControlPlane, FakeRay, ray_node

ONE, TWO = ray_node(1), ray_node(2)
NAME_ONE, NAME_TWO = "ray-10-0-0-1", "ray-10-0-0-2"
SETTINGS = RaySettings(address="10.0.0.0:6379", starts_head=True, node_state="/state/{node}")
URL = "http://10.0.0.0:8080"


class Site:
    """Two machines besides the control plane's own; ``clock`` is the engine's."""

    def __init__(self, folder: Path) -> None:
        self.control = FakeControlPlane()
        self.ray = FakeRay(self.control, [ONE, TWO])
        self.clock = ManualClock()
        self.folder = folder
        self.settings = SETTINGS
        self.restart()

    def restart(self, **changes: object) -> None:
        """As after a restart of the engine's process, perhaps with other settings."""
        self.settings = self.settings.model_copy(update=changes)
        self.counts = EngineCounts("ray")
        self.engine = RayEngine(
            self.ray,
            self.control,  # type: ignore[arg-type]
            self.settings,
            Released(self.folder / "released.json"),
            self.counts,
            self.clock,
            control_url=URL,
            environment={"GLOWPLUG_REGION": "/region"},
        )

    def reconcile(self, times: int = 1) -> dict[str, Machine]:
        for _ in range(times):
            machines = self.engine.reconcile()
        return {machine.id: machine for machine in machines}

    def states(self, times: int = 2) -> dict[str, str]:
        return {machine.node: machine.state.value for machine in self.reconcile(times).values()}

    def metric(self, name: str) -> str:
        file = self.folder / "engine.prom"
        self.counts.save(file)
        (line,) = [line for line in file.read_text().splitlines() if line.startswith(name)]
        return line.rpartition(" ")[2]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# -- joining -------------------------------------------------------------------------------------------------


def test_every_machine_gets_an_agent_but_the_control_planes_own(site: Site) -> None:
    assert site.states() == {"own": "running", NAME_ONE: "running", NAME_TWO: "running"}
    assert site.states(3) == {"own": "running", NAME_ONE: "running", NAME_TWO: "running"}
    assert sorted(site.ray.joined) == sorted(site.ray.made) == [ONE.id, TWO.id]
    assert site.metric('glowplug_engine_machines{engine="ray",state="running"}') == "3.0"
    assert site.metric("glowplug_engine_joins_total") == "2.0"


def test_a_machine_is_told_what_its_agent_needs(site: Site) -> None:
    labels = {"rack": "7", "ray.io/availability-zone": "east", "ray.io/node-id": "x", "Not Ours": "x"}
    site.ray.listed = [replace(ONE, labels=labels)]
    machine = site.reconcile(2)[ONE.id]
    settings = site.ray.actors[ONE.id].settings
    assert (settings.name, settings.folder) == (NAME_ONE, f"/state/{NAME_ONE}")
    assert (settings.advertise, settings.control_url) == ("10.0.0.1", URL)
    assert settings.labels == machine.labels == {"rack": "7", "zone": "east"}
    assert settings.environment == {"GLOWPLUG_REGION": "/region"}
    assert (machine.cpus, machine.memory_bytes) == (4.0, 8 << 30)


def test_a_join_token_is_gone_once_its_machine_has_joined_or_was_refused(site: Site) -> None:
    site.states(3)
    assert site.control.tokens == {}
    site.control.owners["ray-10-0-0-3"] = "somebody"
    site.ray.listed = [ray_node(3)]
    site.states(2)
    assert site.control.tokens == {}


def test_a_machine_that_joins_is_told_once_however_long_it_takes(site: Site) -> None:
    site.ray.joins_are_held = True
    assert site.states(3) == {"own": "running", NAME_ONE: "pending", NAME_TWO: "pending"}
    assert "has not joined yet" in site.reconcile()[ONE.id].why
    assert sorted(site.ray.joined) == [ONE.id, TWO.id]
    for node, token in zip((ONE, TWO), site.control.tokens.values(), strict=True):
        site.ray.finish_join(node.id, token)
    assert site.states() == {"own": "running", NAME_ONE: "running", NAME_TWO: "running"}
    assert sorted(site.ray.joined) == [ONE.id, TWO.id]


def test_a_machine_that_is_refused_is_told_again_after_longer_and_longer_pauses(site: Site) -> None:
    site.control.owners[NAME_ONE] = "another machine"
    for _ in range(120):
        site.reconcile()
        site.clock.advance(1.0)
    assert 5 <= site.ray.joined.count(ONE.id) <= 10
    assert "Another machine is called" in site.reconcile()[ONE.id].why
    assert site.control.joined == {NAME_TWO: "ready"}


# -- what dies and comes back --------------------------------------------------------------------------------


def test_an_engine_that_is_started_again_finds_everything_as_it_is(site: Site) -> None:
    before = site.reconcile(2)
    site.restart()
    assert site.reconcile(2) == before
    assert sorted(site.ray.joined) == sorted(site.ray.made) == [ONE.id, TWO.id]


def test_a_new_actor_adopts_the_agent_that_the_old_one_left(site: Site) -> None:
    site.reconcile(2)
    del site.ray.actors[ONE.id]
    assert site.states()[NAME_ONE] == "running"
    assert site.ray.made.count(ONE.id) == 2
    assert site.ray.joined.count(ONE.id) == 1


def test_an_actor_of_other_settings_is_made_anew_and_its_agent_goes_on(site: Site) -> None:
    site.reconcile(2)
    site.restart(gateway_port=7444, serve="0.0.0.0:80")
    site.reconcile(2)
    settings = site.ray.actors[ONE.id].settings
    assert (settings.gateway_port, settings.serve) == (7444, "0.0.0.0:80")
    assert site.ray.joined.count(ONE.id) == 1


def test_an_agent_of_another_control_plane_joins_this_one(site: Site) -> None:
    site.reconcile(2)
    site.ray.agents[ONE.id] = replace(site.ray.agents[ONE.id], control_url="http://10.9.9.9:8080")
    site.reconcile(2)
    assert site.ray.joined.count(ONE.id) == 2
    assert site.ray.agents[ONE.id].control_url == URL


def test_an_actor_that_does_not_answer_is_asked_less_often_and_said_to_be_the_reason(site: Site) -> None:
    site.ray.silent = {ONE.id}
    machine = site.reconcile(5)[ONE.id]
    assert machine.state is MachineState.PENDING
    assert "the actor does not answer" in machine.why
    assert site.metric("glowplug_engine_failures_total") == "1.0"
    site.ray.silent = set()
    site.clock.advance(30)
    assert site.states(3)[NAME_ONE] == "running"


def test_a_machine_whose_actor_is_silent_but_whose_agent_answers_runs(site: Site) -> None:
    site.reconcile(2)
    site.ray.silent = {ONE.id}
    assert site.states()[NAME_ONE] == "running"


def test_a_control_plane_or_a_ray_that_is_away_is_said_to_be(site: Site) -> None:
    site.reconcile(2)
    for one in (site.control, site.ray):
        one.is_away = True
        for call in (site.engine.machines, site.engine.reconcile):
            with pytest.raises(Unavailable):
                call()
        one.is_away = False
    assert site.states()[NAME_ONE] == "running"
    assert sorted(site.ray.joined) == [ONE.id, TWO.id]


# -- going ---------------------------------------------------------------------------------------------------


def test_a_machine_that_the_control_plane_removed_loses_its_agent_and_gets_none_again(site: Site) -> None:
    site.reconcile(2)
    site.control.remove(NAME_ONE, force=True)
    site.reconcile()
    assert ONE.id not in site.ray.agents
    assert ONE.id not in site.ray.actors
    site.restart()
    assert "released" in site.reconcile(2)[ONE.id].why
    assert site.ray.joined.count(ONE.id) == 1
    assert site.control.joined == {NAME_TWO: "ready"}


def test_a_machine_that_ray_has_lost_is_gone_though_its_agent_runs_on(site: Site) -> None:
    site.reconcile(2)
    site.ray.listed = [replace(ONE, is_alive=False, why="its raylet was killed"), TWO]
    lost = site.reconcile()[ONE.id]
    assert lost.state is MachineState.GONE
    assert "its raylet was killed; its agent runs on" in lost.why
    site.clock.advance(10 * FORGET_AFTER_S)
    site.reconcile()
    assert site.control.joined[NAME_ONE] == "ready"


def test_a_machine_that_both_have_lost_is_forgotten_after_a_while(site: Site) -> None:
    site.reconcile(2)
    site.ray.listed = [replace(ONE, is_alive=False), TWO]
    site.control.set_state(NAME_ONE, NodeState.LOST, "silent for 9 s")
    site.reconcile()
    assert NAME_ONE in site.control.joined
    site.clock.advance(FORGET_AFTER_S)
    site.reconcile()
    assert site.control.joined == {NAME_TWO: "ready"}


def test_a_machine_that_starts_ray_again_is_the_same_node(site: Site) -> None:
    site.reconcile(2)
    again = ray_node(1, id="aa" * 28)
    site.ray.agents[again.id] = site.ray.agents[ONE.id]
    site.ray.listed = [replace(ONE, is_alive=False), TWO, again]
    machine = site.reconcile(2)[again.id]
    assert (machine.node, machine.state) == (NAME_ONE, MachineState.RUNNING)
    assert again.id not in site.ray.joined


def test_an_address_that_comes_back_with_another_machine_takes_the_name_of_a_lost_one(site: Site) -> None:
    site.reconcile(2)
    again = ray_node(1, id="aa" * 28)
    site.ray.listed = [replace(ONE, is_alive=False), TWO, again]
    site.reconcile(3)
    assert again.id not in site.ray.agents
    site.control.set_state(NAME_ONE, NodeState.LOST)
    site.clock.advance(30)
    site.reconcile(3)
    assert site.ray.agents[again.id].name == NAME_ONE
    assert site.control.joined[NAME_ONE] == "ready"


def test_a_drained_machine_is_drained_in_ray_too_and_may_be_drained_again(site: Site) -> None:
    site.reconcile(2)
    for _ in range(2):
        site.engine.drain(ONE.id)
    assert site.ray.drained == [ONE.id, ONE.id]
    assert site.states()[NAME_ONE] == "draining"
    site.engine.drain(OWN_ID)
    assert OWN_ID not in site.ray.drained


def test_a_released_machine_has_no_agent_and_gets_none_again(site: Site) -> None:
    site.reconcile(2)
    site.engine.release(ONE.id)
    assert site.control.joined == {NAME_TWO: "ready"}
    assert site.states(3) == {"own": "running", NAME_ONE: "pending", NAME_TWO: "running"}
    assert ONE.id not in site.ray.agents
    for unknown in (site.engine.release, site.engine.drain):
        with pytest.raises(NotFound):
            unknown("ab" * 28)
    with pytest.raises(Conflict):
        site.engine.release(OWN_ID)


def test_a_release_that_cannot_be_done_is_an_error_and_may_be_repeated(site: Site) -> None:
    site.reconcile(2)
    site.ray.silent = {ONE.id}
    with pytest.raises(Unavailable):
        site.engine.release(ONE.id)
    site.ray.silent = set()
    site.engine.release(ONE.id)
    assert site.control.joined == {NAME_TWO: "ready"}


def test_all_are_ended_at_once_and_who_was_not_is_told(site: Site) -> None:
    site.reconcile(2)
    site.ray.silent = {TWO.id}
    assert list(site.engine.release_all()) == [TWO.id]
    assert list(site.ray.agents) == list(site.ray.actors) == [TWO.id]
    assert site.control.joined == {NAME_TWO: "ready"}


def test_a_machine_that_was_given_back_is_taken_again_before_another_is_asked_for(site: Site) -> None:
    site.reconcile(2)
    site.engine.release(ONE.id)
    assert site.states()[NAME_ONE] == "pending"
    site.engine.ask([Demand(2, cpus=4.0)])
    assert site.states()[NAME_ONE] == "pending", "the other two hold that"
    site.restart()
    site.reconcile(2)
    site.engine.ask([Demand(3, cpus=4.0)])
    assert site.states(3)[NAME_ONE] == "running"
    assert site.ray.joined.count(ONE.id) == 2
    assert len(site.ray.bundles) == 3


def test_a_machine_that_was_removed_by_hand_stays_out_whatever_is_wanted(site: Site) -> None:
    site.reconcile(2)
    site.control.remove(NAME_ONE, force=True)
    site.reconcile()
    site.engine.release(ONE.id)
    with pytest.raises(ResourceExhausted):
        site.engine.ask([Demand(3, cpus=4.0)])
    assert site.states(3)[NAME_ONE] == "pending"


# -- more of them --------------------------------------------------------------------------------------------


def test_only_machines_with_the_labels_are_used_and_asked_for(site: Site) -> None:
    site.restart(only={"glowplug": "yes"}, starts_head=False)
    site.ray.listed = [ONE, replace(TWO, labels={"glowplug": "yes"})]
    assert list(site.reconcile(2)) == [TWO.id]
    assert list(site.ray.actors) == [TWO.id]
    site.engine.ask([Demand(2, cpus=2.0), Demand(1, gpus=8, gpu_chip="H100", memory_bytes=1 << 30)])
    assert site.ray.bundles == [
        {"CPU": 2.0}, {"CPU": 2.0}, {"memory": float(1 << 30), "GPU": 8.0, "accelerator_type:H100": 0.001},
    ]  # fmt: skip
    assert site.ray.bundle_labels == {"glowplug": "yes"}


def test_a_cluster_without_an_autoscaler_says_what_it_does_not_hold(site: Site) -> None:
    site.reconcile(2)
    site.engine.ask([Demand(3, cpus=4.0)])
    with pytest.raises(ResourceExhausted) as refused:
        site.engine.ask([Demand(4, cpus=4.0)])
    assert "cluster join" in refused.value.remedy
    assert len(site.ray.bundles) == 3


def test_an_unreadable_list_of_released_machines_is_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "released.json"
    for content in ("", "{", "7", "null"):
        file.write_text(content)
        assert "a" not in Released(file)
    Released(file).add("a")
    assert "a" in Released(file)


def test_a_list_of_released_machines_of_an_older_version_holds_those_removed_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "released.json"
    file.write_text('["a", "b"]')
    assert "a" in Released(file)
    assert not Released(file).is_until_wanted("a")
    Released(file).add("c", until_wanted=True)
    assert {name: name in Released(file) for name in "abc"} == {"a": True, "b": True, "c": True}
