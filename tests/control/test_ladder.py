"""The heat ladder: down one step at a time, up at once, and no request lost on the way."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.control.conftest import Control, app_spec, eventually, running_control, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.types.coldstart import Outcome
from glowplug.types.errors import GlowplugError, ReplicaFailed, RuntimeFailed, Unavailable
from glowplug.types.paths import StateDir
from glowplug.types.replica import ReplicaState, StartPath

SWAP_BYTES = 1 << 30


def server(name: str = "web", **scaling: Any) -> dict[str, Any]:
    return server_spec(name, scaling={"scaledown_window_s": 0.1, "parked_window_s": 30.0, **scaling})


async def parked(agent: FakeAgent, count: int = 1) -> list[str]:
    """The ids of exactly so many parked replicas, once there are."""
    await eventually(lambda: len(agent.of_state(ReplicaState.PARKED)) == count, f"{count} parked")
    return [view.id for view in agent.of_state(ReplicaState.PARKED)]


# -- down and up ---------------------------------------------------------------------------------------------


async def test_an_idle_replica_is_parked_and_the_next_request_wakes_that_very_one(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server()))
    first = (await control.get("/shop/web/")).text
    (replica_id,) = await parked(agent)

    async def is_known() -> bool:
        status = await control.server()
        return (status["ready"], status["parked"], status["desired"]) == (0, 1, 0)

    await eventually(is_known, "one parked in the status")
    assert (await control.get("/shop/web/")).text == first
    assert (len(agent.orders), agent.unparks) == (1, [replica_id])
    woken = 'glowplug_heat_steps_total{app="shop",server="web",step="woken"}'

    async def is_counted() -> bool:
        return await control.metric(woken) == 1

    await eventually(is_counted, "the step up in the metrics")


async def test_the_record_says_that_a_parked_replica_answered(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server()))
    await control.get("/shop/web/")
    await parked(agent)
    asked_at = time.time()
    await control.get("/shop/web/")
    await eventually(lambda: _count(control, 2), "two records")
    woken, started = await control.records()
    assert (started.path, woken.path) == (StartPath.CPU_SNAPSHOT, StartPath.PARKED)
    assert woken.outcome is Outcome.ANSWERED
    assert woken.bytes_by_tier == {}
    assert sum(woken.stages_s.values()) <= woken.total_s + 0.003  # the fake's stages are made up
    assert woken.started_at >= asked_at


async def test_after_its_window_a_parked_replica_is_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server(parked_window_s=0.3)))
    await control.get("/shop/web/")
    await parked(agent)
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert (await control.get("/shop/web/")).status_code == 200
    assert len(agent.orders) == 2


async def test_without_a_window_nothing_is_parked(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server(parked_window_s=0)))
    await control.get("/shop/web/")
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert agent.parks == []


@pytest.mark.parametrize(("wish", "is_pushed_out"), [("keep", False), ("swap", True)])
async def test_a_server_decides_whether_its_memory_goes_to_swap_at_once(
    control: Control, agent: FakeAgent, wish: str, is_pushed_out: bool
) -> None:
    await control.deploy(app_spec(server(parked_memory=wish)))
    await control.get("/shop/web/")
    (replica_id,) = await parked(agent)
    assert agent.parks == [(replica_id, is_pushed_out)]


async def test_a_replica_with_a_gpu_is_stopped_not_parked(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec({**server(), "resources": {"gpu": "H100"}}))
    await control.get("/shop/web/")
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert agent.parks == []


async def test_min_replicas_stay_up(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server(min_replicas=1, max_replicas=3, target_concurrency=1)))
    requests = [asyncio.create_task(control.get("/shop/web/wait")) for _ in range(3)]
    await eventually(lambda: sum(int(r.waiting) for r in agent.servers.values()) == 3, "three requests")
    await eventually(lambda: len(agent.ready) == 3, "three replicas")
    for replica in agent.servers.values():
        replica.release.set()
    assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}
    await parked(agent, 2)
    assert len(agent.ready) == 1


async def test_a_burst_wakes_all_that_are_parked_before_it_starts_any(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server(max_replicas=3, target_concurrency=1)))
    agent.gate.clear()
    requests = [asyncio.create_task(control.get("/shop/web/")) for _ in range(2)]
    await eventually(lambda: len(agent.orders) == 2, "two starts")
    agent.gate.set()
    await asyncio.gather(*requests)
    sleeping = await parked(agent, 2)
    requests = [asyncio.create_task(control.get("/shop/web/wait")) for _ in range(3)]
    await eventually(lambda: sorted(agent.unparks) == sorted(sleeping), "both to be woken")
    await eventually(lambda: len(agent.orders) == 3, "one more start")
    await eventually(lambda: sum(int(r.waiting) for r in agent.servers.values()) == 3, "three requests")
    for replica in agent.servers.values():
        replica.release.set()
    assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [ReplicaFailed("It does not answer."), Unavailable("No agent."), RuntimeFailed("It does not thaw.")],
)
async def test_a_request_is_answered_by_a_start_when_the_parked_replica_does_not_wake(
    control: Control, agent: FakeAgent, error: GlowplugError
) -> None:
    await control.deploy(app_spec(server()))
    await control.get("/shop/web/")
    await parked(agent)
    agent.unpark_errors.append(error)
    assert (await control.get("/shop/web/")).status_code == 200
    assert len(agent.orders) == 2
    await eventually(lambda: _count(control, 2), "two records")
    record = (await control.records())[0]
    assert (record.path, record.outcome) == (StartPath.CPU_SNAPSHOT, Outcome.ANSWERED)
    assert record.fallback_reason is not None
    assert record.fallback_reason.startswith("waking a parked replica failed: ")
    assert error.message.rstrip(".") in record.fallback_reason or "was killed" in record.fallback_reason


async def test_one_that_cannot_be_parked_is_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server()))
    agent.park_errors.append(RuntimeFailed("It does not freeze."))
    await control.get("/shop/web/")
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")


async def test_one_that_dies_while_parked_is_forgotten_and_the_next_request_starts_another(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server()))
    await control.get("/shop/web/")
    (replica_id,) = await parked(agent)
    await agent.kill_replica(replica_id)

    async def is_known() -> bool:
        return bool((await control.server())["parked"] == 0)

    await eventually(is_known, "none parked in the status")
    assert (await control.get("/shop/web/")).status_code == 200
    assert agent.unparks == []


async def test_one_that_is_frozen_under_a_request_is_woken(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server(scaledown_window_s=30)))
    request = asyncio.create_task(control.get("/shop/web/wait"))
    await eventually(lambda: agent.ready, "a replica")
    replica = agent.servers[agent.ready[0].id]
    await eventually(lambda: replica.waiting, "the request")
    agent.change(agent.ready[0].id, state=ReplicaState.PARKED, parked_at=0.0)
    await eventually(lambda: agent.unparks, "the waking")
    replica.release.set()
    assert (await request).status_code == 200
    assert agent.stops == []


async def test_a_new_control_plane_wakes_what_its_predecessor_parked(
    state: StateDir, agent: FakeAgent
) -> None:
    async with running_control(state) as control:
        await control.deploy(app_spec(server()))
        await control.get("/shop/web/")
        (replica_id,) = await parked(agent)
    async with running_control(state) as control:
        assert (await control.get("/shop/web/")).status_code == 200
    assert agent.unparks == [replica_id]
    assert len(agent.orders) == 1


# -- by hand -------------------------------------------------------------------------------------------------


async def test_a_new_version_stops_what_is_parked_of_the_old(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server()))
    await control.get("/shop/web/")
    (old,) = await parked(agent)
    await control.deploy(app_spec({**server(), "env": {"VERSION": "2"}}))
    await eventually(lambda: agent.views[old].state is ReplicaState.STOPPED, "the old one's stop")
    assert (await control.get("/shop/web/")).status_code == 200
    assert agent.unparks == []


async def test_stop_stops_what_is_parked(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server()))
    await control.get("/shop/web/")
    (replica_id,) = await parked(agent)
    answer = await control.client.post("/api/v1/apps/shop/stop", params={"wait": True})
    assert answer.json()["replicas"] == [replica_id]
    assert agent.views[replica_id].state is ReplicaState.STOPPED


# -- short of memory -----------------------------------------------------------------------------------------


async def test_short_memory_takes_an_idle_replica_down_step_by_step(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(server(scaledown_window_s=30)))
    await control.get("/shop/web/")
    agent.tell_memory(is_short=True, swap_free_bytes=SWAP_BYTES)
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the last step")
    replica_id = agent.orders[0].replica_id
    assert agent.parks == [(replica_id, False), (replica_id, True)]
    agent.tell_memory(is_short=False)


async def test_without_swap_what_is_parked_is_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server(scaledown_window_s=30)))
    await control.get("/shop/web/")
    agent.tell_memory(is_short=True)
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert agent.parks == [(agent.orders[0].replica_id, False)]


async def test_the_longest_idle_goes_first_and_who_is_used_or_is_to_stay_is_left_alone(
    control: Control, agent: FakeAgent
) -> None:
    names = ("oldest", "newer", "used", "kept")
    window = {"scaledown_window_s": 30}
    servers = [server(name, **window, min_replicas=1 if name == "kept" else 0) for name in names]
    await control.deploy(app_spec(*servers))
    for name in names:
        assert (await control.get(f"/shop/{name}/")).status_code == 200
    request = asyncio.create_task(control.get("/shop/used/wait"))
    used = next(view for view in agent.ready if view.server == "used")
    await eventually(lambda: agent.servers[used.id].waiting, "the request")
    agent.tell_memory(is_short=True)
    await eventually(lambda: len(agent.of_state(ReplicaState.STOPPED)) == 2, "two stops")
    agent.tell_memory(is_short=False)
    by_id = {view.id: view.server for view in agent.views.values()}
    assert [by_id[replica_id] for replica_id, _ in agent.stops] == ["oldest", "newer"]
    assert {view.server for view in agent.ready} == {"used", "kept"}
    agent.servers[used.id].release.set()
    assert (await request).status_code == 200


async def test_what_finds_no_room_is_made_room_for(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(server("small", scaledown_window_s=30), server("large")))
    await control.get("/shop/small/")
    (small,) = agent.ready
    agent.refusals.append(Unavailable("No room.", resource="memory"))
    assert (await control.get("/shop/large/")).status_code == 200
    await eventually(lambda: agent.parks, "the parking")
    assert agent.parks[0] == (small.id, False)


async def _count(control: Control, wanted: int) -> bool:
    return len(await control.records()) == wanted
