"""What a router on a node takes from control, from whom, and what is left when nobody tells it anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.control.conftest import eventually

from glowplug.control.edge.follower import Follower
from glowplug.control.edge.table import RouteTable
from glowplug.control.edge.upstream import Upstream
from glowplug.types.clock import SystemClock
from glowplug.types.cluster import CertificateAnswer
from glowplug.types.errors import Unauthorized
from glowplug.types.paths import StateDir
from glowplug.types.replica import Endpoint
from glowplug.types.routes import (
    NodeRoute,
    ReplicaRoute,
    RouterHello,
    RouterReport,
    RouteUpdate,
    ServerName,
    ServerRoutes,
)

HELLO = RouterHello(boot="0" * 16, address="127.0.0.1:8080", glowplug="0", signing_request="")


class Beta:
    """The node ``beta``: its table, and who follows control for it."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.certificates: list[CertificateAnswer] = []
        self.upstream = Upstream("http://127.0.0.1:1", SystemClock())
        self.table = RouteTable(
            "beta", state.agent_socket, self.upstream, lambda: None, clock=SystemClock(), rng=random.Random(0)
        )
        follower = Follower(state.router_socket, HELLO, self.table, self.upstream, self.accept)
        self.following = asyncio.create_task(follower.run())

    def accept(self, answer: CertificateAnswer) -> None:
        if answer.certificate == "another's":
            raise Unauthorized("It is another's.", remedy="Look.")
        self.certificates.append(answer)

    def replicas(self) -> list[str]:
        """Those of ``web`` that may have requests."""
        known = self.table.servers.get(("shop", "web"))
        return [] if known is None else [replica.id for replica in known.ready]

    async def close(self) -> None:
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.table.close()
        await self.upstream.close()


class Control:
    """One control plane's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def tell(self, update: RouteUpdate | bytes) -> None:
        line = update if isinstance(update, bytes) else update.model_dump_json(exclude_defaults=True).encode()
        self._writer.write(line + b"\n")

    async def report(self, version: int) -> RouterReport:
        """The next one that says that it has applied that."""
        async with asyncio.timeout(60):
            while True:
                report = RouterReport.model_validate_json(await self._reader.readline())
                if report.version == version:
                    return report

    async def is_hung_up_on(self) -> None:
        async with asyncio.timeout(60):
            while await self._reader.readline():
                continue
        self._writer.close()


@pytest.fixture
async def beta(state: StateDir) -> AsyncIterator[Beta]:
    made = Beta(state)
    await eventually(state.router_socket.exists, "it listens")
    yield made
    await made.close()


async def connect(beta: Beta) -> Control:
    reader, writer = await asyncio.open_unix_connection(str(beta.state.router_socket))
    assert RouterHello.model_validate_json(await reader.readline()) == HELLO
    return Control(reader, writer)


def web(*replicas: str, closed: str = "", node: str = "beta") -> ServerRoutes:
    return ServerRoutes(
        app="shop",
        server="web",
        request_timeout_s=10.0,
        target_concurrency=4,
        replicas=[
            ReplicaRoute(
                id=name, node=node, endpoint=Endpoint(host="127.0.0.1", port=1), is_open=name != closed
            )
            for name in replicas
        ],
    )


def whole(term: int, version: int, *servers: ServerRoutes) -> RouteUpdate:
    return RouteUpdate(term=term, version=version, is_whole=True, servers=list(servers), nodes=[])


async def test_it_follows_what_it_is_told_and_says_so_at_once(beta: Beta) -> None:
    control = await connect(beta)
    control.tell(whole(7, 3, web("r1", "r2")))
    await control.report(3)
    assert beta.replicas() == ["r1", "r2"]
    assert beta.table.age_s < 60
    control.tell(RouteUpdate(term=7, version=4, servers=[web("r1", "r2", closed="r1")]))
    await control.report(4)
    assert beta.replicas() == ["r2"]
    control.tell(RouteUpdate(term=7, version=5, gone=[ServerName(app="shop", server="web")]))
    await control.report(5)
    assert beta.table.servers == {}


async def test_a_replica_that_is_over_ends_what_it_had_and_one_that_is_closed_does_not(beta: Beta) -> None:
    class Request:
        ended: Exception | None = None

        def interrupt(self, reason: Exception) -> None:
            self.ended = reason

    control = await connect(beta)
    control.tell(whole(7, 3, web("r1")))
    await control.report(3)
    server, request = beta.table.servers["shop", "web"], Request()
    picked = server.pick()
    assert picked is not None
    picked.in_flight.add(request)
    server.entered()
    control.tell(RouteUpdate(term=7, version=4, servers=[web("r1", closed="r1")]))
    told = await control.report(4)
    assert [one.in_flight for one in told.servers] == [{"r1": 1}], "with the version comes what it has"
    assert request.ended is None
    control.tell(RouteUpdate(term=7, version=5, servers=[web()]))
    await control.report(5)
    assert "r1 ended" in str(request.ended)


async def test_the_newest_leader_is_listened_to_and_nobody_before_it(beta: Beta) -> None:
    first = await connect(beta)
    first.tell(whole(7, 300, web("r1")))
    await first.report(300)
    second = await connect(beta)
    second.tell(whole(8, 2, web("r1", "r2")))
    await second.report(2)
    await first.is_hung_up_on()
    late = await connect(beta)
    late.tell(whole(7, 301, web()))
    await late.is_hung_up_on()
    assert beta.replicas() == ["r1", "r2"]
    second.tell(RouteUpdate(term=8, version=3, servers=[web("r2")]))
    await second.report(3)
    assert beta.replicas() == ["r2"]


async def test_a_new_connection_applies_nothing_before_the_whole_table(beta: Beta) -> None:
    first = await connect(beta)
    first.tell(whole(7, 9, web("r1")))
    await first.report(9)
    again = await connect(beta)
    again.tell(RouteUpdate(term=7, version=10, servers=[web("r2")]))
    assert (await again.report(0)).version == 0, "it has acknowledged nothing"
    assert beta.replicas() == ["r1"]


@pytest.mark.parametrize("line", [b"nonsense", b"{}", b'{"term": "x", "version": 1}', b"\xff\xfe", b""])
async def test_nonsense_is_hung_up_on_and_the_table_stays(beta: Beta, line: bytes) -> None:
    control = await connect(beta)
    control.tell(whole(7, 3, web("r1")))
    await control.report(3)
    control.tell(line)
    await control.is_hung_up_on()
    assert beta.replicas() == ["r1"]
    again = await connect(beta)
    again.tell(whole(7, 3, web("r1")))
    await again.report(3)


async def test_a_certificate_opens_the_ways_to_other_nodes_and_anothers_is_refused(beta: Beta) -> None:
    control = await connect(beta)
    there = web("r1", node="gamma")
    nodes = [NodeRoute(name="gamma", host="127.0.0.1", port=1)]
    control.tell(whole(7, 3, there).model_copy(update={"nodes": nodes}))
    await control.report(3)
    assert beta.replicas() == [], "there is no way there without one"
    answer: dict[str, Any] = {"certificate": "ours", "authority": "a"}
    control.tell(RouteUpdate(term=7, version=0, certificate=CertificateAnswer(**answer)))
    await eventually(lambda: beta.certificates, "it is kept")
    answer["certificate"] = "another's"
    control.tell(RouteUpdate(term=7, version=0, certificate=CertificateAnswer(**answer)))
    await control.is_hung_up_on()
    assert len(beta.certificates) == 1


async def test_control_says_where_it_is_when_there_are_several(beta: Beta) -> None:
    control = await connect(beta)
    here = whole(7, 3, web()).model_copy(update={"control_url": "http://127.0.0.1:2"})
    control.tell(here)
    await control.report(3)
    assert beta.upstream.url == "http://127.0.0.1:2"
    beta.upstream.suspect(60.0)
    assert (beta.upstream.url, beta.upstream.is_suspect) == ("http://127.0.0.1:1", False)
    beta.upstream.suspect(60.0)
    assert beta.upstream.is_suspect, "neither takes connections"
    place = beta.upstream.place("shop", "web")
    successor = RouteUpdate(term=7, version=4, servers=[web()], control_url="http://127.0.0.1:3")
    control.tell(successor)
    await control.report(4)
    assert (beta.upstream.url, beta.upstream.is_suspect) == ("http://127.0.0.1:3", False)
    assert place.channel is beta.upstream.place("shop", "web").channel
