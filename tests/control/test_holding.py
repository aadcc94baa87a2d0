"""What happens to requests while there is no replica."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import httpx
import pytest
from tests.control.conftest import QUICK, Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.types.coldstart import Outcome
from glowplug.types.errors import StartInterrupted, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.replica import ErrorInfo, Stage

BROKEN = ErrorInfo(
    code="replica_failed",
    message="The command exited with code 3.",
    remedy="See its log.",
    details={"exit_code": 3},
)


async def test_nothing_is_started_before_the_first_request(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    await asyncio.sleep(0.2)  # ten passes of the reconciler
    assert agent.orders == []


async def test_a_request_wakes_a_replica_and_is_answered(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    answer = await control.get("/shop/web/")
    assert answer.text == agent.ready[0].id
    assert len(agent.orders) == 1
    assert agent.orders[0].image_id.startswith("img-")


async def test_a_thousand_requests_held_during_one_wake_up_are_all_answered(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask() -> int:
            async with client.get(f"{control.url}/shop/web/") as answer:
                await answer.read()
                return answer.status

        requests = [asyncio.create_task(ask()) for _ in range(1000)]
        await control.held(1000)
        agent.gate.set()
        assert await asyncio.gather(*requests) == [200] * 1000
    assert len(agent.orders) == 1
    assert await control.metric("glowplug_requests_held_total") == 1000


async def test_a_held_body_arrives_whole(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    bodies = [b"", b"small", b"x" * 300_000, b"y" * 5_000_000]
    requests = [asyncio.create_task(control.client.post("/shop/web/upload", content=b)) for b in bodies]
    await control.held(len(bodies))
    agent.gate.set()
    assert [(await request).json()["bytes"] for request in requests] == [len(body) for body in bodies]


async def test_requests_beyond_the_queue_get_429_and_the_others_are_answered(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server_spec(max_held_requests=2)))
    agent.gate.clear()
    held = [asyncio.create_task(control.get("/shop/web/")) for _ in range(2)]
    await control.held(2)
    refused = await control.get("/shop/web/")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["code"] == "overloaded"
    agent.gate.set()
    assert [(await request).status_code for request in held] == [200, 200]


async def test_the_deadline_is_504_and_names_the_stage(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(request_timeout_s=3.0)))
    agent.gate.clear()
    answer = await control.get("/shop/web/")
    assert answer.status_code == 504
    body = answer.json()
    assert body["code"] == "deadline_exceeded"
    assert body["details"]["stage"] == Stage.HOST_INIT.value
    assert body["details"]["replica_id"] == agent.orders[0].replica_id
    assert "host_init" in body["message"]
    (record,) = await eventually(control.records, "the record")
    assert (record.outcome, record.replica_id) == (Outcome.FAILED, agent.orders[0].replica_id)


async def test_without_capacity_the_504_says_so(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server_spec(request_timeout_s=2.0)))
    agent.refusals = [Unavailable("No room: 2 of 2 CPUs are taken.") for _ in range(100)]
    answer = await control.get("/shop/web/")
    assert (answer.status_code, answer.json()["details"]["stage"]) == (504, "allocate")
    assert "2 of 2 CPUs" in answer.json()["message"]


async def test_a_refused_start_is_tried_again_and_the_caller_never_knows(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    agent.refusals = [Unavailable("No room.")]
    assert (await control.get("/shop/web/")).status_code == 200
    (record,) = await eventually(control.records, "the record")
    assert record.total_s > 0.15  # the back-off is part of the cold start


async def test_one_failed_start_is_followed_by_another_and_the_caller_never_knows(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    agent.failures = [BROKEN]
    assert (await control.get("/shop/web/")).status_code == 200
    assert len(agent.orders) == 2
    outcomes = {record.outcome for record in await eventually(lambda: _records(control, 2), "two records")}
    assert outcomes == {Outcome.FAILED, Outcome.ANSWERED}


async def _records(control: Control, count: int) -> object:
    records = await control.records()
    return records if len(records) == count else None


async def test_starts_that_ended_with_their_agent_are_tried_until_one_gets_ready(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    died = ErrorInfo(code=StartInterrupted.code, message="It was still starting when the node agent died.")
    agent.failures = [died] * 5
    assert (await control.get("/shop/web/")).status_code == 200
    assert len(agent.orders) == 6
    (record,) = await eventually(control.records, "the record")
    assert (record.outcome, record.fallback_reason) == (Outcome.ANSWERED, died.message)


async def test_a_crash_loop_is_502_with_the_replicas_own_error(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    agent.failures = [BROKEN] * 2
    agent.gate.clear()
    held = [asyncio.create_task(control.get("/shop/web/")) for _ in range(5)]
    await control.held(5)
    agent.gate.set()
    answers = await asyncio.gather(*held)
    assert {answer.status_code for answer in answers} == {502}
    body = answers[0].json()
    assert (body["message"], body["remedy"]) == (BROKEN.message, BROKEN.remedy)
    assert body["details"]["replica_id"] == agent.orders[1].replica_id
    assert body["details"]["exit_code"] == 3
    assert len(agent.orders) == 2


async def test_during_the_back_off_requests_fail_at_once_and_afterwards_one_starts_again(
    state: StateDir, agent: FakeAgent
) -> None:
    async with running_control(state, replace(QUICK, backoff_first_s=1.0, backoff_max_s=3.0)) as control:
        await control.deploy(app_spec())
        agent.failures = [BROKEN] * 2
        assert (await control.get("/shop/web/")).status_code == 502
        at_once = await control.get("/shop/web/")
        assert at_once.status_code == 502
        assert int(at_once.headers["retry-after"]) >= 1
        assert len(agent.orders) == 2

        async def answered() -> bool:
            return (await control.get("/shop/web/")).status_code == 200

        await eventually(answered, "an answer after the back-off")
        assert len(agent.orders) == 3


async def test_a_caller_who_leaves_is_dropped_at_once_and_the_record_is_abandoned(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    request = asyncio.create_task(control.get("/shop/web/"))
    await control.held(1)
    request.cancel()
    await control.held(0)
    (record,) = await eventually(control.records, "the record")
    assert record.outcome is Outcome.ABANDONED


async def test_a_caller_who_leaves_while_uploading_is_dropped_too(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(control.url).port)
    writer.write(
        b"POST /shop/web/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\n" + b"x" * 400_000
    )
    await control.held(1)
    writer.transport.abort()
    await control.held(0)


async def test_another_callers_leaving_harms_nobody(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    leaver = asyncio.create_task(control.get("/shop/web/"))
    await control.held(1)
    stayer = asyncio.create_task(control.get("/shop/web/"))
    await control.held(2)
    leaver.cancel()
    await control.held(1)
    agent.gate.set()
    assert (await stayer).status_code == 200
    (record,) = await eventually(control.records, "the record")
    assert record.outcome is Outcome.ANSWERED


async def test_held_requests_of_a_removed_app_are_told(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    request = asyncio.create_task(control.get("/shop/web/"))
    await control.held(1)
    await control.client.post("/api/v1/apps/shop/stop", params={"remove": True})
    answer = await request
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_records_stages_add_up_to_what_the_caller_waited(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec())
    agent.gate.clear()
    request = asyncio.create_task(control.get("/shop/web/"))
    await control.held(1)
    await asyncio.sleep(1.0)
    agent.gate.set()
    assert (await request).status_code == 200
    (record,) = await eventually(control.records, "the record")
    assert record.outcome is Outcome.ANSWERED
    assert record.replica_id == agent.ready[0].id
    assert record.snapshot_id == "snap-1"
    assert record.bytes_by_tier == {"ssd": 5096, "zone": 500}
    assert record.chunks_by_tier == {"ssd": 3, "zone": 1}
    assert set(record.stages_s) == {Stage.ALLOCATE, Stage.HOST_INIT, Stage.FIRST_ANSWER}
    # The ways between the processes are no stage: half of the wait, at least, must be one.
    assert sum(record.stages_s.values()) == pytest.approx(record.total_s, abs=0.5)
    assert await control.metric("glowplug_cold_starts_total") == 1


async def test_a_second_replica_that_nobody_waited_for_is_no_answered_cold_start(
    control: Control, agent: FakeAgent
) -> None:
    scaling = {"max_replicas": 2, "target_concurrency": 1}
    await control.deploy(app_spec(server_spec(scaling=scaling)))
    agent.gate.clear()
    requests = [asyncio.create_task(control.get("/shop/web/")) for _ in range(4)]
    await eventually(lambda: len(agent.orders) == 2, "two starts")
    agent.gate.set()
    await asyncio.gather(*requests)
    records = await eventually(lambda: _records(control, 2), "two records")
    assert Outcome.ANSWERED in {record.outcome for record in records}
    assert all(record.total_s < 5 for record in records)
