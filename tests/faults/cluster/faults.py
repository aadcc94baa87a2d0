"""What can go wrong with a cluster. Each strikes now, and is mended by what it returns."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from tests.e2e.cluster import nodes
from tests.e2e.live import Live
from tests.faults.cluster.machines import FaultyMachine
from tests.faults.victims import kill
from tests.postgres import PostgresServer

NOTICED_WITHIN_S = 15.0
"""``node_silent_s`` is 3; the rest is a busy machine's."""
EXCLUSIVE = "one-"
"""What the name of the app begins with that must never be there twice."""
_LOOK_S = 0.1
_NOTICE_TIMEOUT_S = 60.0

Mend = Callable[[], None]


@dataclass
class World:
    """A cluster of three, its database, and how soon it noticed that a machine was gone."""

    live: Live
    machines: list[FaultyMachine]
    database: PostgresServer
    noticed_s: list[float] = field(default_factory=list)

    def replicas(self, word: str = "") -> list[str]:
        """Ids of what the machines' disks speak of, of apps whose names begin so."""
        states = [self.live.state, *(machine.state for machine in self.machines)]
        return sorted(path.name for state in states for path in state.replicas.glob(f"{word}*"))

    def state_of(self, name: str) -> str | None:
        """None while nobody answers, as the control plane was killed."""
        try:
            return str(nodes(self.live)[name]["state"])
        except (httpx.HTTPError, AssertionError, KeyError, ValueError):
            return None

    def wait_until_noticed(self, machine: FaultyMachine) -> None:
        """That the machine says nothing."""
        began_s = time.monotonic()
        while self.state_of(machine.name) not in ("unreachable", "lost"):
            assert time.monotonic() < began_s + _NOTICE_TIMEOUT_S, (
                f"nobody notices that {machine.name} is gone"
            )
            time.sleep(_LOOK_S)
        self.noticed_s.append(time.monotonic() - began_s)


def node_off(world: World, rng: random.Random) -> Mend:
    """A machine loses its power, and is switched on again."""
    machine = rng.choice(world.machines)
    machine.switch_off()
    world.wait_until_noticed(machine)
    return machine.switch_on


def link_cut(world: World, rng: random.Random) -> Mend:
    """Both ways."""
    machine = rng.choice(world.machines)
    machine.cut()
    world.wait_until_noticed(machine)
    return machine.mend


def link_cut_one_way(world: World, rng: random.Random) -> Mend:
    """Packets are dropped, and only one way."""
    machine = rng.choice(world.machines)
    machine.cut_one_way(rng.choice(("there", "back")))
    world.wait_until_noticed(machine)
    return machine.mend_ways


def slow_link(world: World, rng: random.Random) -> Mend:
    machine = rng.choice(world.machines)
    machine.slow_down(rng.uniform(0.1, 1.0))
    return lambda: machine.slow_down(0.0)


def agent_killed(world: World, rng: random.Random) -> Mend:
    rng.choice(world.machines).kill("glowplug.node")
    return _nothing


def gateway_killed(world: World, rng: random.Random) -> Mend:
    rng.choice(world.machines).kill("glowplug.node.gateway")
    return _nothing


def control_killed(world: World, _rng: random.Random) -> Mend:
    with contextlib.suppress(ProcessLookupError):
        os.kill(world.live.pid_of("control"), signal.SIGKILL)
    return _nothing


def leader_killed_while_placing(world: World, rng: random.Random) -> Mend:
    """What must never be there twice dies, and the control plane once its successor is begun."""
    deadline_s = time.monotonic() + _NOTICE_TIMEOUT_S
    victims = world.replicas(EXCLUSIVE)
    while not kill("sandbox", world.live.state.root, victims):
        assert time.monotonic() < deadline_s, f"nothing of {EXCLUSIVE} runs: {victims}"
        time.sleep(_LOOK_S)
        victims = world.replicas(EXCLUSIVE)
    while set(world.replicas(EXCLUSIVE)) <= set(victims):
        assert time.monotonic() < deadline_s, f"no successor of {victims} is begun"
    time.sleep(rng.choice((0.0, 0.0, rng.uniform(0.0, 0.5))))
    return control_killed(world, rng)


def own_agent_killed(world: World, _rng: random.Random) -> Mend:
    with contextlib.suppress(ProcessLookupError):
        os.kill(world.live.pid_of("node"), signal.SIGKILL)
    return _nothing


def disk_full(world: World, rng: random.Random) -> Mend:
    machine = rng.choice(world.machines)
    machine.fill_disk()
    return machine.empty_disk


def database_restarted(world: World, _rng: random.Random) -> Mend:
    world.database.stop()
    return world.database.start


def _nothing() -> None:
    """It mends itself."""


FAULTS: tuple[Callable[[World, random.Random], Mend], ...] = (
    node_off, link_cut, link_cut_one_way, slow_link, agent_killed, gateway_killed, control_killed,
    leader_killed_while_placing, own_agent_killed, disk_full, database_restarted,
)  # fmt: skip
