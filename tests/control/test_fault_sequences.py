"""Random sequences of faults on three machines under load: what callers are owed, whatever fails when.

Machines are fake agents behind real gateways and cables (:mod:`tests.control.second_node`), the control plane
is a real process, so a sequence takes seconds; in :mod:`tests.faults.cluster` all is real. Sequences follow
from their seed, which is in a test's name: ``GLOWPLUG_FAULT_SEED`` is the first, ``GLOWPLUG_FAULT_SEQUENCES``
how many there are.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest
from tests.control.conftest import QUICK, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.killable_control import KillableControl, killable_control
from tests.control.second_node import OWN, SecondNode, nodes, second_node

from glowplug.types.errors import GlowplugError, ResourceExhausted
from glowplug.types.paths import StateDir
from glowplug.types.replica import ReplicaState

SEED = int(os.environ.get("GLOWPLUG_FAULT_SEED", "20261201"))
SEQUENCES = int(os.environ.get("GLOWPLUG_FAULT_SEQUENCES", "1"))
FAULTS = 4
CALLERS = 4
LONGEST_S = 0.9
PAUSE_S = 0.02
BROKEN = 0
"""The status of what was never answered, as the control plane died."""
CLOCKS_AHEAD_S = (-1e9, -3600.0, -5.0, 5.0, 3600.0, 1e9)
TIMINGS = replace(QUICK, node_silent_s=0.4, node_lost_s=0.8)
EXCLUSIVE = server_spec("one", scaling={"min_replicas": 1, "max_replicas": 1})
SHARED = server_spec("web", scaling={"min_replicas": 1, "max_replicas": 2, "target_concurrency": 2})


@dataclass
class World:
    """Three machines and their control plane."""

    control: KillableControl
    own: FakeAgent
    others: list[SecondNode]
    rng: random.Random

    @property
    def agents(self) -> list[FakeAgent]:
        return [self.own, *(node.agent for node in self.others)]

    async def for_a_while(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.05, LONGEST_S))

    def ready(self, server: str) -> list[str]:
        """Ids of ready replicas, whoever has them."""
        return [view.id for agent in self.agents for view in agent.ready if view.server == server]

    def ordered(self, server: str) -> int:
        """Starts of it that machines were asked for so far."""
        return sum(1 for agent in self.agents for order in agent.orders if order.server.name == server)


@dataclass
class Ledger:
    """What callers asked for and got."""

    posted: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    answers: int = 0


# -- faults: each strikes and mends --------------------------------------------------------------------------


async def cut(world: World) -> None:
    cable = world.rng.choice(world.others).cable
    cable.whole.clear()
    await world.for_a_while()
    cable.whole.set()


async def cut_one_way(world: World) -> None:
    cable = world.rng.choice(world.others).cable
    way = world.rng.choice((cable.there, cable.back))
    way.clear()
    await world.for_a_while()
    way.set()


async def slow(world: World) -> None:
    cable = world.rng.choice(world.others).cable
    cable.delay_s = world.rng.uniform(0.05, 0.2)
    await world.for_a_while()
    cable.delay_s = 0.0


async def agent_dies(world: World) -> None:
    agent = world.rng.choice(world.agents)
    await agent.close(keep_replicas=True)
    await world.for_a_while()
    await agent.open()


async def clock_jumps(world: World) -> None:
    """Ahead or back; a restarted agent numbers what it tells from its clock."""
    agent = world.rng.choice(world.agents)
    await agent.close(keep_replicas=True)
    agent.set_clock(world.rng.choice(CLOCKS_AHEAD_S))
    await agent.open()


async def disk_is_full(world: World) -> None:
    """A machine takes nothing, while what is to be started anew may be meant for it."""
    agent = world.rng.choice(world.agents)
    agent.refusals = [ResourceExhausted("The disk is full.", remedy="Make room.")] * 1000
    await replica_dies(world)
    await world.for_a_while()
    agent.refusals.clear()


async def leader_dies(world: World) -> None:
    await world.control.kill()
    await world.for_a_while()
    await world.control.start()


async def leader_dies_while_placing(world: World) -> None:
    """Between an order and its answer, or between that and the replica's being ready."""
    found = [(agent, view.id) for agent in world.agents for view in agent.ready if view.server == "one"]
    if not found:
        return
    gate = world.rng.choice(("answer_gate", "gate"))
    for agent in world.agents:
        getattr(agent, gate).clear()
    before = world.ordered("one")
    agent, replica_id = world.rng.choice(found)
    await agent.kill_replica(replica_id)
    await eventually(lambda: world.ordered("one") > before, "its successor is asked for")
    await world.control.kill()
    for agent in world.agents:
        getattr(agent, gate).set()
    await world.control.start()


async def gateway_dies(world: World) -> None:
    node = world.rng.choice(world.others)
    await node.unplug()
    await world.for_a_while()
    node.plug_in()


async def replica_dies(world: World) -> None:
    found = [(agent, view.id) for agent in world.agents for view in agent.ready]
    if found:
        agent, replica_id = world.rng.choice(found)
        await agent.kill_replica(replica_id)


async def two_claim_one_replica(world: World) -> None:
    """A machine says that it runs what another one runs; one of them must be told to stop."""
    found = [(agent, view) for agent in world.agents for view in agent.ready]
    if not found:
        return
    owner, view = world.rng.choice(found)
    liar = world.rng.choice([agent for agent in world.agents if agent is not owner])
    if view.id in liar.views:
        return
    liar.claim(view)
    await eventually(
        lambda: any(view.id == stopped for agent in world.agents for stopped, _ in agent.stops),
        "one of them is told to stop",
    )
    if not liar.views[view.id].state.is_final:  # it was the owner: nothing runs here, and it says so
        liar.change(view.id, state=ReplicaState.STOPPED)


FAULT_KINDS: tuple[Callable[[World], Awaitable[None]], ...] = (
    cut, cut_one_way, slow, agent_dies, clock_jumps, gateway_dies, replica_dies, two_claim_one_replica,
    disk_is_full, leader_dies, leader_dies_while_placing,
)  # fmt: skip


# -- load ----------------------------------------------------------------------------------------------------


async def ask_all_the_time(
    control: KillableControl, ledger: Ledger, number: int, is_over: asyncio.Event
) -> None:
    for count in itertools.count():
        if is_over.is_set():
            return
        server = ("web", "one")[count % 2]
        name = f"{number}.{count}"
        try:
            if count % 3:
                _judge_get(ledger, await _get(control, f"/shop/{server}/"), name)
            else:
                answer = await control.client.post(f"/shop/{server}/request", content=name)
                ledger.posted[name] = answer.status_code
                _judge_post(ledger, answer, name)
        except httpx.HTTPError as error:
            if control.deaths and isinstance(error, httpx.TransportError):
                ledger.posted[name] = BROKEN
            else:
                ledger.problems.append(f"{name}: {error!r}")
        ledger.answers += 1
        await asyncio.sleep(PAUSE_S)


async def _get(control: KillableControl, path: str) -> httpx.Response:
    """As every HTTP client does: again when the connection breaks with the control plane."""
    while True:
        try:
            return await control.get(path)
        except httpx.TransportError:
            if not control.deaths:
                raise
            await asyncio.sleep(PAUSE_S)


def _judge_get(ledger: Ledger, answer: httpx.Response, name: str) -> None:
    """What can be repeated is answered, by whomever."""
    if answer.status_code != 200:
        ledger.problems.append(f"GET {name}: {answer.status_code} {answer.text}")


def _judge_post(ledger: Ledger, answer: httpx.Response, name: str) -> None:
    """The answer to this very request, or one error that says what to do."""
    if answer.status_code == 200:
        if answer.json()["body"] != name:
            ledger.problems.append(f"POST {name} got the answer to {answer.json()['body']}")
        return
    error = GlowplugError.from_dict(answer.json())
    if answer.status_code not in (502, 503, 504) or not error.remedy:
        ledger.problems.append(f"POST {name}: {answer.status_code} {answer.text}")


@asynccontextmanager
async def load(control: KillableControl) -> AsyncIterator[Ledger]:
    ledger, is_over = Ledger(), asyncio.Event()
    callers = [
        asyncio.create_task(ask_all_the_time(control, ledger, number, is_over)) for number in range(CALLERS)
    ]
    try:
        yield ledger
    finally:
        is_over.set()
        await asyncio.gather(*callers)


# -- the test ------------------------------------------------------------------------------------------------


@pytest.fixture
async def machines() -> AsyncIterator[list[SecondNode]]:
    async with second_node("beta") as beta, second_node("gamma") as gamma:
        yield [beta, gamma]


@pytest.mark.parametrize("seed", range(SEED, SEED + SEQUENCES))
async def test_whatever_fails_when(
    state: StateDir, agent: FakeAgent, machines: list[SecondNode], seed: int
) -> None:
    rng = random.Random(seed)
    struck: list[str] = []
    async with killable_control(state, TIMINGS) as control:
        for node in machines:
            await node.join(control)
        world = World(control, agent, machines, rng)
        await control.client.post(f"/api/v1/nodes/{OWN}/drain")  # so that both begin where most fails
        deployed = (await control.deploy(app_spec(EXCLUSIVE, SHARED)))["deployment"]["id"]
        await eventually(lambda: world.ready("one") and world.ready("web"), "both serve")
        await control.client.post(f"/api/v1/nodes/{OWN}/undrain")
        async with load(control) as ledger:
            for _ in range(FAULTS):
                fault = rng.choice(FAULT_KINDS)
                struck.append(fault.__name__)
                await fault(world)
                await asyncio.sleep(rng.uniform(0.0, 0.2))
            await _converged(world)
        print(f"\nseed {seed}: {struck}, {ledger.answers} answers, {Counter(ledger.posted.values())}")
        assert not ledger.problems
        _assert_done_once(world, ledger)
        [active] = [d for d in (await control.get("/api/v1/deployments")).json() if d["active"]]
        assert active["id"] == deployed, "no deployment is lost"


async def _converged(world: World) -> None:
    """Without a hand: all machines are used, and what runs is what should, each of it once."""
    for node in world.others:
        await node.is_in_state(world.control, "ready")

    async def is_so() -> bool:
        listed = await nodes(world.control)
        ones, webs = world.ready("one"), world.ready("web")
        known = sum(node["replicas"] for node in listed.values())
        is_each_once = len(set(ones + webs)) == len(ones + webs) == known
        return is_each_once and len(ones) == 1 and 1 <= len(webs) <= 2 and listed[OWN]["state"] == "ready"

    await eventually(is_so, "what runs is what should")


def _assert_done_once(world: World, ledger: Ledger) -> None:
    done = Counter(
        body for agent in world.agents for replica in agent.servers.values() for body in replica.bodies
    )
    twice = {name: count for name, count in done.items() if count > 1}
    assert not twice, "a request that may not be repeated was done twice"
    answered = {name for name, status in ledger.posted.items() if status == 200}
    assert answered <= done.keys()
