"""Deploying, switching versions, rolling back, two at once."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.control.store import Store
from glowplug.types.errors import Unavailable
from glowplug.types.replica import ErrorInfo, ReplicaState

BROKEN = ErrorInfo(code="replica_failed", message="The command exited with code 3.", remedy="See its log.")


async def test_a_deployment_tells_its_progress_and_ends_with_the_version(
    control: Control, agent: FakeAgent
) -> None:
    spec = app_spec(server_spec("web"), server_spec("api"))
    answer = await control.client.post("/api/v1/deployments", json={"app": spec})
    events = [json.loads(line) for line in answer.text.splitlines()]
    fractions = [event["fraction"] for event in events if event["fraction"] is not None]
    assert fractions == sorted(fractions)
    deployment = events[-1]["deployment"]
    assert (deployment["id"], deployment["version"], deployment["active"]) == ("shop-v1", 1, True)
    assert deployment["urls"] == {"web": "/shop/web", "api": "/shop/api"}
    assert agent.builds == 1  # both servers have one image


async def test_versions_are_listed_newest_first_and_one_is_active(control: Control) -> None:
    for _ in range(3):
        await control.deploy(app_spec())
    await control.deploy(app_spec(name="other"))
    listed = (await control.get("/api/v1/deployments", params={"app": "shop"})).json()
    assert [(d["version"], d["active"]) for d in listed] == [(3, True), (2, False), (1, False)]


async def test_two_deployments_of_one_app_at_once_second_is_409_first_unharmed(
    control: Control, agent: FakeAgent
) -> None:
    agent.build_gate.clear()
    first = asyncio.create_task(control.deploy(app_spec()))
    await eventually(lambda: agent.builds == 1, "the first build")
    second = await control.client.post("/api/v1/deployments", json={"app": app_spec()})
    assert (second.status_code, second.json()["code"]) == (409, "conflict")
    assert second.json()["remedy"]
    agent.build_gate.set()
    assert (await first)["deployment"]["version"] == 1
    assert (await control.get("/shop/web/")).status_code == 200


async def test_a_deployment_whose_caller_hangs_up_leaves_the_app_as_it_was(
    control: Control, agent: FakeAgent
) -> None:
    agent.build_gate.clear()
    first = asyncio.create_task(control.deploy(app_spec()))
    await eventually(lambda: agent.builds == 1, "the first build")
    first.cancel()

    async def deploy_when_free() -> int:
        while True:
            answer = await control.client.post("/api/v1/deployments", json={"app": app_spec()})
            if answer.status_code != 409:
                return answer.status_code
            assert (await control.get("/api/v1/deployments")).json() == []

    second = asyncio.create_task(deploy_when_free())
    await eventually(lambda: agent.builds == 2, "the lock is free again")
    agent.build_gate.set()
    assert await second == 200
    listed = (await control.get("/api/v1/deployments")).json()
    assert [deployment["version"] for deployment in listed] == [1]


async def test_a_caller_who_hangs_up_while_the_version_is_stored_leaves_no_store_ahead_of_the_fleet(
    control: Control, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.deploy(app_spec(server_spec(env={"A": "old"})))
    stored, may_go_on = asyncio.Event(), asyncio.Event()
    add = Store.add_deployment

    async def add_slowly(self: Store, *arguments: Any) -> Any:
        made = await add(self, *arguments)
        stored.set()
        await may_go_on.wait()
        return made

    monkeypatch.setattr(Store, "add_deployment", add_slowly)
    caller = asyncio.create_task(control.deploy(app_spec(server_spec(env={"A": "new"}))))
    await stored.wait()
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    busy = await control.client.post("/api/v1/deployments", json={"app": app_spec()})
    assert busy.status_code == 409, "it is not over yet"
    may_go_on.set()

    async def is_served() -> bool:
        await control.get("/shop/web/")
        return agent.orders[-1].server.env == {"A": "new"}

    await eventually(is_served, "what the store says is active serves")


async def test_a_failed_build_deploys_nothing_and_says_why(control: Control, agent: FakeAgent) -> None:
    agent.build_error = ErrorInfo(code="not_found", message="No folder /models.", remedy="Make it.")
    last = await control.deploy(app_spec())
    assert (last["error"]["message"], last["error"]["remedy"]) == ("No folder /models.", "Make it.")
    assert (await control.get("/api/v1/deployments")).json() == []


async def test_secrets_reach_the_replica_and_nothing_else(control: Control, agent: FakeAgent) -> None:
    spec = app_spec(server_spec(secrets=["token"]))
    missing = await control.client.post("/api/v1/deployments", json={"app": spec})
    assert (missing.status_code, missing.json()["details"]["missing"]) == (400, ["token"])
    await control.deploy(spec, {"token": "s3cret"})
    await control.get("/shop/web/")
    assert agent.orders[0].secrets == {"token": "s3cret"}
    for path in ("/api/v1/deployments", "/api/v1/status", "/api/v1/replicas", "/metrics"):
        assert "s3cret" not in (await control.get(path)).text


async def test_a_new_version_without_old_replicas_gets_traffic_at_once(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    await control.deploy(app_spec(server_spec(env={"A": "1"})))
    await control.get("/shop/web/")
    assert agent.ready[0].deployment_id == "shop-v2"


async def test_the_old_version_serves_until_the_new_one_is_ready_and_no_request_is_lost(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    old = (await control.get("/shop/web/")).text
    agent.gate.clear()
    await control.deploy(app_spec(server_spec(env={"A": "1"})))
    await eventually(lambda: len(agent.orders) == 2, "the new version's start")
    in_flight = asyncio.create_task(control.get("/shop/web/wait"))
    await eventually(lambda: agent.servers[old].waiting, "a request at the old version")
    assert (await control.get("/shop/web/")).text == old
    agent.gate.set()
    new = agent.orders[1].replica_id

    async def switched() -> bool:
        return (await control.get("/shop/web/")).text == new

    await eventually(switched, "the new version serves")
    assert agent.stops == []  # the old one is still answering somebody
    agent.servers[old].release.set()
    assert (await in_flight).text == old
    await eventually(lambda: [stop[0] for stop in agent.stops] == [old], "the old one's stop")


async def test_no_request_is_lost_while_versions_switch_under_load(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def client() -> None:
        while not is_over.is_set():
            try:
                statuses.append((await control.client.post("/shop/web/request")).status_code)
            except httpx.HTTPError:
                statuses.append(0)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for number in range(3):
        await control.deploy(app_spec(server_spec(env={"A": str(number)})))
        wanted = f"shop-v{number + 2}"
        await eventually(lambda w=wanted: [v.deployment_id for v in agent.ready] == [w], f"only {wanted}")
    is_over.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}


async def test_a_failing_new_version_leaves_the_old_serving_and_shows_its_error(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    old = (await control.get("/shop/web/")).text
    agent.failures = [BROKEN] * 100
    await control.deploy(app_spec(server_spec(env={"A": "1"})))
    await eventually(lambda: len(agent.orders) >= 3, "two failed starts")
    assert (await control.get("/shop/web/")).text == old

    async def shown() -> bool:
        newest = (await control.get("/api/v1/deployments")).json()[0]
        return bool(newest["active"] and (newest["error"] or {}).get("message") == BROKEN.message)

    await eventually(shown, "the error of the new version")
    starts, counted_at = len(agent.orders), time.monotonic()
    await asyncio.sleep(0.3)
    # It backs off: by now it waits longer than this before each start.
    assert len(agent.orders) - starts <= 1 + (time.monotonic() - counted_at) / 0.3


async def test_rollback_goes_back_to_the_version_before(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(secrets=["k"])), {"k": "old"})
    await control.deploy(app_spec())
    answer = await control.client.post("/api/v1/apps/shop/rollback")
    assert (answer.json()["version"], answer.json()["active"]) == (1, True)
    await control.get("/shop/web/")
    assert (agent.orders[0].deployment_id, agent.orders[0].secrets) == ("shop-v1", {"k": "old"})
    again = await control.client.post("/api/v1/apps/shop/rollback")
    assert (again.status_code, again.json()["code"]) == (404, "not_found")
    forward = await control.client.post("/api/v1/apps/shop/rollback", params={"version": 2})
    assert forward.json()["version"] == 2


async def test_the_old_version_makes_room_when_there_is_none_for_both(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    old = (await control.get("/shop/web/")).text
    agent.refusals = [Unavailable("No room.")]
    await control.deploy(app_spec(server_spec(env={"A": "1"})))
    await eventually(lambda: [stop[0] for stop in agent.stops] == [old], "the old one's stop")
    assert (await control.get("/shop/web/")).text != old


async def test_removing_an_app_stops_it_and_forgets_its_paths(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await control.get("/shop/web/")
    removed = await control.client.post("/api/v1/apps/shop/stop", params={"remove": True, "wait": True})
    assert removed.json()["is_removed"]
    assert agent.of_state(ReplicaState.READY) == []
    assert (await control.get("/shop/web/")).status_code == 404
    assert (await control.deploy(app_spec()))["deployment"]["version"] == 2
    assert (await control.get("/shop/web/")).status_code == 200


async def test_a_server_left_out_of_a_new_version_is_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec("web"), server_spec("extra")))
    extra = (await control.get("/shop/extra/")).text
    await control.deploy(app_spec(server_spec("web")))
    await eventually(lambda: [stop[0] for stop in agent.stops] == [extra], "the stop")
    assert (await control.get("/shop/extra/")).status_code == 404
