"""The table for routers on nodes, and what they tell of their requests, without any connection."""

from __future__ import annotations

import json
import random
import ssl
from typing import Any, cast

import pytest
from tests.control.conftest import server_spec
from tests.control.test_fleet import NoStore

from glowplug.control.cold_start_log import ColdStartLog
from glowplug.control.edge.server import EdgeServer
from glowplug.control.fleet import Fleet
from glowplug.control.own_node import OwnNode
from glowplug.control.replica_entry import Replica
from glowplug.control.route_book import RouteBook
from glowplug.control.router_counts import RouterCounts
from glowplug.control.server_version import ServerVersion
from glowplug.control.target import Target
from glowplug.control.timings import Timings
from glowplug.node.address import RemoteNode
from glowplug.observe.metrics import Metrics
from glowplug.types.clock import ManualClock
from glowplug.types.errors import Unavailable
from glowplug.types.replica import Endpoint, ReplicaState, ReplicaView
from glowplug.types.routes import RouterReport, RouteUpdate, ServerReport, ServerRoutes
from glowplug.types.spec import ServerSpec

HERE, THERE = "here", "there"


class Shop:
    """A fleet with the app ``shop``, and a node that routers reach."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_000.0)
        log = ColdStartLog(NoStore(), self.clock, Metrics())
        self.fleet = Fleet(clock=self.clock, timings=Timings(), cold_starts=log)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.fleet.addresses[THERE] = RemoteNode(THERE, "10.0.0.2", 7443, context, context)
        self.deploy("web")
        self.book = RouteBook(self.fleet)

    def deploy(self, *servers: str) -> None:
        specs = [ServerSpec.model_validate(server_spec(name)) for name in servers]
        self.fleet.activate("shop", [ServerVersion("shop-v1", spec, "image", {}) for spec in specs])

    @property
    def target(self) -> Target:
        return self.fleet.target("shop", "web")

    def add(self, name: str, node: str = THERE) -> Replica:
        """A ready replica; its connections are nobody's."""
        view = ReplicaView(
            id=name, app="shop", server="web", deployment_id="shop-v1", state=ReplicaState.READY,
            created_at=0.0, endpoint=Endpoint(host="127.0.0.1", port=1),
        )  # fmt: skip
        made = self.fleet.replicas[name] = Replica(view, node, channel=cast(Any, object()))
        self.target.replicas[name] = made
        self.target.recompute()
        return made

    def since(self, version: int | None) -> RouteUpdate:
        self.book.refresh()
        return RouteUpdate.model_validate_json(self.book.line_since(version, term=7, control_url=None))


@pytest.fixture
def shop() -> Shop:
    return Shop()


# -- the table -----------------------------------------------------------------------------------------------


def test_the_first_line_holds_everything_and_the_next_ones_what_has_changed(shop: Shop) -> None:
    shop.deploy("web", "other")
    shop.add("r1")
    whole = shop.since(None)
    assert (whole.is_whole, whole.term, [server.server for server in whole.servers]) == (
        True, 7, ["web", "other"],
    )  # fmt: skip
    assert [(node.name, node.host, node.port) for node in whole.nodes or []] == [(THERE, "10.0.0.2", 7443)]
    assert not shop.book.refresh(), "nothing has moved"
    shop.add("r2")
    change = shop.since(whole.version)
    assert (change.is_whole, change.nodes) == (False, None)
    assert [[replica.id for replica in server.replicas] for server in change.servers] == [["r1", "r2"]]
    shop.deploy("web")
    gone = shop.since(change.version)
    assert [(one.app, one.server) for one in gone.gone] == [("shop", "other")]
    assert shop.since(whole.version).gone == gone.gone, "who is behind hears of all of it"
    shop.deploy("web", "other")
    assert [one.server for one in shop.since(gone.version).servers] == ["other"]
    assert not shop.since(gone.version).gone


def test_no_secret_command_or_environment_is_in_it(shop: Shop) -> None:
    spec = ServerSpec.model_validate(server_spec(env={"KEY": "hidden"}, command=["serve", "hidden"]))
    shop.fleet.activate("shop", [ServerVersion("shop-v1", spec, "image", {"token": "hidden"})])
    shop.add("r1")
    assert "hidden" not in shop.since(None).model_dump_json()


def test_replicas_that_routers_cannot_reach_are_controls_own(shop: Shop) -> None:
    shop.add("r1", HERE)
    (server,) = shop.since(None).servers
    assert (server.replicas, server.has_others) == ([], True)


def test_where_controls_own_machine_has_a_gateway_its_replicas_are_reached_too(shop: Shop) -> None:
    shop.book = RouteBook(shop.fleet, OwnNode(HERE, "10.0.0.1", 7443))
    shop.add("r1", HERE)
    update = shop.since(None)
    assert [(replica.id, replica.node) for replica in update.servers[0].replicas] == [("r1", HERE)]
    assert not update.servers[0].has_others
    assert {node.name: node.host for node in update.nodes or []} == {HERE: "10.0.0.1", THERE: "10.0.0.2"}


def test_a_replica_is_closed_before_it_goes(shop: Shop) -> None:
    replica = shop.add("r1")
    shop.book.refresh()
    assert shop.book.closed_in(replica) is None
    replica.is_parking = True
    shop.target.recompute()
    shop.add("r2")
    shop.book.refresh()
    closed_in = shop.book.closed_in(replica)
    assert closed_in == shop.book.version
    (server,) = shop.since(closed_in - 1).servers
    assert {one.id: one.is_open for one in server.replicas} == {"r1": False, "r2": True}
    shop.add("r3")
    shop.book.refresh()
    assert shop.book.closed_in(replica) == closed_in, "it has been since then"
    replica.is_parking = False
    shop.target.recompute()
    shop.book.refresh()
    assert shop.book.closed_in(replica) is None
    assert shop.book.closed_in(shop.add("r4", HERE)) == 0, "routers never knew it"


def test_only_what_has_changed_is_told_of_requests_at_servers_with_several_replicas(shop: Shop) -> None:
    first = shop.add("r1")
    shop.book.refresh()
    first.in_flight = {cast(Any, "1")}
    shop.target.in_flight = 1
    assert shop.book.changed_outstanding() == {}, "there is no choice"
    shop.add("r2")
    shop.book.refresh()
    assert shop.book.changed_outstanding() == {"r1": 1}
    assert shop.book.changed_outstanding() == {}
    first.in_flight = set()
    assert shop.book.changed_outstanding() == {"r1": 0}


# -- what routers tell ---------------------------------------------------------------------------------------


def report(started: int, peak: int = 0, **in_flight: int) -> RouterReport:
    server = ServerReport(app="shop", server="web", started=started, peak=peak, in_flight=in_flight)
    return RouterReport(version=1, servers=[server])


def test_requests_of_routers_stand_among_those_of_replicas_and_are_counted_once(shop: Shop) -> None:
    replica = shop.add("r1")
    counts = RouterCounts(shop.fleet)
    counts.apply(report(100, 2, r1=2), is_first=True)
    assert (len(replica.in_flight), shop.target.in_flight, shop.target.demand.per_s()) == (2, 2, 0.0)
    told = report(110, 5, r1=3)
    counts.apply(told, is_first=False)
    demand = shop.target.demand.per_s()
    assert demand > 0
    assert shop.target.load(shop.target.census()).peak == 5
    counts.apply(told, is_first=False)  # as after a connection that broke
    assert (len(replica.in_flight), shop.target.in_flight, counts.in_flight) == (3, 3, 3)
    assert shop.target.demand.per_s() == demand
    counts.apply(report(110), is_first=False)
    assert (len(replica.in_flight), shop.target.in_flight) == (0, 0)
    assert shop.target.last_activity_s == 1_000.0


def test_a_router_that_is_gone_has_no_requests(shop: Shop) -> None:
    replica = shop.add("r1")
    ours = cast(Any, "of control itself")
    replica.in_flight.add(ours)
    shop.target.in_flight = 1
    one, other = RouterCounts(shop.fleet), RouterCounts(shop.fleet)
    one.apply(report(4, 4, r1=4), is_first=False)
    other.apply(report(2, 2, r1=2), is_first=False)
    assert (len(replica.in_flight), shop.target.in_flight) == (7, 7)
    one.clear()
    assert (len(replica.in_flight), shop.target.in_flight) == (3, 3)
    other.clear()
    assert (replica.in_flight, shop.target.in_flight) == ({ours}, 1)
    demand = shop.target.demand.per_s()
    one.apply(report(5, 1, r1=1), is_first=False)  # it was away only
    assert (len(replica.in_flight), shop.target.in_flight) == (2, 2)
    assert shop.target.demand.per_s() == pytest.approx(demand * 7 / 6)


def test_what_a_router_says_of_what_is_not_there_counts_for_nothing(shop: Shop) -> None:
    counts = RouterCounts(shop.fleet)
    counts.apply(report(9, 9, r9=9), is_first=False)
    assert (shop.target.in_flight, counts.in_flight) == (0, 0)
    shop.fleet.remove("shop")
    counts.apply(report(10, 9, r1=1), is_first=False)
    counts.clear()


@pytest.mark.parametrize("field", ['"started": -1', '"peak": 1e9', '"in_flight": {"r1": 0}', '"app": "../x"'])
def test_a_report_that_cannot_be_is_refused(field: str) -> None:
    known = {"app": '"app": "a"', "server": '"server": "b"', "started": '"started": 1', "peak": '"peak": 1'}
    known[field.split('"')[1]] = field
    with pytest.raises(ValueError, match="validation error"):
        RouterReport.model_validate_json(f'{{"version": 1, "servers": [{{{", ".join(known.values())}}}]}}')
    assert json.loads(report(1, r1=1).model_dump_json())["servers"][0]["in_flight"] == {"r1": 1}


# -- where a router sends them -------------------------------------------------------------------------------


class StandInUpstream:
    """Control, as something to hand on to."""

    def __init__(self) -> None:
        self.handed_on = 0
        self.is_suspect = False
        self.url = "http://control"

    def place(self, app: str, server: str) -> Replica:
        view = ReplicaView(
            id="control", app=app, server=server, deployment_id="", state=ReplicaState.READY, created_at=0.0
        )
        return Replica(view, "control", is_router=True)

    def suspect(self, seconds: float) -> None:
        self.is_suspect = True


def edge_server(*loads: int, room: int = 4, has_others: bool = False) -> tuple[EdgeServer, StandInUpstream]:
    """A server whose replicas have so many requests elsewhere."""
    routes = ServerRoutes(
        app="shop", server="web", request_timeout_s=1.0, target_concurrency=room, has_others=has_others
    )
    upstream = StandInUpstream()
    server = EdgeServer(routes, cast(Any, upstream), ManualClock(1_000.0), random.Random(0))
    for place, load in enumerate(loads):
        view = ReplicaView(
            id=f"r{place}", app="shop", server="web", deployment_id="", state=ReplicaState.READY,
            created_at=0.0,
        )  # fmt: skip
        server.replicas[view.id] = Replica(view, THERE, channel=cast(Any, object()), elsewhere=load)
    server.recompute()
    return server, upstream


def picked(server: EdgeServer) -> str:
    replica = server.pick()
    assert replica is not None
    return replica.id


def test_requests_go_to_the_less_busy_of_two_drawn_by_lot() -> None:
    server, _ = edge_server(3, 1)
    assert {picked(server) for _ in range(20)} == {"r1"}
    server, _ = edge_server(3, 2, 1, 0)
    drawn = [picked(server) for _ in range(200)]
    assert set(drawn) == {"r1", "r2", "r3"}, "the busiest of all is never the better one"
    assert drawn.count("r3") > drawn.count("r2") > drawn.count("r1")


def test_one_that_is_full_is_passed_over_while_another_is_not() -> None:
    server, upstream = edge_server(4, 9, 3)
    assert {picked(server) for _ in range(50)} == {"r2"}
    server, upstream = edge_server(4, 9)
    assert picked(server) == "r0", "where all are, the least busy one"
    server, upstream = edge_server(4, 9, has_others=True)
    assert (picked(server), upstream.handed_on) == ("control", 1)
    upstream.is_suspect = True
    assert picked(server) == "r0"


async def test_without_a_replica_control_has_it_and_without_control_the_caller_is_told() -> None:
    server, upstream = edge_server()
    control = server.pick()
    assert control is not None
    assert control.addressed("/shop/web", "/x") == ("", "/shop/web/x")
    server.suspect(control, 1.0)
    assert server.pick() is None
    with pytest.raises(Unavailable) as told:
        await server.wait(cast(Any, None), arrived_at_s=0.0, is_admitted=False)
    assert told.value.details["retry_after_s"] == 1
    assert upstream.handed_on == 1


def test_a_report_tells_what_was_begun_here_and_its_peak_once() -> None:
    server, _ = edge_server(0)
    for name in ("one", "two"):
        replica = server.pick()
        assert replica is not None
        replica.in_flight.add(cast(Any, name))
        server.entered()
    server.replicas["r0"].in_flight.discard(cast(Any, "one"))
    server.left()
    first = server.report()
    assert (first.started, first.peak, first.in_flight) == (2, 2, {"r0": 1})
    assert server.report().peak == 1
