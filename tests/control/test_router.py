"""What passes through the router, and how; by night, through the router of another node, too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.control.conftest import Control, app_spec, eventually, running_control, server_spec
from tests.control.edge_router import running_edge
from tests.control.fake_agent import FakeAgent
from tests.control.second_node import RecordingAgent, second_node

from glowplug.control.own_node import OwnNode
from glowplug.identity.contexts import gateway_context
from glowplug.node.gateway.counts import GatewayCounts
from glowplug.node.gateway.server import Gateway
from glowplug.types.clock import SystemClock
from glowplug.types.paths import StateDir


@pytest.fixture
async def agent(state: StateDir) -> AsyncIterator[FakeAgent]:
    """One whose replicas a gateway finds."""
    fake = RecordingAgent(state)
    await fake.open()
    yield fake
    await fake.close()


@pytest.fixture(params=["control", pytest.param("edge", marks=pytest.mark.nightly)])
async def shop(request: pytest.FixtureRequest, state: StateDir, agent: FakeAgent) -> AsyncIterator[Control]:
    """The app ``shop`` with one warm replica of ``web``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = OwnNode("alpha", "127.0.0.1", listener.getsockname()[1])
        async with running_control(state, own=None if request.param == "control" else own) as control:
            await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1})))
            await eventually(lambda: agent.ready, "a ready replica")
            await eventually(lambda: _is_ready(control), "a ready target")
            if request.param == "control":
                yield control
                return
            async with gateway_of(state, listener), second_node() as beta:
                await beta.join(control)
                async with running_edge(control, beta) as edge:
                    await edge.knows(1)
                    yield ThroughEdge(edge.url, edge.client, state, control)


@dataclass
class ThroughEdge(Control):
    """The router of another node; what only control knows, control is asked for."""

    control: Control

    async def server(self, app: str = "shop", server: str = "web") -> dict[str, Any]:
        return await self.control.server(app, server)


@asynccontextmanager
async def gateway_of(state: StateDir, listener: socket.socket) -> AsyncIterator[None]:
    """The gateway of control's own machine."""
    gateway = Gateway(state, listener, gateway_context(state.identity), GatewayCounts(SystemClock()))
    serving = asyncio.create_task(gateway.run())
    yield
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


async def _is_ready(control: Control) -> bool:
    return bool((await control.server())["ready"])


async def test_path_query_and_body_arrive_as_they_were_sent(shop: Control) -> None:
    answer = await shop.client.post("/shop/web/request/a%2Fb/%C3%A9?x=1&y=a%20b", content=b"\x00\xffbody")
    seen = answer.json()
    assert (seen["method"], seen["raw_path"], seen["query"]) == (
        "POST",
        "/request/a%2Fb/%C3%A9",
        "x=1&y=a%20b",
    )
    assert seen["body"] == "\x00\xffbody"


async def test_a_server_without_a_path_is_its_root(shop: Control) -> None:
    assert (await shop.get("/shop/web")).status_code == 200
    assert (await shop.get("/shop/web/")).text.startswith("shop-web-")


async def test_forwarding_headers_are_added_and_hop_by_hop_headers_end_here(shop: Control) -> None:
    sent = {
        "X-Custom": "Value",
        "X-Forwarded-For": "192.0.2.7",
        "Connection": "keep-alive, X-Secret-Hop, Host",
        "X-Secret-Hop": "1",
        "TE": "trailers",
        "Proxy-Authorization": "x",
        "User-Agent": "tester",
    }
    seen = dict((await shop.get("/shop/web/request", headers=sent)).json()["headers"])
    assert seen["x-custom"] == "Value"
    assert seen["x-forwarded-for"] == "192.0.2.7, 127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-prefix"] == "/shop/web"
    assert seen["host"] == httpx.URL(shop.url).netloc.decode()
    assert seen["user-agent"] == "tester"
    assert not {"x-secret-hop", "te", "proxy-authorization"} & seen.keys()


async def test_nothing_is_added_to_what_the_caller_sent(shop: Control) -> None:
    host, port = "127.0.0.1", httpx.URL(shop.url).port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /shop/web/request HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    assert "accept" not in answer.split("\r\n\r\n")[1]
    assert "user-agent" not in answer.split("\r\n\r\n")[1]


async def test_response_headers_are_untouched(shop: Control) -> None:
    answer = await shop.get("/shop/web/request")
    assert answer.headers["x-custom"] == "One"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert len(answer.headers.get_list("date")) == 1
    assert answer.headers.get_list("server") == ["uvicorn"]


async def test_compressed_answers_pass_as_they_are(shop: Control) -> None:
    async with shop.client.stream("GET", "/shop/web/gzip") as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join([part async for part in answer.aiter_raw()]) == b"\x1f\x8bnot really gzip"


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 404, 500, 503])
async def test_statuses_pass_and_redirects_are_not_followed(shop: Control, status: int) -> None:
    answer = await shop.get(f"/shop/web/status/{status}")
    assert answer.status_code == status
    assert answer.headers["x-status"] == "yes"
    assert answer.text == ("" if status in (204, 304) else "body")


async def test_head_has_the_length_and_no_body(shop: Control) -> None:
    whole = await shop.get("/shop/web/")
    for _ in range(3):  # one kept-alive connection: a stray body would garble the next answer
        head = await shop.client.head("/shop/web/")
        assert (head.status_code, head.text) == (200, "")
        assert head.headers["content-length"] == str(len(whole.content))


async def test_connections_are_kept_alive_on_both_sides(shop: Control, agent: FakeAgent) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    for _ in range(3):
        writer.write(b"GET /shop/web/ HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    writer.close()
    replica = agent.servers[agent.ready[0].id]
    assert replica.connections == 1


async def test_a_stream_arrives_piece_by_piece(shop: Control, agent: FakeAgent) -> None:
    replica = agent.servers[agent.ready[0].id]
    async with asyncio.timeout(30), shop.client.stream("GET", "/shop/web/stream") as answer:
        pieces = answer.aiter_raw()
        for number in range(5):
            # The next piece is only sent once this one has arrived: buffering anywhere would hang here.
            replica.steps.put_nowait(b"data: %d\n\n" % number)
            assert await anext(pieces) == b"data: %d\n\n" % number
        replica.steps.put_nowait(None)
        assert [piece async for piece in pieces] == []


async def test_a_chunked_upload_passes_piece_by_piece(shop: Control) -> None:
    async def chunks():
        for number in range(100):
            yield b"%d," % number * 1000

    answer = await shop.client.post("/shop/web/upload", content=chunks())
    assert answer.json()["bytes"] == sum(len(b"%d," % number) * 1000 for number in range(100))


async def test_expect_continue_is_answered_before_the_body_is_sent(shop: Control) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    writer.write(
        b"POST /shop/web/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
    )
    async with asyncio.timeout(30):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_an_answer_before_the_end_of_the_upload_arrives_and_spoils_nothing(shop: Control) -> None:
    for _ in range(3):
        async with asyncio.timeout(30):
            answer = await shop.client.post("/shop/web/refuse", content=b"x" * (4 << 20))
        assert (answer.status_code, answer.text) == (413, "too large")
        assert (await shop.get("/shop/web/")).status_code == 200


async def test_a_broken_answer_breaks_the_callers_connection(shop: Control) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await shop.get("/shop/web/breaks")


async def test_a_caller_who_hangs_up_ends_the_request_to_the_replica(shop: Control, agent: FakeAgent) -> None:
    replica = agent.servers[agent.ready[0].id]
    request = asyncio.create_task(shop.get("/shop/web/wait"))
    await eventually(lambda: replica.waiting == 1, "the request at the replica")
    request.cancel()
    await eventually(lambda: replica.disconnects == 1, "the replica noticed")
    await eventually(lambda: _in_flight(shop, 0), "nothing in flight")


async def _in_flight(control: Control, count: int) -> bool:
    return bool((await control.server())["in_flight"] == count)


async def test_an_http_1_0_caller_gets_a_plain_answer_or_a_clear_error(
    shop: Control, agent: FakeAgent
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    writer.write(b"GET /shop/web/ HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"chunked" not in answer
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    agent.servers[agent.ready[0].id].steps.put_nowait(None)
    writer.write(b"GET /shop/web/stream HTTP/1.0\r\n\r\n")
    assert b"Use HTTP/1.1" in await reader.read()
    writer.close()


@pytest.mark.parametrize("path", ["/", "/shop", "/shop/", "//web/", "/none/web/", "/shop/none/"])
async def test_unknown_places_are_404_with_a_remedy(shop: Control, path: str) -> None:
    answer = await shop.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
    assert answer.json()["remedy"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /shop/web/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"GET /shop/web/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /shop/web/ HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
        b"GET /shop/web/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_malformed_requests_are_refused_and_harm_nobody(shop: Control, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    writer.write(head)
    async with asyncio.timeout(30):
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()
    assert (await shop.get("/shop/web/")).status_code == 200


async def test_header_values_in_other_encodings_are_refused_clearly(shop: Control) -> None:
    answer = await shop.get("/shop/web/", headers=[(b"x-name", b"\xe9")])
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize(
    "path", ["/.glowplug/activate", "/%2eglowplug/ready", "//.glowplug/ready", "/x/../.glowplug/"]
)
async def test_what_is_the_agents_only_is_closed_to_callers(
    shop: Control, agent: FakeAgent, path: str
) -> None:
    replica = agent.servers[agent.ready[0].id]
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(shop.url).port)
    writer.write(f"POST /shop/web{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    assert replica.requests == 0
    seen = (await shop.get("/shop/web/request", headers={"x-glowplug-probe": "1"})).json()["headers"]
    assert "x-glowplug-probe" not in dict(seen)


async def test_a_capture_replica_never_sees_a_caller(shop: Control, agent: FakeAgent) -> None:
    capture = await agent.add_capture_replica("shop", "web")
    answers = {(await shop.get("/shop/web/")).text for _ in range(10)}
    assert answers == {agent.ready[0].id}
    assert agent.servers[capture.id].requests == 0


async def test_a_caller_who_never_reads_ends_with_the_request_timeout(
    control: Control, agent: FakeAgent
) -> None:
    spec = server_spec(request_timeout_s=2.0, scaling={"min_replicas": 1})
    await control.deploy(app_spec(spec))
    await eventually(lambda: agent.ready, "a replica")
    replica = agent.servers[agent.ready[0].id]
    with socket.create_connection(("127.0.0.1", httpx.URL(control.url).port or 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET /shop/web/stream HTTP/1.1\r\nhost: x\r\n\r\n")
        for _ in range(64):
            replica.steps.put_nowait(b"x" * (1 << 20))
        await eventually(lambda: _in_flight(control, 1), "the request in flight")
        await eventually(lambda: _in_flight(control, 0), "the request given up")
