"""Who is asked for a start, one node after the other, and when nobody else may be."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.control.conftest import eventually
from tests.control.test_scale import new_fleet, version

from glowplug.control.fleet import Fleet
from glowplug.control.node_link import STARTS_ASKED_AT_ONCE, NodeLink
from glowplug.control.placement import Score
from glowplug.control.reconciler import Reconciler
from glowplug.control.server_version import ServerVersion
from glowplug.control.timings import Timings
from glowplug.node.answers import NoAnswer, NotConnected
from glowplug.types.clock import ManualClock
from glowplug.types.errors import GlowplugError, ResourceExhausted
from glowplug.types.replica import ReplicaState, ReplicaView, StartReplica


class StubNode:
    """A node as far as starts are asked of it."""

    def __init__(self, name: str, error: GlowplugError | None = None) -> None:
        self.name = name
        self.is_synced = self.is_settled = True
        self.memory = None
        self.asking = asyncio.Semaphore(STARTS_ASKED_AT_ONCE)
        self.client = self
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._error = error

    async def start_replica(self, order: StartReplica) -> ReplicaView:
        self.asked.append(order.replica_id)
        await self.gate.wait()
        if self._error is not None:
            raise self._error
        return ReplicaView(
            id=order.replica_id, app=order.app, server=order.server.name, deployment_id=order.deployment_id,
            state=ReplicaState.STARTING, created_at=0.0,
        )  # fmt: skip


class StubPlacer:
    """All nodes, in their order."""

    def __init__(self, nodes: list[StubNode]) -> None:
        self._nodes = nodes

    def rank(self, _target: object) -> list[Score]:
        return [Score(node.name) for node in self._nodes]

    def remember(self, *_: object) -> None: ...

    def moved(self, *_: object) -> None: ...


async def _is_there(*_: object) -> None: ...


def reconciler_of(fleet: Fleet, *nodes: StubNode) -> Reconciler:
    return Reconciler(
        fleet,
        cast(list[NodeLink], list(nodes)),
        cast(Any, StubPlacer(list(nodes))),
        cast(Any, SimpleNamespace(ensure=_is_there)),
        cast(Any, None),  # there are no routers on nodes
        cast(Any, None),  # and nobody evicts
        clock=ManualClock(),
        timings=Timings(tick_s=0.02),
    )


@pytest.mark.parametrize(
    ("error", "is_next_asked"),
    [(ResourceExhausted("full"), True), (NotConnected("no way there"), True), (NoAnswer("nothing"), False)],
)
async def test_another_node_is_asked_unless_the_first_may_have_begun(
    error: GlowplugError, is_next_asked: bool
) -> None:
    fleet = new_fleet()
    first, second = StubNode("one", error), StubNode("two")
    running = asyncio.create_task(reconciler_of(fleet, first, second).run())
    fleet.activate("shop", [version()])
    ticket = fleet.target("shop", "web").hold(is_admitted=False)
    await eventually(lambda: first.asked and (second.asked or not fleet.replicas), "what becomes of it")
    running.cancel()
    assert bool(second.asked) == is_next_asked
    assert set(second.asked) <= set(first.asked), "it has one id wherever it is asked for"
    assert not ticket.future.done()


async def test_a_node_is_asked_for_a_few_starts_at_once() -> None:
    fleet = new_fleet()
    node = StubNode("one")
    node.gate.clear()
    running = asyncio.create_task(reconciler_of(fleet, node).run())
    spec = version().spec
    many = {"min_replicas": 40, "max_replicas": 40}
    wanted = spec.model_copy(update={"scaling": spec.scaling.model_copy(update=many)})
    fleet.activate("shop", [ServerVersion("shop-v1", wanted, "im-1", {})])
    await eventually(lambda: len(fleet.replicas) == 40, "all are on their way")
    await eventually(lambda: len(node.asked) == STARTS_ASKED_AT_ONCE, "the first are asked for")
    node.gate.set()
    await eventually(lambda: len(node.asked) == 40, "and the others then")
    running.cancel()
    assert len(set(node.asked)) == 40
