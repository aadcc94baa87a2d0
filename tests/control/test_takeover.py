"""Two control planes on one PostgreSQL, as processes: one dies, is stopped, or loses its database."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

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
from tests.control.control_process import Process, control_process
from tests.control.fake_agent import FakeAgent
from tests.postgres import PostgresServer

from glowplug.types.paths import StateDir

TAKEOVER_LIMIT_S = 15.0
"""5 s are promised; this machine may be busy with much else."""


@pytest.fixture
def shared(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """All control planes of the test use this database."""
    monkeypatch.setenv("GLOWPLUG_DATABASE_URL", postgres.url)
    return postgres


@pytest.fixture
def other_state(state: StateDir) -> Iterator[StateDir]:
    """Another machine's state directory, from which the same agent can be reached."""
    with state_directory() as other:
        other.agent_socket.symlink_to(state.agent_socket)
        yield other


@asynccontextmanager
async def a_pair(
    state: StateDir, other: StateDir
) -> AsyncIterator[tuple[Process, Process, httpx.AsyncClient]]:
    """A leader, another that stands by, and a client."""
    async with (
        httpx.AsyncClient(timeout=120.0, trust_env=False) as client,
        control_process(state, "--port", "0") as leader,
        control_process(other, "--port", "0") as standby,
    ):
        yield leader, standby, client


async def health(client: httpx.AsyncClient, process: Process) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"{process.url}/healthz")).json()
    return answer


async def deploy(client: httpx.AsyncClient, process: Process, *servers: dict[str, Any]) -> httpx.Response:
    return await client.post(f"{process.url}/api/v1/deployments", json={"app": app_spec(*servers)})


async def leads(client: httpx.AsyncClient, process: Process) -> None:
    """Wait until it does."""

    async def is_so() -> bool:
        return bool((await health(client, process))["role"] == "leader")

    await eventually(is_so, "a leader")


async def ask_all_the_time(client: httpx.AsyncClient, url: str, answers: list[int]) -> None:
    """Load; statuses go to ``answers``, 0 for a connection that broke."""
    while True:
        try:
            answers.append((await client.get(url)).status_code)
        except httpx.HTTPError:
            answers.append(0)
        await asyncio.sleep(0.005)


async def test_a_killed_leader_is_succeeded_with_its_deployments_and_warm_replicas(
    shared: PostgresServer, state: StateDir, other_state: StateDir, agent: FakeAgent
) -> None:
    async with a_pair(state, other_state) as (leader, standby, client):
        await deploy(client, leader)
        warm = (await client.get(f"{leader.url}/shop/web/")).text
        before = await health(client, standby)
        assert (before["role"], before["leader"]) == ("standby", leader.url)
        assert (await client.get(f"{standby.url}/healthz?leader")).status_code == 503

        refused = await deploy(client, standby)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_leader")
        assert refused.json()["details"]["leader"] == leader.url
        routed = await client.get(f"{standby.url}/shop/web/")
        assert (routed.status_code, routed.headers["retry-after"]) == (503, "1")

        answers: list[int] = []
        load = asyncio.create_task(ask_all_the_time(client, f"{leader.url}/shop/web/", answers))
        await eventually(lambda: len(answers) > 20, "load")
        leader.process.kill()
        killed_at_s = time.monotonic()

        async def answered() -> bool:
            return (await client.get(f"{standby.url}/shop/web/")).text == warm

        await eventually(answered, "the successor answers")
        took_s = time.monotonic() - killed_at_s
        load.cancel()
        assert took_s < TAKEOVER_LIMIT_S
        assert set(answers) <= {0, 200}
        after = await health(client, standby)
        assert (after["role"], after["term"] > before["term"]) == ("leader", True)
        listed = (await client.get(f"{standby.url}/api/v1/deployments")).json()
        assert [(one["id"], one["active"]) for one in listed] == [("shop-v1", True)]
        metrics = (await client.get(f"{standby.url}/metrics")).text
        assert "glowplug_takeovers_total 1.0" in metrics
        assert "taking over from" in "".join(standby.stderr)
    assert (len(agent.orders), agent.stops) == (1, [])


@pytest.mark.nightly
async def test_an_orderly_end_hands_over_at_once(
    shared: PostgresServer, state: StateDir, other_state: StateDir, agent: FakeAgent
) -> None:
    async with a_pair(state, other_state) as (leader, standby, client):
        await deploy(client, leader)
        leader.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(leader.process.wait(), 60) == 0
        assert "the lease is given up" in "".join(leader.stderr)
        await leads(client, standby)


@pytest.mark.nightly
async def test_a_leader_killed_in_the_middle_of_a_placement_leaves_one_replica(
    shared: PostgresServer, state: StateDir, other_state: StateDir, agent: FakeAgent
) -> None:
    async with a_pair(state, other_state) as (leader, standby, client):
        await deploy(client, leader)
        agent.gate.clear()
        agent.answer_gate.clear()
        request = asyncio.create_task(client.get(f"{leader.url}/shop/web/"))
        await eventually(lambda: agent.orders, "the order")
        leader.process.kill()
        with pytest.raises(httpx.HTTPError):
            await request
        agent.answer_gate.set()
        await leads(client, standby)
        request = asyncio.create_task(client.get(f"{standby.url}/shop/web/"))
        await asyncio.sleep(1.0)
        agent.gate.set()
        assert (await request).text == agent.orders[0].replica_id
    assert len(agent.orders) == 1


@pytest.mark.nightly
async def test_a_leader_that_stood_still_acts_no_more_and_ends(
    shared: PostgresServer, state: StateDir, other_state: StateDir, agent: FakeAgent
) -> None:
    async with a_pair(state, other_state) as (leader, standby, client):
        await deploy(client, leader)
        leader.process.send_signal(signal.SIGSTOP)
        cold = asyncio.create_task(client.get(f"{leader.url}/shop/web/"))
        late = asyncio.create_task(deploy(client, leader))
        await leads(client, standby)
        warm = (await client.get(f"{standby.url}/shop/web/")).text
        leader.process.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(leader.process.wait(), 60) == 1  # its supervisor starts it again
        assert "deposed" in "".join(leader.stderr)
        # Held ones are told to come back, or get the warm replica's answer: it had been told of it.
        answers = await asyncio.gather(cold, late, return_exceptions=True)
        texts = [answer.text for answer in answers if isinstance(answer, httpx.Response)]
        assert all(text == warm or '"code":' in text.replace(" ", "") for text in texts)
        listed = (await client.get(f"{standby.url}/api/v1/deployments")).json()
        assert [one["version"] for one in listed] == [1]
    assert [order.replica_id for order in agent.orders] == [warm]


@pytest.mark.nightly
async def test_warm_replicas_answer_while_postgres_is_away_and_nothing_is_lost(
    shared: PostgresServer, state: StateDir, agent: FakeAgent
) -> None:
    timings = replace(QUICK, lease_s=1.0, lease_renew_s=0.2)
    async with running_control(state, timings) as control:
        await control.deploy(app_spec(server_spec(), server_spec("cold")))
        await control.get("/shop/web/")
        term = (await control.get("/healthz")).json()["term"]
        answers: list[int] = []
        load = asyncio.create_task(ask_all_the_time(control.client, f"{control.url}/shop/web/", answers))
        await asyncio.to_thread(shared.stop)
        await _role(control, "cut_off")
        refused = await control.client.post("/api/v1/deployments", json={"app": app_spec()})
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        held = asyncio.create_task(control.get("/shop/cold/"))
        await _held(control, "cold")
        asked = len(answers)
        await eventually(lambda: len(answers) > asked + 50, "load goes on")
        await asyncio.to_thread(shared.start)
        assert (await held).status_code == 200
        load.cancel()
        assert set(answers) == {200}
        assert len(agent.orders) == 2
        assert (await control.get("/healthz")).json()["term"] == term
        last = await control.deploy(app_spec())
        assert last["deployment"]["version"] == 2
        assert sorted(record.server for record in await control.records()) == ["cold", "web"]
        assert await control.metric("glowplug_cold_starts_lost_total") == 0


@pytest.mark.nightly
async def test_a_leader_goes_on_leading_after_postgres_was_away(
    shared: PostgresServer, state: StateDir, other_state: StateDir, agent: FakeAgent
) -> None:
    async with a_pair(state, other_state) as (leader, standby, client):
        before = await health(client, leader)
        await asyncio.to_thread(shared.stop)

        async def is_cut_off() -> bool:
            return bool((await health(client, leader))["role"] == "cut_off")

        await eventually(is_cut_off, "the lease has run out")
        await asyncio.to_thread(shared.start)
        await leads(client, leader)
        assert await health(client, leader) == before
        await asyncio.sleep(4.0)  # the other one has looked again, and had its grace
        assert await health(client, leader) == before
        assert (await health(client, standby))["role"] == "standby"
        assert "taking over" not in "".join(standby.stderr)


@pytest.mark.nightly
async def test_a_postgres_that_stands_still_keeps_nobody_from_being_answered(
    shared: PostgresServer, state: StateDir, agent: FakeAgent
) -> None:
    timings = replace(QUICK, lease_s=1.0, lease_renew_s=0.2)
    async with running_control(state, timings) as control:
        await control.deploy(app_spec())
        warm = (await control.get("/shop/web/")).text
        before = (await control.get("/healthz")).json()
        await asyncio.to_thread(shared.pause)
        try:
            await _role(control, "cut_off")
            asked = [asyncio.create_task(control.get("/api/v1/deployments")) for _ in range(20)]
            for _ in range(50):
                assert (await control.get("/shop/web/")).text == warm
            answers = await asyncio.gather(*asked)
            assert {answer.json()["code"] for answer in answers} == {"unavailable"}
        finally:
            await asyncio.to_thread(shared.resume)
        await _role(control, "leader")
        assert (await control.get("/healthz")).json() == before
        assert (await control.deploy(app_spec()))["deployment"]["version"] == 2


async def _role(control: Control, role: str) -> None:
    async def is_so() -> bool:
        return bool((await control.get("/healthz")).json()["role"] == role)

    await eventually(is_so, role)


async def _held(control: Control, server: str) -> None:
    async def is_so() -> bool:
        return bool((await control.server(server=server))["held"])

    await eventually(is_so, "a held request")
