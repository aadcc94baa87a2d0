"""What keeps the control plane quick with thousands of replicas and a hundred nodes: bounds, one by one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.control.conftest import eventually, server_spec
from tests.control.test_fleet import NoStore

from glowplug.control import placer as placing
from glowplug.control import server_heat
from glowplug.control.census import take_census
from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.fleet import Fleet
from glowplug.control.holdings import Holdings
from glowplug.control.image_care import ImageCare
from glowplug.control.node_link import NodeLink
from glowplug.control.placement import Score
from glowplug.control.placer import Placer
from glowplug.control.reconciler import Reconciler
from glowplug.control.replica_entry import Drain, Replica
from glowplug.control.server_version import ServerVersion
from glowplug.control.slices import Slices
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.control.under_way import NodeLoad
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock, SystemClock
from glowplug.types.errors import NotFound, Unavailable
from glowplug.types.replica import Heat, HeatView, HeldSnapshot, NodeHoldings, ReplicaState, ReplicaView
from glowplug.types.spec import DirectoryImage, ImageSpec, Resources, ServerSpec


def new_fleet() -> Fleet:
    clock = ManualClock()
    return Fleet(clock=clock, timings=Timings(), cold_starts=ColdStartLog(NoStore(), clock, Metrics()))


def version(name: str = "web", deployment_id: str = "shop-v1") -> ServerVersion:
    return ServerVersion(deployment_id, ServerSpec.model_validate(server_spec(name)), "im-1", {})


def view(replica_id: str, state: ReplicaState = ReplicaState.STARTING, server: str = "web") -> ReplicaView:
    return ReplicaView(
        id=replica_id, app="shop", server=server, deployment_id="shop-v1", state=state, created_at=0.0
    )


# -- who is looked at ----------------------------------------------------------------------------------------


def test_what_happens_to_a_replica_concerns_its_server_only() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version("web"), version("api")])
    fleet.attention.take_all()
    fleet.apply("one", view("r1"))
    assert fleet.attention.take() == [("shop", "web")]
    assert not fleet.attention.is_to_all
    fleet.doubt("one", is_silent=True)
    assert fleet.attention.is_to_all


def test_replicas_of_what_is_not_deployed_are_orphans_until_it_is_deployed_again() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version("web"), version("api")])
    fleet.apply("one", view("r1"))
    fleet.apply("one", view("r2", server="api"))
    assert not fleet.orphans
    fleet.activate("shop", [version("api")])
    assert list(fleet.orphans) == ["r1"]
    fleet.remove("shop")
    assert set(fleet.orphans) == {"r1", "r2"}
    fleet.activate("shop", [version("web")])
    assert list(fleet.orphans) == ["r2"]
    assert list(fleet.target("shop", "web").replicas) == ["r1"]
    fleet.apply("one", view("r2", ReplicaState.STOPPED, "api"))
    assert not fleet.orphans


def test_starts_under_way_are_counted_by_node() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version()])
    for name, node in (("r1", "one"), ("r2", "one"), ("r3", "two"), ("r4", "two")):
        fleet.apply(node, view(name))
    assert starts(fleet) == {"one": 2, "two": 2}
    fleet.apply("one", view("r1", ReplicaState.PARKED))
    fleet.forget(fleet.replicas["r2"])
    fleet.replicas["r3"].drain = Drain(0.0)
    assert starts(fleet) == {"two": 1}
    fleet.replicas["r1"].is_waking = True
    fleet.under_way.begins(fleet.replicas["r1"])
    assert starts(fleet) == {"one": 1, "two": 1}


def test_what_a_start_takes_counts_until_its_node_was_asked_after_it_was_accepted() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version()])
    gib = 1 << 30
    ours = Replica(view("r1"), "one", resources=Resources(memory_bytes=2 * gib, gpu="L4:2"))
    fleet.expect(ours)
    assert fleet.under_way.by_node({"one": 5.0})["one"] == NodeLoad(1, 2 * gib, 2), "nobody has taken it yet"
    ours.accepted_at_s = 7.0
    assert fleet.under_way.by_node({"one": 7.0})["one"] == NodeLoad(1, 2 * gib, 2), "it may not have told yet"
    assert fleet.under_way.by_node({"one": 8.0})["one"] == NodeLoad(1)
    ours.view = view("r1", ReplicaState.READY)
    assert fleet.under_way.by_node({"one": 7.0})["one"] == NodeLoad(0, 2 * gib, 2), "ready, and not told of"
    assert "one" not in fleet.under_way.by_node({"one": 8.0})
    fleet.apply("one", view("r2"))
    assert fleet.under_way.by_node({})["one"] == NodeLoad(1), "what was found running its node tells of"
    fleet.forget(fleet.replicas["r2"])
    assert "one" not in fleet.under_way.by_node({})


def starts(fleet: Fleet) -> dict[str, int]:
    return {node: load.starts for node, load in fleet.under_way.by_node({}).items() if load.starts}


def test_a_census_puts_every_replica_in_one_place() -> None:
    replicas = {name: Replica(view(name, ReplicaState.READY), "one") for name in "abcdef"}
    replicas["b"].view = view("b").model_copy(update={"deployment_id": "shop-v0"})
    replicas["c"].is_leaving = True
    replicas["d"].drain = Drain(0.0)
    replicas["d"].in_flight = {cast(Any, "a request")}
    replicas["e"].view = view("e", ReplicaState.PARKED)
    replicas["f"].is_parking = True
    census = take_census(replicas.values(), "shop-v1")
    assert [r.id for r in census.live] == ["a"]
    assert [r.id for r in census.outdated] == ["b", "c"]
    assert [r.id for r in census.draining] == ["d"]
    assert [r.id for r in census.parked] == ["e"]
    assert census.leaving == 1


async def test_a_touched_server_does_not_wait_for_a_pass_over_all() -> None:
    """The pass rests between slices, and looks at what was touched meanwhile before it goes on."""
    fleet = new_fleet()
    fleet.activate("shop", [version(f"s{n}") for n in range(200)])
    nothing = cast(Any, None)
    reconciler = Reconciler(
        fleet, [], nothing, nothing, nothing, nothing, clock=ManualClock(), timings=Timings(tick_s=60.0)
    )
    looked: list[str] = []

    def look_at(target: Target) -> None:
        looked.append(target.server)
        if len(looked) == 3:
            fleet.attention.pay("shop", "s199")

    reconciler._look_at = look_at  # type: ignore[method-assign]
    reconciler._slices = Slices(slice_s=0.0)
    running = asyncio.create_task(reconciler.run())
    await eventually(lambda: len(looked) >= 201, "a pass over all")
    running.cancel()
    assert looked[:4] == ["s0", "s1", "s2", "s199"]
    assert looked[4:] == [f"s{n}" for n in range(3, 200)]


# -- what is known of nodes ----------------------------------------------------------------------------------


def test_holdings_are_found_by_server_and_image() -> None:
    def held(name: str, *servers: str, image: str = "im-1") -> HeldSnapshot:
        return HeldSnapshot(id=name, servers=list(servers), image_id=image)

    told = NodeHoldings(
        snapshots=[held("a", "shop/web"), held("b", "shop/api", "shop/web"), held("c", "shop/web", image="x")]
    )
    holdings = Holdings(told)
    assert [snapshot.id for snapshot in holdings.of("shop/web", "im-1")] == ["a", "b"]
    assert [snapshot.id for snapshot in holdings.of("shop/api", "im-1")] == ["b"]
    assert not holdings.of("shop/none", "im-1")


def test_reasons_are_remembered_for_a_bounded_number_of_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "_REMEMBERED_SCORES", 10)
    placer = Placer(new_fleet(), [], cast(Any, None), ManualClock())
    for number in range(5):
        placer.remember(f"r{number}", [Score(f"n{node}", {"heat": 1.0}) for node in range(4)])
    placer.moved("r4", "n1", {"n0": "it is full"})
    assert [score.refusal for score in placer.of("r4").scores] == ["it is full", None, None, None]
    assert (placer.of("r4").node, placer.of("r3").node) == ("n1", "n0")
    for forgotten in ("r0", "r1", "r2"):
        with pytest.raises(NotFound):
            placer.of(forgotten)
    placer.remember("large", [Score(f"n{node}") for node in range(50)])
    assert len(placer.of("large").scores) == 50


class AskedNode:
    """A node as far as heat is asked of it."""

    def __init__(self, name: str, here_bytes: int = 0, error: bool = False) -> None:
        self.name = name
        self.is_synced, self.is_silent = True, False
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.client = self
        self.error = error
        snapshot = HeldSnapshot(id="sn", servers=["shop/web"], image_id="im-1", here_bytes=here_bytes)
        self.holdings = Holdings(NodeHoldings(snapshots=[snapshot] if here_bytes else []))

    async def next_start(self, _order: object) -> HeatView:
        self.asked += 1
        await self.gate.wait()
        if self.error:
            raise Unavailable("away")
        return HeatView(heat=Heat.IMAGE if self.holdings.of("shop/web", "im-1") == () else Heat.SNAPSHOT)


async def test_about_a_server_at_zero_the_nodes_are_asked_that_have_most() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version()])
    nodes = [AskedNode(f"n{n}") for n in range(20)] + [AskedNode("warm", 10), AskedNode("hot", 100)]
    found = await server_heat.server_heats(fleet.targets(), cast(list[NodeLink], nodes))
    assert found[fleet.target("shop", "web")] == HeatView(heat=Heat.SNAPSHOT)
    assert {node.name: node.asked for node in nodes if node.asked} == {"warm": 1, "hot": 1}
    assert server_heat.NODES_ASKED == 2


async def test_nobody_waits_for_nodes_that_do_not_say_how_hot_a_server_is() -> None:
    fleet = new_fleet()
    fleet.activate("shop", [version("web"), version("api")])
    fleet.apply("n0", view("r1", server="api"))
    silent = AskedNode("n0")
    silent.gate.clear()
    found = await server_heat.server_heats(fleet.targets(), cast(list[NodeLink], [silent]), within_s=0.05)
    assert found == {fleet.target("shop", "api"): HeatView(heat=Heat.RUNNING)}


async def test_a_node_makes_a_few_images_at_once() -> None:
    begun: list[str] = []
    may_end = asyncio.Event()

    async def image(image_id: str) -> None:
        begun.append(image_id)
        await may_end.wait()

    link = cast(
        NodeLink,
        SimpleNamespace(name="n1", is_own=False, ready_images=set(), client=SimpleNamespace(image=image)),
    )
    care = ImageCare(SystemClock(), Timings())
    wanted: dict[str, ImageSpec] = {f"im-{n}": DirectoryImage(path="/") for n in range(30)}
    for _ in range(3):
        care.prepare(link, wanted)
        await asyncio.sleep(0)
    assert len(begun) == 8
    late = asyncio.create_task(care.ensure(link, DirectoryImage(path="/"), "im-29"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert begun[8:] == ["im-29"], "what a replica waits for is made now"
    may_end.set()
    await late
    for _ in range(200):
        care.prepare(link, wanted)
        await asyncio.sleep(0)
    assert link.ready_images == wanted.keys()
    assert len(begun) == len(set(begun)) == 30
    await care.close()
