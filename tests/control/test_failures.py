"""Replicas that die, and what their callers see of it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent
from tests.control.fake_replica import FakeReplica

from glowplug.types.replica import ReplicaState


async def _warm(control: Control, agent: FakeAgent, **fields: object) -> FakeReplica:
    await control.deploy(app_spec(server_spec(**fields)))
    assert (await control.get("/shop/web/")).status_code == 200
    return agent.servers[agent.ready[0].id]


async def _wait_at(control: Control, replica: FakeReplica, method: str, **options: object) -> asyncio.Task:
    request = asyncio.create_task(control.client.request(method, "/shop/web/wait", **options))
    await eventually(lambda: replica.waiting == 1, "the request at the replica")
    return request


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_an_idempotent_request_survives_its_replica(
    control: Control, agent: FakeAgent, method: str
) -> None:
    first = await _warm(control, agent)
    request = await _wait_at(control, first, method)
    await agent.kill_replica(first.name)
    second = await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id], "a new replica")
    second.release.set()
    answer = await request
    assert (answer.status_code, answer.text) == (200, second.name)


async def test_a_get_survives_its_replica_in_the_middle_of_a_short_answer(
    control: Control, agent: FakeAgent
) -> None:
    first = await _warm(control, agent)
    request = asyncio.create_task(control.get("/shop/web/halves"))
    await eventually(lambda: first.waiting == 1, "half an answer")
    await agent.kill_replica(first.name)
    second = await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id], "a new replica")
    second.release.set()
    answer = await request
    assert (answer.status_code, answer.text) == (200, "halfhalf")


async def test_a_post_that_may_have_had_effects_gets_one_clear_502(
    control: Control, agent: FakeAgent
) -> None:
    first = await _warm(control, agent)
    request = await _wait_at(control, first, "POST", content=b"pay")
    await agent.kill_replica(first.name)
    answer = await request
    assert answer.status_code == 502
    assert answer.json()["details"]["replica_id"] == first.name
    assert "Idempotency-Key" in answer.json()["remedy"]


async def test_a_post_with_an_idempotency_key_survives_with_its_body(
    control: Control, agent: FakeAgent
) -> None:
    first = await _warm(control, agent)
    request = asyncio.create_task(
        control.client.post("/shop/web/wait", content=b"x" * 200_000, headers={"Idempotency-Key": "k1"})
    )
    await eventually(lambda: first.waiting == 1, "the request at the replica")
    await agent.kill_replica(first.name)
    second = await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id], "a new replica")
    second.release.set()
    assert (await request).text == second.name


async def test_a_body_too_large_to_keep_is_not_repeated(control: Control, agent: FakeAgent) -> None:
    first = await _warm(control, agent)
    request = asyncio.create_task(control.client.put("/shop/web/slams", content=b"x" * (3 << 20)))
    assert (await request).status_code == 502
    assert first.requests == 2


async def test_any_method_goes_elsewhere_when_no_connection_can_be_made(
    control: Control, agent: FakeAgent
) -> None:
    # Never asked anything, so no connection is left that a request could be lost on.
    await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1})))
    dead = (await eventually(lambda: agent.ready, "a replica"))[0].id
    await agent.kill_replica(dead, tell=False)  # the agent has not noticed yet
    request = asyncio.create_task(control.client.post("/shop/web/request", content=b"pay"))
    await control.held(1)
    await agent.kill_replica(dead)
    answer = await request
    assert (answer.status_code, answer.json()["body"]) == (200, "pay")
    assert answer.json()["replica"] != dead


async def test_a_suspect_is_avoided_while_another_is_ready(control: Control, agent: FakeAgent) -> None:
    scaling = {"min_replicas": 2, "max_replicas": 2}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    await eventually(lambda: len(agent.ready) == 2, "two replicas")
    dead, alive = (view.id for view in agent.ready)
    await agent.kill_replica(dead, tell=False)
    answers = await asyncio.gather(*(control.client.post("/shop/web/request") for _ in range(20)))
    assert {answer.json()["replica"] for answer in answers} == {alive}


async def test_a_replica_whose_network_is_silent_is_left_when_the_agent_says_it_is_dead(
    control: Control, agent: FakeAgent
) -> None:
    """A killed sandbox takes its network stack along: nothing is reset, the watch has to tell."""
    first = await _warm(control, agent)
    request = await _wait_at(control, first, "GET")
    agent.change(first.name, state=ReplicaState.FAILED)
    second = await eventually(lambda: agent.ready and agent.servers[agent.ready[0].id], "a new replica")
    second.release.set()
    assert (await request).text == second.name


async def test_a_request_that_kills_every_replica_is_not_repeated_for_ever(
    control: Control, agent: FakeAgent
) -> None:
    first = await _warm(control, agent)
    answer = await control.get("/shop/web/slams")
    assert answer.status_code == 502
    assert first.requests <= 10


async def test_dead_replicas_are_replaced_to_keep_the_minimum(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(scaling={"min_replicas": 1})))
    first = await eventually(lambda: agent.ready, "a replica")
    await agent.kill_replica(first[0].id)
    second = await eventually(lambda: agent.ready, "its successor")
    assert second[0].id != first[0].id


async def test_requests_are_spread_by_what_is_in_flight(control: Control, agent: FakeAgent) -> None:
    scaling = {"min_replicas": 3, "max_replicas": 3}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    await eventually(lambda: len(agent.ready) == 3, "three replicas")
    await eventually(lambda: _ready(control, 3), "three targets")
    requests = [asyncio.create_task(control.get("/shop/web/wait")) for _ in range(9)]
    replicas = [agent.servers[view.id] for view in agent.ready]
    await eventually(lambda: [r.waiting for r in replicas] == [3, 3, 3], "three requests each")
    for replica in replicas:
        replica.release.set()
    await asyncio.gather(*requests)


async def _ready(control: Control, count: int) -> bool:
    return bool((await control.server())["ready"] == count)


async def test_twenty_clients_notice_nothing_of_killed_replicas(control: Control, agent: FakeAgent) -> None:
    await _warm(control, agent)
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def client() -> None:
        while not is_over.is_set():
            try:
                statuses.append((await control.get("/shop/web/")).status_code)
            except httpx.HTTPError:
                statuses.append(0)

    clients = [asyncio.create_task(client()) for _ in range(20)]
    for _ in range(3):
        victim = await eventually(lambda: agent.ready, "a replica")
        answered = len(statuses)
        await eventually(lambda before=answered: len(statuses) > before + 40, "answers")
        await agent.kill_replica(victim[0].id)
    await eventually(lambda: agent.ready, "a replica")
    is_over.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
