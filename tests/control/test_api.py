"""The control API: who may use it, its errors, what it passes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from glowplug.control.access import Gate, is_open, load_or_create_token
from glowplug.pool.planner.live import requests_now
from glowplug.types.errors import Conflict, GlowplugError, NotFound, SystemUnfit, Unauthorized
from glowplug.types.paths import StateDir
from glowplug.types.replica import Heat, HeatView, ReplicaState


def scope(client: str = "127.0.0.1", **headers: str) -> dict[str, object]:
    named = {"host": "localhost:8080", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return {"client": (client, 5000), "server": ("127.0.0.1", 8080), "headers": raw}


def gate(*, is_root: bool = True) -> Gate:
    return Gate("secret-token", lambda _peer, _own: is_root)


@pytest.mark.parametrize(
    "allowed",
    [
        scope(),
        scope("::1", host="[::1]:8080"),
        scope("::ffff:127.0.0.1", host="127.0.0.1"),
        scope(origin="http://localhost:8080"),
        scope("192.0.2.1", authorization="Bearer secret-token"),
        scope("192.0.2.1", authorization="bearer secret-token"),
        scope(x_forwarded_for="192.0.2.1", authorization="Bearer secret-token"),
    ],
)
def test_this_machine_and_holders_of_the_token_may_enter(allowed: dict[str, object]) -> None:
    gate().check(allowed)


@pytest.mark.parametrize(
    "refused",
    [
        scope("192.0.2.1"),
        scope("192.0.2.1", authorization="Bearer wrong"),
        scope("192.0.2.1", authorization="secret-token"),
        scope("192.0.2.1", authorization="Basic secret-token"),
        scope(authorization="Bearer wrong"),
        scope(x_forwarded_for="192.0.2.1"),
        scope(forwarded="for=192.0.2.1"),
        scope(host="evil.example"),
        scope(origin="http://evil.example"),
        scope(origin="null"),
        {"client": None, "headers": []},
    ],
)
def test_everybody_else_is_refused(refused: dict[str, object]) -> None:
    with pytest.raises(Unauthorized):
        gate().check(refused)


def test_another_user_of_this_machine_needs_the_token() -> None:
    with pytest.raises(Unauthorized, match="needs a token"):
        gate(is_root=False).check(scope())
    gate(is_root=False).check(scope(authorization="Bearer secret-token"))


@pytest.mark.parametrize(("kind", "method", "path", "needs_none"), [
    ("http", "POST", "/api/v1/nodes/join", True), ("http", "POST", "/api/v1/nodes/renew", True),
    ("http", "POST", "/api/v1/engine/join", True), ("http", "GET", "/api/v1/engine/join", False),
    ("http", "GET", "/api/v1/nodes/join", False), ("http", "POST", "/api/v1/nodes/join/", False),
    ("http", "POST", "/api/v1/nodes/beta/drain", False), ("websocket", "GET", "/api/v1/nodes/join", False),
    ("http", "POST", "/api/v1/join-tokens", False), ("http", "DELETE", "/api/v1/nodes/renew", False),
])  # fmt: skip
def test_only_joining_and_renewing_need_no_token(kind: str, method: str, path: str, needs_none: bool) -> None:
    method_of = {"method": method} if kind == "http" else {}
    assert is_open({"type": kind, "path": path, **method_of}) == needs_none


def test_the_token_is_made_once_and_private(state: StateDir) -> None:
    token = load_or_create_token(state.token)
    assert len(token) >= 32
    assert load_or_create_token(state.token) == token
    assert state.token.stat().st_mode & 0o777 == 0o600
    state.token.write_text("\n")
    with pytest.raises(SystemUnfit):
        load_or_create_token(state.token)


async def test_api_and_metrics_are_guarded_and_the_router_is_not(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    foreign = {"x-forwarded-for": "192.0.2.1"}
    token = {"authorization": f"Bearer {control.state.token.read_text().strip()}"}
    for path in ("/api/v1/status", "/metrics", "/api/v1/nothing"):
        answer = await control.get(path, headers=foreign)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert (await control.get("/api/v1/status", headers=foreign | token)).status_code == 200
    assert (await control.get("/healthz", headers=foreign)).status_code == 200
    assert (await control.get("/shop/web/", headers=foreign)).status_code == 200
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws{control.url[4:]}/api/v1/replicas/x/exec", additional_headers=foreign, proxy=None)
    assert refused.value.response.status_code == 401


async def test_validation_errors_are_typed_and_name_the_fields(control: Control) -> None:
    spec = app_spec(server_spec(port=99999, scaling={"min_replicas": 5, "max_replicas": 1}))
    answer = await control.client.post("/api/v1/deployments", json={"app": spec})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")
    paths = {field["path"] for field in answer.json()["details"]["fields"]}
    assert {"app.servers.0.port", "app.servers.0.scaling"} <= paths
    assert answer.json()["remedy"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("DELETE", "/api/v1/status", 405, "invalid_input"),
        ("GET", "/api/v1/replicas/none", 404, "not_found"),
        ("GET", "/api/v1/replicas/..%2F..%2Fv1%2Fnode", 404, "not_found"),
        ("GET", "/api/v1/replicas/none/logs", 404, "not_found"),
        ("POST", "/api/v1/apps/none/stop", 404, "not_found"),
        ("POST", "/api/v1/apps/none/rollback", 404, "not_found"),
        ("GET", "/api/v1/coldstarts?limit=x", 400, "invalid_input"),
        ("DELETE", "/api/v1/images/none", 404, "not_found"),
        ("DELETE", "/api/v1/images/known", 204, None),
    ],
)
async def test_errors_are_typed_json(
    control: Control, method: str, path: str, status: int, code: str | None
) -> None:
    answer = await control.client.request(method, path)
    assert answer.status_code == status
    assert (answer.json()["code"] if code else None) == code


async def test_a_body_too_large_for_the_api_is_refused(control: Control) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield b"x" * (1 << 20)

    for content in (b"x" * (32 << 20), chunks()):
        answer = await control.client.post("/api/v1/deployments", content=content)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("name", ["api", "metrics", "healthz"])
async def test_reserved_names_cannot_be_apps(control: Control, name: str) -> None:
    answer = await control.client.post("/api/v1/deployments", json={"app": app_spec(name=name)})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


async def test_an_unreachable_agent_is_503_with_a_remedy(control: Control, agent: FakeAgent) -> None:
    await agent.close()
    answer = await control.get("/api/v1/replicas")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    status = (await control.get("/api/v1/status")).json()
    assert [node["is_reachable"] for node in status["nodes"]] == [False]


async def test_status_shows_what_runs(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    status = (await control.get("/api/v1/status")).json()
    assert status["nodes"][0]["name"] == "testnode"
    (app,) = status["apps"]
    assert (app["name"], app["deployment_id"], app["version"]) == ("shop", "shop-v1", 1)
    assert (app["servers"][0]["ready"], app["servers"][0]["desired"]) == (1, 1)
    assert [view["id"] for view in (await control.get("/api/v1/replicas")).json()] == [agent.ready[0].id]


async def test_status_tells_how_hot_a_server_is_where_that_is_asked_for(
    control: Control, agent: FakeAgent
) -> None:
    async def heat() -> Any:
        (app,) = (await control.get("/api/v1/status", params={"heat": "true"})).json()["apps"]
        return app["servers"][0]["heat"]

    await control.deploy(app_spec(server_spec(scaling={"scaledown_window_s": 0.1, "parked_window_s": 30.0})))
    agent.next_start = HeatView(heat=Heat.REGION)
    assert await heat() == {"heat": "region", "snapshot_id": "of-web", "reason": None}
    assert (await control.server())["heat"] is None, "nobody asked"
    request = asyncio.create_task(control.get("/shop/web/wait"))
    await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id].waiting, "the request")
    assert (await heat())["heat"] == "running"
    agent.servers[agent.ready[0].id].release.set()
    await request
    await eventually(lambda: agent.of_state(ReplicaState.PARKED), "it is parked")

    async def is_parked() -> bool:
        return bool((await heat())["heat"] == "parked")

    await eventually(is_parked, "the status has it")


async def test_a_server_whose_node_does_not_answer_has_no_heat(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await agent.close()
    (app,) = (await control.get("/api/v1/status", params={"heat": "true"})).json()["apps"]
    assert app["servers"][0]["heat"] is None


async def test_the_openapi_document_names_every_call(control: Control) -> None:
    paths = (await control.get("/openapi.json")).json()["paths"]
    assert {
        "/api/v1/status", "/api/v1/deployments", "/api/v1/apps/{name}/rollback", "/api/v1/apps/{name}/stop",
        "/api/v1/replicas", "/api/v1/replicas/{replica_id}/stop", "/api/v1/replicas/{replica_id}/logs",
        "/api/v1/coldstarts", "/api/v1/images", "/api/v1/snapshots", "/api/v1/nodes",
    } <= paths.keys()  # fmt: skip
    assert (await control.get("/docs")).status_code == 200


async def test_logs_pass_through(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    replica_id = agent.ready[0].id
    answer = await control.get(f"/api/v1/replicas/{replica_id}/logs", params={"tail": 5})
    assert answer.text == f"log of {replica_id} tail=5 follow=False\n"
    assert answer.headers["content-type"].startswith("text/plain")


async def test_exec_passes_through_frame_by_frame(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    url = f"ws{control.url[4:]}/api/v1/replicas/{agent.ready[0].id}/exec?command=ls&command=-l&tty=0"
    async with connect(url, proxy=None) as socket:
        assert await socket.recv() == b"\x01ls -l"
        await socket.send(b"typed")
        assert await socket.recv() == b"\x02typed"
        assert json.loads(await socket.recv()) == {"type": "exit", "code": 7}


async def test_exec_without_an_agent_is_a_clear_error(control: Control, agent: FakeAgent) -> None:
    await agent.close()
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws{control.url[4:]}/api/v1/replicas/x/exec?command=ls", proxy=None)
    assert refused.value.response.status_code == 503


async def test_a_capture_can_be_asked_for(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(secrets=["k"])), {"k": "v"})
    answer = await control.client.post("/api/v1/snapshots", json={"app": "shop", "server": "web"})
    assert (answer.status_code, answer.json()["status"]) == (202, "capturing")
    assert (agent.orders[0].deployment_id, agent.orders[0].secrets) == ("shop-v1", {"k": "v"})


async def test_an_image_can_be_built(control: Control) -> None:
    image = {"kind": "directory", "path": "/"}
    answer = await control.client.post("/api/v1/images", json={"image": image})
    assert json.loads(answer.text.splitlines()[-1])["image"]["kind"] == "directory"


async def test_metrics_count_requests_by_class_and_replicas_by_state(control: Control) -> None:
    await control.deploy(app_spec())
    for path in ("", "status/404", "status/500"):
        await control.get(f"/shop/web/{path}")
    text = (await control.get("/metrics")).text
    for line in (
        'glowplug_requests_total{app="shop",server="web",status_class="2xx"} 1.0',
        'glowplug_requests_total{app="shop",server="web",status_class="4xx"} 1.0',
        'glowplug_requests_total{app="shop",server="web",status_class="5xx"} 1.0',
        'glowplug_requests_held_total{app="shop",server="web"} 1.0',
        'glowplug_replicas{app="shop",server="web",state="ready"} 1.0',
        "glowplug_router_overhead_seconds_count 2.0",
        'glowplug_cold_starts_total{app="shop",outcome="answered",path="cpu_snapshot",server="web"} 1.0',
    ):
        assert line in text


async def test_the_planner_reads_its_demand_from_the_metrics(control: Control, agent: FakeAgent) -> None:
    async def demand() -> dict[str, tuple[float, float, float]]:
        counts = requests_now((await control.get("/metrics")).text)
        return {name: (count.in_flight, count.waiting, count.ended) for name, count in counts.items()}

    assert await demand() == {}
    await control.deploy(app_spec())
    agent.gate.clear()
    held = [asyncio.create_task(control.get("/shop/web/")) for _ in range(3)]
    await control.held(3)
    assert await demand() == {"shop": (0.0, 3.0, 0.0), "shop/web": (0.0, 3.0, 0.0)}
    agent.gate.set()
    await asyncio.gather(*held)
    assert await demand() == {"shop": (0.0, 0.0, 3.0), "shop/web": (0.0, 0.0, 3.0)}


async def test_cold_starts_are_filtered(control: Control) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    await eventually(control.records, "the record")
    for query, count in (("app=shop", 1), ("app=other", 0), ("since_s=60", 1), ("since_s=0", 0)):
        assert len((await control.get(f"/api/v1/coldstarts?{query}")).json()) == count


async def test_following_a_log_ends_with_the_caller(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    path = f"/api/v1/replicas/{agent.ready[0].id}/logs?follow=true"
    async with asyncio.timeout(30), control.client.stream("GET", path) as answer:
        assert "follow=True" in await anext(answer.aiter_text())


@pytest.mark.parametrize("kind", [Conflict, NotFound, Unauthorized])
async def test_the_agents_errors_keep_their_words(
    control: Control, agent: FakeAgent, kind: type[GlowplugError]
) -> None:
    await control.deploy(app_spec(server_spec(request_timeout_s=20.0)))
    agent.refusals = [kind("Words of the agent.", remedy="Do this.")] * 2
    answer = await control.get("/shop/web/")
    assert answer.status_code == 502
    assert (answer.json()["message"], answer.json()["remedy"]) == ("Words of the agent.", "Do this.")
    assert answer.json()["details"]["cause"] == kind.code
