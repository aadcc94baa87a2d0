"""Servers that share a GPU: who is idle and worth least makes way, by parking, for who is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.control.conftest import Control, app_spec, eventually, server_spec
from tests.control.fake_agent import FakeAgent

from glowplug.control.demand import HALF_LIFE_S, RecentDemand
from glowplug.control.heat import StepDown, step_down, wake_cost_s
from glowplug.types.clock import ManualClock
from glowplug.types.coldstart import Outcome
from glowplug.types.errors import ResourceExhausted, Unavailable
from glowplug.types.replica import ReplicaState, ReplicaView, Stage, StartPath
from glowplug.types.spec import ServerSpec


def model(name: str, *, gpu: str = "H100", can_park: bool = True, **scaling: Any) -> dict[str, Any]:
    """A server that keeps its GPU for half a minute after a request, unless somebody else needs it."""
    return server_spec(
        name,
        resources={"gpu": gpu},
        snapshot={"gpu": can_park},
        runtime="runc",
        scaling={"scaledown_window_s": 30.0, "parked_window_s": 60.0, **scaling},
    )


def no_gpu() -> Unavailable:
    return Unavailable("No room: it needs 1 GPU(s), and 0 of 1 are free.", resource="gpu")


def id_of(agent: FakeAgent, server: str) -> str:
    (replica_id,) = [view.id for view in agent.views.values() if view.server == server]
    return replica_id


async def parked(agent: FakeAgent, server: str) -> None:
    await eventually(
        lambda: any(view.server == server for view in agent.of_state(ReplicaState.PARKED)), f"{server} parked"
    )


async def test_who_is_idle_is_parked_for_a_parked_one_that_is_asked(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(model("one"), model("two")))
    first = (await control.get("/shop/one/")).text
    agent.refusals.append(no_gpu())
    assert (await control.get("/shop/two/")).status_code == 200
    await parked(agent, "one")
    agent.unpark_errors.append(no_gpu())
    assert (await control.get("/shop/one/")).text == first
    one, two = id_of(agent, "one"), id_of(agent, "two")
    assert agent.parks == [(one, False), (two, False)]
    assert agent.unparks == [one, one]
    assert len(agent.orders) == 2, "nobody was started anew"
    assert await control.metric('glowplug_heat_steps_total{app="shop",server="two",step="made_way"}') == 1
    await eventually(lambda: _count(control, 3), "three records")
    woken = (await control.records())[0]
    assert (woken.path, woken.outcome, woken.fallback_reason) == (StartPath.PARKED, Outcome.ANSWERED, None)


async def test_who_is_asked_for_least_makes_way(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(model("busy"), model("quiet"), model("new")))
    for _ in range(5):
        assert (await control.get("/shop/busy/")).status_code == 200
    assert (await control.get("/shop/quiet/")).status_code == 200
    agent.refusals.append(no_gpu())
    assert (await control.get("/shop/new/")).status_code == 200
    assert agent.parks == [(id_of(agent, "quiet"), False)]


async def test_who_is_slow_to_wake_stays(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(model("large"), model("small"), model("new")))
    for name in ("large", "small", "small"):
        assert (await control.get(f"/shop/{name}/")).status_code == 200
    for name, seconds in (("large", 10.0), ("small", 0.1)):
        woken = {"path": StartPath.PARKED, "stages_s": {Stage.DEVICE_INIT: seconds}}
        agent.change(id_of(agent, name), **woken)
    agent.refusals.append(no_gpu())
    assert (await control.get("/shop/new/")).status_code == 200
    assert agent.parks == [(id_of(agent, "small"), False)]


async def test_who_is_used_and_who_has_another_chip_and_who_is_to_stay_are_left_alone(
    control: Control, agent: FakeAgent
) -> None:
    servers = [model("used"), model("other", gpu="L40S"), model("kept", min_replicas=1), model("new")]
    await control.deploy(app_spec(*servers))
    for name in ("used", "other", "kept"):
        assert (await control.get(f"/shop/{name}/")).status_code == 200
    request = asyncio.create_task(control.get("/shop/used/wait"))
    used = agent.servers[id_of(agent, "used")]
    await eventually(lambda: used.waiting, "the request")
    agent.refusals += [no_gpu(), no_gpu()]
    assert (await control.get("/shop/new/")).status_code == 200
    assert (agent.parks, agent.stops) == ([], [])
    used.release.set()
    assert (await request).status_code == 200


async def test_who_cannot_be_parked_is_stopped(control: Control, agent: FakeAgent) -> None:
    await control.deploy(app_spec(model("stiff", can_park=False), model("new")))
    assert (await control.get("/shop/stiff/")).status_code == 200
    agent.refusals.append(no_gpu())
    assert (await control.get("/shop/new/")).status_code == 200
    await eventually(lambda: agent.of_state(ReplicaState.STOPPED), "the stop")
    assert [replica_id for replica_id, _ in agent.stops] == [id_of(agent, "stiff")]


async def test_where_nobody_of_ours_has_the_memory_a_start_takes_the_place_of_what_cannot_wake(
    control: Control, agent: FakeAgent
) -> None:
    await control.deploy(app_spec(model("only", scaledown_window_s=0.1)))
    assert (await control.get("/shop/only/")).status_code == 200
    await parked(agent, "only")
    agent.unpark_errors.append(ResourceExhausted("GPU 0 has 1 MiB free.", resource="gpu"))
    assert (await control.get("/shop/only/")).status_code == 200
    assert len(agent.orders) == 2


# -- the rules ---------------------------------------------------------------------------------------------


def test_demand_halves_with_time() -> None:
    clock = ManualClock()
    demand = RecentDemand(clock)
    assert demand.per_s() == 0
    for _ in range(8):
        demand.note()
    at_once = demand.per_s()
    clock.advance(HALF_LIFE_S)
    assert demand.per_s() == pytest.approx(at_once / 2)
    demand.note()
    assert demand.per_s() == pytest.approx(at_once * 5 / 8)


def test_steady_demand_is_told_as_it_is() -> None:
    clock = ManualClock()
    demand = RecentDemand(clock)
    for _ in range(20_000):
        demand.note()
        clock.advance(0.5)
    assert demand.per_s() == pytest.approx(2.0, rel=0.01)


def test_what_a_wake_costs_is_what_it_took_or_else_how_long_its_memory_took() -> None:
    spec = ServerSpec.model_validate(model("any"))
    view = ReplicaView(
        id="a", app="shop", server="any", deployment_id="v1", state="ready", created_at=10.0, ready_at=40.0
    )
    moved = {Stage.HOST_INIT: 3.0, Stage.DEVICE_INIT: 2.0}
    assert wake_cost_s(spec, view) == 1.0
    assert wake_cost_s(spec, view.model_copy(update={"stages_s": moved})) == 2.0
    assert wake_cost_s(spec, view.model_copy(update={"stages_s": moved, "path": StartPath.PARKED})) == 5.0
    stiff = ServerSpec.model_validate(model("any", can_park=False))
    assert wake_cost_s(stiff, view) == 30.0


@pytest.mark.parametrize(("can_park", "step"), [(True, StepDown.PARK), (False, StepDown.STOP)])
def test_a_replica_is_parked_where_its_device_memory_can_leave_the_gpu(
    can_park: bool, step: StepDown
) -> None:
    spec = ServerSpec.model_validate(model("any", can_park=can_park))
    assert step_down(spec, is_ready=True, is_wanted=True) is step


async def _count(control: Control, wanted: int) -> bool:
    return len(await control.records()) == wanted
