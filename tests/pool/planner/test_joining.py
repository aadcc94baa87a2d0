"""Machines that become nodes: what the planner decides, and what the script does on a real shell."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.market.supply_log import Happened
from glowplug.pool.planner.decision import EventKind
from glowplug.pool.planner.joining import NodeJoiner, NotJoined, label_of
from glowplug.pool.planner.observation import Answer, Outcome
from glowplug.pool.planner.state import FleetState, HeldMachine, Standing, shifted
from glowplug.pool.planner.workforce import NodeToken, Work
from glowplug.pool.providers.shell import Ran, Shell, run_program
from glowplug.pool.run_settings import JoinSettings
from glowplug.types.errors import DeadlineExceeded, NotFound, Unavailable

from .world import POOL as WORLD_POOL
from .world import STEP_S, World, file_of

JOIN: dict[str, Any] = {"control": "10.0.0.1:8080"}
POOL = PoolId("own", "rack 1", "dgx", Purchase.OWN)


def joining_world(**run: Any) -> World:
    """Of one machine."""
    return World(file_of({"join": JOIN, **run}, pools=[{**WORLD_POOL, "quota": 1}]))


# -- what the planner decides --------------------------------------------------------------------------------


def test_a_machine_is_ready_once_it_is_a_node_and_its_lead_time_lasts_until_then() -> None:
    world = joining_world()
    world.join_answer = None
    world.until(lambda: bool(world.standing(Standing.JOINING)), 1)
    (held,) = world.standing(Standing.JOINING)
    assert held.node == held.order, "a name that no other machine ever had"
    decision = world.step(1)
    assert (decision.join, decision.ready) == ((held.machine,), ())
    assert not world.told(EventKind.GRANTED)
    world.join_answer = Answer(Outcome.DONE)
    world.until(lambda: world.ready == 1, 1)
    (granted,) = [record for record in world.records if record.happened is Happened.GRANTED]
    (asked,) = [record for record in world.records if record.happened is Happened.ASKED]
    assert granted.at_s - asked.at_s >= 60.0 + 2 * STEP_S


def test_a_machine_that_cannot_join_by_its_own_fault_is_sent_back_and_is_no_bad_hardware() -> None:
    world = joining_world()
    world.hardware = "box-1"
    world.join_answer = Answer(Outcome.REFUSED, "glowplug is not installed")
    world.until(lambda: len(world.told(EventKind.NOT_JOINED)) == 3, 1)
    (held,) = world.standing(Standing.RETURNING)
    assert "glowplug is not installed" in held.why
    assert Happened.FAILED in [record.happened for record in world.records]
    assert not world.planner.state.bad


def test_a_control_plane_that_does_not_answer_costs_no_machine_until_it_is_given_up() -> None:
    world = joining_world(give_up_s=600.0)
    world.join_answer = None
    world.until(lambda: bool(world.standing(Standing.JOINING)), 1)
    (held,) = world.standing(Standing.JOINING)
    world.steps(20, 1)
    assert [one.machine for one in world.standing(Standing.JOINING)] == [held.machine]
    world.until(lambda: bool(world.told(EventKind.GIVEN_UP)), 1)
    assert world.told(EventKind.GIVEN_UP)[0].subject == held.machine


def test_a_machine_whose_node_is_silent_is_lost_though_its_provider_lists_it() -> None:
    world = joining_world(lost_after_s=60.0)
    world.until(lambda: world.ready == 1, 1)
    (held,) = world.standing(Standing.READY)
    world.silent = frozenset({held.machine})
    world.steps(3, 1)
    world.silent, world.heard = frozenset(), frozenset({held.machine})
    world.step(1)
    world.silent, world.heard = frozenset({held.machine}), frozenset()
    world.steps(4, 1)
    assert not world.told(EventKind.LOST), "it was heard of in between"
    world.step(1)
    assert "has not been heard of for 60 s" in world.told(EventKind.LOST)[0].words


def test_a_node_that_drains_is_ours_to_open_until_it_is_seen_open() -> None:
    world = joining_world(release_after_s=15.0)
    world.until(lambda: world.ready == 1, 1)
    (held,) = world.standing(Standing.READY)
    world.worth = {held.machine: 1.0}
    world.until(lambda: bool(world.standing(Standing.DRAINING)), 0)
    assert world.standing(Standing.DRAINING)[0].is_node_drained
    world.heard = world.drained = frozenset({held.machine})
    world.until(lambda: world.ready == 1, 1)
    world.step(1)
    assert world.standing(Standing.READY)[0].is_node_drained, "the control plane still drains it"
    world.drained = frozenset()
    world.step(1)
    assert not world.standing(Standing.READY)[0].is_node_drained
    world.drained = frozenset({held.machine})
    world.step(1)
    assert not world.standing(Standing.READY)[0].is_node_drained, "somebody else drains it"


def test_a_restart_goes_on_joining() -> None:
    world = joining_world()
    world.join_answer = None
    world.until(lambda: bool(world.standing(Standing.JOINING)), 1)
    world.restart()
    world.join_answer = Answer(Outcome.DONE)
    world.until(lambda: world.ready == 1, 1)
    assert len(world.told(EventKind.ASKED)) == 1


def test_silence_keeps_its_age_when_the_clock_is_set() -> None:
    held = HeldMachine("m", "o", POOL, "L4", 1, 0.0, Standing.READY, 0.0, 0.0, silent_since_s=50.0)
    moved = shifted(FleetState("f", "n", machines={"m": held}), 3_600.0)
    assert moved.machines["m"].silent_since_s == 3_650.0


# -- what is done on the machine -----------------------------------------------------------------------------


class Nodes:
    """In memory: a control plane."""

    def __init__(self) -> None:
        self.heard: set[str] = set()
        self.live_tokens: set[str] = set()
        self.removed: list[str] = []
        self.answers = True

    def look(self) -> Work:
        return Work(heard=frozenset(self.heard))

    def token(self, ttl_s: float) -> NodeToken:
        self.live_tokens.add("id-1")
        return NodeToken("id-1", "gpj1.secret")

    def revoke(self, token: NodeToken) -> None:
        self.live_tokens.remove(token.id)

    def drain(self, node: str, *, undo: bool) -> None:
        raise AssertionError("a joiner drains nothing")

    def remove(self, node: str) -> None:
        if not self.answers:
            raise Unavailable("The control plane does not answer.", remedy="Start it.")
        self.removed.append(node)


class Machine:
    """A shell in a folder where ``glowplug`` writes down how it was called; others may be put beside it."""

    def __init__(self, folder: Path, code: int = 0, *, is_node: bool = True) -> None:
        self.folder = folder
        (folder / "state" / "identity").mkdir(parents=True, exist_ok=True)
        if is_node:
            (folder / "state" / "identity" / "membership.json").touch()
        self.program("glowplug", f'echo "$* token=${{GLOWPLUG_JOIN_TOKEN:-}}" >> {folder}/calls\nexit {code}')

    def program(self, name: str, body: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        assert "secret" not in command, "anybody on the machine could read it"
        own = {"PATH": f"{self.folder}:{os.environ['PATH']}", "GLOWPLUG_STATE": str(self.folder / "state")}
        return run_program(["sh", "-c", command], timeout_s, "machine", stdin, {**os.environ, **own})

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


def joiner(nodes: Nodes, **settings: Any) -> NodeJoiner:
    return NodeJoiner(JoinSettings.model_validate({**JOIN, **settings}), nodes)


def test_the_script_boots_ends_what_was_there_and_joins_with_a_token_that_nobody_sees(tmp_path: Path) -> None:
    nodes, machine = Nodes(), Machine(tmp_path)
    nodes.heard.add("fleet-1")
    chosen = joiner(
        nodes, boot=f"echo booted >> {tmp_path}/calls", labels={"rack": "7"}, options=["--serve", "off"]
    )
    chosen.join(machine, "fleet-1", POOL, {"simulated": "yes"})
    labels = "--label pool=own.rack.1.dgx.own --label zone=own.rack.1 --label simulated=yes --label rack=7"
    assert machine.calls == [
        "booted",
        "down token=gpj1.secret",
        f"cluster join 10.0.0.1:8080 --name fleet-1 {labels} --serve off token=gpj1.secret",
    ]
    assert not nodes.live_tokens, "it is of no use any more"


def test_what_runs_on_a_machine_that_is_no_node_is_left_alone(tmp_path: Path) -> None:
    """It may be the control plane's: who joins there is refused by `cluster join`."""
    nodes, machine = Nodes(), Machine(tmp_path, is_node=False)
    nodes.heard.add("fleet-1")
    joiner(nodes).join(machine, "fleet-1", POOL, {})
    joiner(nodes).leave(lambda: machine, "fleet-1")
    assert [call.split()[0] for call in machine.calls] == ["cluster"]


def test_who_is_not_root_becomes_root_for_glowplug_only(tmp_path: Path) -> None:
    nodes, machine = Nodes(), Machine(tmp_path)
    nodes.heard.add("fleet-1")
    machine.program("id", "echo 1000")
    machine.program("sudo", f'echo "sudo $1 $2" >> {tmp_path}/calls; shift 2; exec "$@"')
    joiner(nodes).join(machine, "fleet-1", POOL, {})
    sudo = "sudo -n --preserve-env=GLOWPLUG_JOIN_TOKEN,GLOWPLUG_STATE"
    assert [call.partition(" token")[0].split(" --name")[0] for call in machine.calls] == [
        sudo, sudo, "down", sudo, "cluster join 10.0.0.1:8080",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("boot", "code", "words"),
    [
        ("exit 3", 0, "ends with 3"),
        ("false", 0, "ends with 1"),
        ("", 9, "ends with 9"),
        ("PATH=/nowhere", 0, "127"),
    ],
)
def test_a_script_that_fails_is_the_machines_fault_and_its_token_is_revoked(
    tmp_path: Path, boot: str, code: int, words: str
) -> None:
    nodes = Nodes()
    with pytest.raises(NotJoined, match=words):
        joiner(nodes, boot=boot).join(Machine(tmp_path, code), "fleet-1", POOL, {})
    assert not nodes.live_tokens


def test_a_boot_that_hangs_or_a_node_that_is_not_heard_of_is_the_machines_fault(tmp_path: Path) -> None:
    nodes = Nodes()
    with pytest.raises(NotJoined, match="did not end"):
        joiner(nodes, boot="sleep 60", join_s=0.3).join(Machine(tmp_path), "fleet-1", POOL, {})
    with pytest.raises(NotJoined, match="does not hear of it"):
        joiner(nodes, join_s=2.0).join(Machine(tmp_path), "fleet-1", POOL, {})


class Unreachable:
    """Simulated: a machine that SSH does not get to."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        raise Unavailable("It cannot be reached.", remedy="Wait.")


class Hanging:
    """Simulated: a machine whose commands do not end."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Ran:
        raise DeadlineExceeded("It did not end.", remedy="Look.", stage="shell")


@pytest.mark.parametrize("shell", [Unreachable(), Hanging()], ids=["unreachable", "hanging"])
def test_who_cannot_be_reached_is_not_to_blame_and_who_hangs_is(shell: Shell) -> None:
    nodes = Nodes()
    with pytest.raises(Unavailable) as raised:
        joiner(nodes).join(shell, "fleet-1", POOL, {})
    assert isinstance(raised.value, NotJoined) == isinstance(shell, Hanging)
    assert not nodes.live_tokens


def test_a_machine_leaves_the_cluster_before_it_is_stopped_and_an_error_says_what_is_left(
    tmp_path: Path,
) -> None:
    nodes, machine = Nodes(), Machine(tmp_path)
    joiner(nodes).leave(lambda: machine, "fleet-1")
    assert (nodes.removed, machine.calls) == (["fleet-1"], ["down token="])
    with pytest.raises(Unavailable, match="ends with 4"):
        joiner(nodes).leave(lambda: Machine(tmp_path, 4), "fleet-1")


def test_what_runs_is_ended_without_the_control_plane_and_the_node_removed_without_the_machine(
    tmp_path: Path,
) -> None:
    nodes, machine = Nodes(), Machine(tmp_path, 4)

    def is_gone() -> Shell:
        raise NotFound("The machine is not there.", remedy="It is asked for anew.")

    with pytest.raises(NotFound):
        joiner(nodes).leave(is_gone, "fleet-1")
    assert nodes.removed == ["fleet-1"]
    nodes.answers = False
    with pytest.raises(Unavailable, match="control plane does not answer"):
        joiner(nodes).leave(lambda: machine, "fleet-1")
    assert machine.calls == ["down token="]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("own/rack 1/dgx", "own.rack.1.dgx"),
        ("..", "unnamed"),
        ("a" * 80, "a" * 63),
        ("-x_", "x"),
        ("é/b", "b"),
    ],
)
def test_any_name_of_a_pool_is_a_label(text: str, label: str) -> None:
    assert label_of(text) == label
