"""A router on every node: it serves any app from its table, and what it cannot take is control's."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from tests.control.conftest import (
    QUICK,
    Control,
    app_spec,
    eventually,
    running_control,
    server_spec,
    state_directory,
)
from tests.control.control_process import control_process
from tests.control.edge_router import client_of, edge_process, only_on, router_of, running_edge
from tests.control.fake_agent import FakeAgent
from tests.control.fake_replica import FakeReplica
from tests.control.second_node import SecondNode, second_node
from websockets.asyncio.client import connect

from glowplug.types.paths import StateDir

WARM = server_spec(scaling={"min_replicas": 1, "max_replicas": 4})


@pytest.fixture
async def beta() -> AsyncIterator[SecondNode]:
    async with second_node() as node:
        yield node


@pytest.fixture
async def gamma() -> AsyncIterator[SecondNode]:
    async with second_node("gamma") as node:
        yield node


async def test_a_router_serves_any_app_straight_from_the_node_that_holds_it(
    control: Control, beta: SecondNode, gamma: SecondNode
) -> None:
    await only_on(control, beta, gamma)
    await control.client.post("/api/v1/nodes/beta/drain")
    await control.deploy(app_spec(WARM))
    async with running_edge(control, beta) as edge:
        await edge.knows(1)
        (there,) = gamma.agent.ready
        assert (await edge.get("/shop/web/")).text == there.id
        seen = dict(
            (await edge.get("/shop/web/request/a%2Fb?x=1", headers={"TE": "trailers"})).json()["headers"]
        )
        assert (seen["x-forwarded-for"], seen["x-forwarded-prefix"]) == ("127.0.0.1", "/shop/web")
        assert "te" not in seen
        upload = await edge.client.post("/shop/web/upload", content=b"z" * 3_000_000)
        assert upload.json()["bytes"] == 3_000_000
        async with connect(f"ws{edge.url[4:]}/shop/web/ws", proxy=None, open_timeout=60) as socket:
            await socket.send("hello")
            assert await socket.recv() == "echo hello"
        replica = gamma.agent.servers[there.id]
        async with edge.client.stream("GET", "/shop/web/stream") as answer:
            pieces = answer.aiter_raw()
            for piece in (b"one", b"two"):
                replica.steps.put_nowait(piece)
                assert await anext(pieces) == piece, "each piece comes as it is sent"
            replica.steps.put_nowait(None)
        with pytest.raises(httpx.RemoteProtocolError):
            await edge.get("/shop/web/breaks")
        assert await edge.metric("glowplug_router_handed_on_total") == 0
        await eventually(lambda: _in_flight_is(control, 0), "control knows that they are over")
        router = await router_of(control, beta)
        assert (router["address"], router["state"]) == (edge.url.removeprefix("http://"), "following")
        assert await control.metric('glowplug_routers{state="following"}') == 1


async def test_what_no_replica_can_take_is_held_and_woken_by_control(
    control: Control, beta: SecondNode
) -> None:
    await only_on(control, beta)
    await control.deploy(app_spec(server_spec()))
    beta.agent.gate.clear()
    async with running_edge(control, beta) as edge:
        request = asyncio.create_task(edge.get("/shop/web/request", headers={"x-forwarded-prefix": "/base"}))
        await control.held(1)
        beta.agent.gate.set()
        seen = dict((await request).json()["headers"])
        assert seen["x-forwarded-prefix"] == "/base/shop/web"
        assert seen["x-forwarded-for"] == "127.0.0.1, 127.0.0.1"
        await edge.knows(1)
        assert (await edge.get("/shop/web/")).text == beta.agent.ready[0].id
        assert await edge.metric("glowplug_router_handed_on_total") == 1

        unknown = await edge.get("/shop/none/")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
        api = await edge.get("/api/v1/status")
        assert (api.status_code, control.url in api.json()["remedy"]) == (404, True)
        assert (await edge.get("/healthz")).json()["role"] == "router"
        hidden = await edge.get("/shop/web/%2eglowplug/ready")
        assert hidden.status_code == 404


async def test_changes_reach_routers_at_once(control: Control, beta: SecondNode) -> None:
    await only_on(control, beta)
    async with running_edge(control, beta) as edge:
        await control.deploy(app_spec(WARM))
        await eventually(lambda: beta.agent.ready, "a replica")
        began_s = time.monotonic()
        await edge.knows(1)
        assert time.monotonic() - began_s < 10.0, "a second is promised"
        first = beta.agent.ready[0].id
        await beta.agent.kill_replica(first)
        await eventually(lambda: beta.agent.ready, "its successor")
        second = beta.agent.ready[0].id

        async def is_answered_by_it() -> bool:
            return (await edge.get("/shop/web/")).text == second

        await eventually(is_answered_by_it, "it has the requests")
        await control.client.post("/api/v1/apps/shop/stop", params={"remove": True})
        await edge.knows(0)
        assert (await edge.get("/shop/web/")).status_code == 404


@pytest.mark.nightly
async def test_what_a_replica_that_died_had_is_repeated_elsewhere_where_that_is_safe(
    control: Control, beta: SecondNode, gamma: SecondNode
) -> None:
    await only_on(control, beta, gamma)
    await control.deploy(app_spec(server_spec(scaling={"min_replicas": 2, "max_replicas": 2})))
    async with running_edge(control, beta) as edge:
        await edge.knows(2)
        (holder, lost), (_, other) = (
            (node.agent, node.agent.servers[view.id]) for node in (beta, gamma) for view in node.agent.ready
        )
        asked = [asyncio.create_task(edge.get("/shop/web/wait")) for _ in range(4)]
        posted = [asyncio.create_task(edge.client.post("/shop/web/wait")) for _ in range(4)]
        await eventually(lambda: lost.waiting + other.waiting == 8, "all are under way")
        taken = lost.waiting
        assert taken, "both have some"
        for node in (beta, gamma):
            node.agent.gate.clear()  # a successor would not answer
        await holder.kill_replica(lost.name)
        other.release.set()
        assert {answer.text for answer in await asyncio.gather(*asked)} == {other.name}
        statuses = [answer.status_code for answer in await asyncio.gather(*posted)]
        assert set(statuses) <= {200, 502}
        assert statuses.count(502) <= taken


SHORT_LIVED = {"scaledown_window_s": 0.2, "parked_window_s": 60.0, "max_replicas": 1}


@asynccontextmanager
async def kept_awake(control: Control, node: SecondNode) -> AsyncIterator[FakeReplica]:
    """A replica of a server that is parked as soon as it is idle, with a request of control's own."""
    await control.deploy(app_spec(server_spec(scaling=SHORT_LIVED)))
    stream = asyncio.create_task(control.get("/shop/web/stream"))
    replica = await eventually(lambda: next(iter(node.agent.servers.values()), None), "a replica")
    yield replica
    replica.steps.put_nowait(None)
    await stream


async def test_a_replica_that_a_router_uses_is_neither_parked_nor_stopped(
    control: Control, beta: SecondNode
) -> None:
    await only_on(control, beta)
    async with running_edge(control, beta) as edge:
        async with kept_awake(control, beta) as replica:
            await edge.knows(1)
            request = asyncio.create_task(edge.client.post("/shop/web/wait"))
            await eventually(lambda: replica.waiting, "a request under way")
            await eventually(lambda: _in_flight_is(control, 2), "control knows of it")
        await asyncio.sleep(1.5)
        assert not beta.agent.parks
        assert not beta.agent.stops
        assert await edge.metric("glowplug_router_handed_on_total") == 0
        replica.release.set()
        assert (await request).text == replica.name
        await eventually(lambda: beta.agent.parks, "it is parked when nobody uses it")
        assert (await edge.get("/shop/web/")).text == replica.name, "and woken when somebody does"


async def test_load_that_only_a_router_sees_starts_replicas(control: Control, beta: SecondNode) -> None:
    await only_on(control, beta)
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_concurrency": 1}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    async with running_edge(control, beta) as edge:
        await edge.knows(1)
        asked = [asyncio.create_task(edge.client.post("/shop/web/wait")) for _ in range(3)]
        await eventually(lambda: len(beta.agent.ready) == 3, "as many as there are requests")
        await edge.knows(3)
        assert await edge.metric("glowplug_router_handed_on_total") == 0
        # Each of the new ones gets requests before any gets a second.
        free = [asyncio.create_task(edge.client.post("/shop/web/wait")) for _ in range(2)]
        await eventually(
            lambda: all(replica.waiting for replica in beta.agent.servers.values()), "they are spread"
        )
        for replica in beta.agent.servers.values():
            replica.release.set()
        answers = await asyncio.gather(*asked, *free)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.text for answer in answers}) == 3


async def test_without_control_ready_replicas_answer_and_what_needs_it_is_told(
    state: StateDir, agent: FakeAgent, beta: SecondNode
) -> None:
    async with AsyncExitStack() as edges:
        async with running_control(state) as control:
            await only_on(control, beta)
            await control.deploy(app_spec(WARM, server_spec("cold")))
            edge = await edges.enter_async_context(running_edge(control, beta))
            await edge.knows(1)
            warm = beta.agent.ready[0].id
        assert [(await edge.get("/shop/web/")).text for _ in range(20)] == [warm] * 20
        refused = await edge.get("/shop/cold/")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "control plane" in refused.json()["message"]


@pytest.mark.nightly
async def test_a_router_that_was_killed_is_followed_again_and_its_requests_are_over(
    control: Control, beta: SecondNode
) -> None:
    await only_on(control, beta)
    await control.deploy(app_spec(WARM))
    await eventually(lambda: beta.agent.ready, "a replica")
    (replica,) = beta.agent.servers.values()

    async with edge_process(beta) as process, client_of(process.url) as edge:
        await edge.knows(1)
        request = asyncio.create_task(edge.get("/shop/web/wait"))
        await eventually(lambda: replica.waiting, "a request under way")
        await eventually(lambda: _in_flight_is(control, 1), "control knows of it")
        process.process.kill()
        with pytest.raises(httpx.HTTPError):
            await request
        await eventually(lambda: _in_flight_is(control, 0), "control knows that it is over")
    async with edge_process(beta) as process, client_of(process.url) as edge:
        await edge.knows(1)
        assert (await edge.get("/shop/web/")).text == replica.name
    assert (len(beta.agent.orders), beta.agent.stops) == (1, [])


@pytest.mark.nightly
async def test_control_killed_under_load_fails_no_request_to_a_warm_replica(beta: SecondNode) -> None:
    with state_directory() as state:
        agent = FakeAgent(state.agent_socket)
        await agent.open()
        try:
            await _kill_control_under_load(state, beta)
        finally:
            await agent.close()


async def _kill_control_under_load(state: StateDir, beta: SecondNode) -> None:
    answers: list[int] = []
    async with control_process(state, "--port", "0") as process, client_of(process.url) as client:
        control = Control(process.url, client.client, state)
        await only_on(control, beta)
        await control.deploy(app_spec(WARM, server_spec("cold")))
        await eventually(lambda: beta.agent.ready, "a replica")
        warm = beta.agent.ready[0].id
        async with edge_process(beta) as router, client_of(router.url) as edge:
            await edge.knows(1)
            load = asyncio.create_task(_ask_all_the_time(edge.client, "/shop/web/", answers))
            await eventually(lambda: len(answers) > 20, "load")
            os.kill(process.pid, signal.SIGKILL)
            await process.process.wait()
            before = len(answers)
            await eventually(lambda: len(answers) > before + 50, "answers without control")
            refused = await edge.get("/shop/cold/")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "control plane" in refused.json()["message"]
            async with control_process(state, "--port", str(process.port)):
                before = len(answers)
                await eventually(lambda: len(answers) > before + 50, "answers with a new one")

                async def is_woken() -> bool:
                    return (await edge.get("/shop/cold/")).status_code == 200

                await eventually(is_woken, "what needs control is served again")
                load.cancel()
                assert (await edge.get("/shop/web/")).text == warm
    assert set(answers) == {200}
    assert [order.replica_id for order in beta.agent.orders if order.server.name == "web"] == [warm]


async def _ask_all_the_time(client: httpx.AsyncClient, path: str, answers: list[int]) -> None:
    while True:
        try:
            answers.append((await client.get(path)).status_code)
        except httpx.HTTPError:
            answers.append(0)
        await asyncio.sleep(0.005)


async def _in_flight_is(control: Control, count: int) -> bool:
    return bool((await control.server())["in_flight"] == count)


@pytest.mark.nightly
async def test_a_router_that_stands_still_is_waited_for_but_not_for_ever(
    state: StateDir, agent: FakeAgent, beta: SecondNode
) -> None:
    async with running_control(state, replace(QUICK, router_patience_s=4.0)) as control:
        await only_on(control, beta)
        async with edge_process(beta) as process, client_of(process.url) as edge:
            async with kept_awake(control, beta):
                await edge.knows(1)
                os.kill(process.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(2.0)
                assert not beta.agent.parks, "it may have sent a request"
                await eventually(lambda: beta.agent.parks, "nobody waits for ever")
                assert await control.metric("glowplug_routers_not_waited_for_total") == 1
            finally:
                os.kill(process.pid, signal.SIGCONT)
            assert (await edge.get("/shop/web/")).status_code == 200
