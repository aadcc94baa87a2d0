"""An engine's machines as a provider of the pools: what is ordered is asked for, what is there is claimed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from glowplug.engine.engine_provider import EngineProvider
from glowplug.engine.port import Demand, MachineState
from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.port import MachineState as Seen
from glowplug.pool.providers.port import Order, RequestRefused, Sighting
from glowplug.pool.run_settings import EngineEntry, EngineMachine
from glowplug.types.errors import InvalidInput, SystemUnfit, Unavailable

from .recording_engine import RecordingEngine

POOL = PoolId("ray", "here", "box", Purchase.OWN)
ENTRY = EngineEntry(
    kind="engine",
    machines={
        "box": EngineMachine(cpus=8.0, memory_bytes=1 << 34),
        "gpu-box": EngineMachine(cpus=4.0, memory_bytes=1 << 33),
    },
)
BOX = Demand(1, cpus=8.0, memory_bytes=1 << 34)
CALL_S = 60.0


def order(number: int, **changes: object) -> Order:
    made = Order(f"test-0123abcd-{number}", "test", POOL, "cpu", 1)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def provider(engine: RecordingEngine, tmp_path: Path) -> EngineProvider:
    return again(engine, tmp_path)


def again(engine: RecordingEngine, folder: Path) -> EngineProvider:
    """As after a restart of the planner."""
    return EngineProvider("ray", ENTRY, engine, folder / "engine-ray.json")


def listed(provider: EngineProvider) -> dict[str, Sighting]:
    return {seen.order: seen for seen in provider.machines("test", CALL_S)}


def test_all_orders_together_are_what_the_engine_is_asked_for(
    engine: RecordingEngine, provider: EngineProvider, tmp_path: Path
) -> None:
    provider.request(order(1), CALL_S)
    on_gpus = order(2, pool=replace(POOL, machine="gpu-box"), gpu="H100", gpus=8)
    provider.request(on_gpus, CALL_S)
    wanted = [BOX, Demand(1, cpus=4.0, memory_bytes=1 << 33, gpus=8, gpu_chip="H100")]
    assert engine.wanted == wanted
    provider.cancel(order(1).id, CALL_S)
    assert engine.wanted == wanted[1:]
    again(engine, tmp_path).machines("test", CALL_S)
    assert engine.wanted == wanted[1:], "an engine that was started again is asked again"


def test_nothing_is_asked_of_an_engine_that_nothing_was_ordered_from(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    assert provider.machines("test", CALL_S) == []
    assert engine.asked == []


def test_a_machine_that_came_is_the_order_that_waits_longest_and_stays_it(
    engine: RecordingEngine, provider: EngineProvider, tmp_path: Path
) -> None:
    provider.request(order(1), CALL_S)
    provider.request(order(2), CALL_S)
    assert {seen.state for seen in listed(provider).values()} == {Seen.PENDING}
    engine.give("beta")
    seen = listed(provider)
    assert (seen[order(1).id].state, seen[order(1).id].address) == (Seen.UP, "beta")
    assert seen[order(2).id].state is Seen.PENDING
    engine.give("alpha")
    found = {name: one.address for name, one in listed(again(engine, tmp_path)).items()}
    assert found == {order(1).id: "beta", order(2).id: "alpha"}


def test_a_machine_that_holds_less_than_the_pools_is_not_taken(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    provider.request(order(1), CALL_S)
    engine.give("small", cpus=4.0)
    engine.give("joining", state=MachineState.PENDING)
    assert listed(provider)[order(1).id].state is Seen.PENDING


def test_what_the_engine_can_never_have_is_refused_and_not_asked_for_any_more(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.most = 1
    provider.request(order(1), CALL_S)
    with pytest.raises(RequestRefused, match="Nobody has so many") as refused:
        provider.request(order(2), CALL_S)
    assert refused.value.remedy == "Join another machine."
    assert engine.wanted == [BOX]
    assert list(listed(provider)) == [order(1).id]


def test_a_request_that_the_engine_may_not_have_heard_is_made_again(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.is_away = True
    with pytest.raises(Unavailable):
        provider.request(order(1), CALL_S)
    engine.is_away = False
    provider.request(order(1), CALL_S)
    assert engine.asked == [[BOX]]
    engine.give("beta")
    assert listed(provider)[order(1).id].address == "beta"
    asked = len(engine.asked)
    provider.request(order(1), CALL_S)
    assert len(engine.asked) == asked, "it has its machine"


def test_a_request_that_was_not_heard_may_turn_out_to_be_for_what_nobody_has(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.is_away = True
    with pytest.raises(Unavailable):
        provider.request(order(1), CALL_S)
    engine.is_away, engine.most = False, 0
    with pytest.raises(RequestRefused, match="Nobody has so many"):
        provider.request(order(1), CALL_S)
    assert engine.wanted == []
    assert listed(provider) == {}


def test_machines_of_a_kind_that_was_taken_out_of_the_file_can_be_given_back(
    engine: RecordingEngine, provider: EngineProvider, tmp_path: Path
) -> None:
    for number in (1, 2):
        provider.request(order(number), CALL_S)
    engine.give("beta")
    listed(provider)
    less = ENTRY.model_copy(update={"machines": {"gpu-box": ENTRY.machines["gpu-box"]}})
    after = EngineProvider("ray", less, engine, tmp_path / "engine-ray.json")
    held = listed(after)
    assert engine.wanted == [BOX, BOX]
    after.cancel(order(2).id, CALL_S)
    after.terminate(held[order(1).id].machine, CALL_S)
    assert (engine.wanted, engine.released) == ([], ["id-beta"])


def test_what_is_given_back_is_let_go_of_after_less_was_asked_for(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    provider.request(order(1), CALL_S)
    engine.give("beta")
    machine = listed(provider)[order(1).id].machine
    provider.terminate(machine, CALL_S)
    assert engine.wanted == []
    assert engine.released == ["id-beta"]
    provider.terminate(machine, CALL_S)
    assert engine.released == ["id-beta"]


def test_a_release_that_failed_is_made_again(engine: RecordingEngine, provider: EngineProvider) -> None:
    provider.request(order(1), CALL_S)
    engine.give("beta")
    machine = listed(provider)[order(1).id].machine
    engine.is_away = True
    with pytest.raises(Unavailable):
        provider.terminate(machine, CALL_S)
    engine.is_away = False
    assert listed(provider)[order(1).id].machine == machine
    provider.terminate(machine, CALL_S)
    assert engine.released == ["id-beta"]


def test_the_control_planes_own_machine_may_be_claimed_and_stays(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.own = "own"
    engine.give("own")
    provider.request(order(1), CALL_S)
    provider.terminate(listed(provider)[order(1).id].machine, CALL_S)
    assert list(engine.there) == ["own"]
    assert listed(provider) == {}


def test_a_machine_that_the_engine_has_lost_is_not_listed_until_it_is_back(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    provider.request(order(1), CALL_S)
    engine.give("beta")
    before = listed(provider)
    engine.give("beta", state=MachineState.GONE)
    assert listed(provider) == {}
    assert engine.wanted == [BOX], "it is wanted as long as nobody has given it up"
    engine.give("beta", id="another-id-after-ray-start")
    assert listed(provider) == before


def test_machines_that_a_cluster_of_fixed_size_has_lost_can_be_given_up(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    for number in (1, 2):
        provider.request(order(number), CALL_S)
    engine.give("beta", "gamma")
    machines = {seen.address: seen.machine for seen in listed(provider).values()}
    engine.most = 0
    for node in ("beta", "gamma"):
        engine.give(node, state=MachineState.GONE)
    assert listed(provider) == {}
    for machine in machines.values():
        provider.terminate(machine, CALL_S)
    assert engine.wanted == []
    assert engine.released == []


def test_a_machine_is_fit_when_its_agent_has_joined(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.give("beta")
    engine.give("gamma", state=MachineState.DRAINING, why="by hand")
    assert provider.inspect("beta/1", "beta", "cpu", 1, CALL_S).is_fit
    verdict = provider.inspect("gamma/1", "gamma", "cpu", 1, CALL_S)
    assert (verdict.is_fit, verdict.reason) == (False, "by hand")


def test_a_machine_that_the_engine_says_nothing_of_at_the_moment_is_neither_fit_nor_unfit(
    engine: RecordingEngine, provider: EngineProvider
) -> None:
    engine.give("gamma", state=MachineState.PENDING, why="its agent has not joined yet")
    for node in ("gamma", "nobody"):
        with pytest.raises(Unavailable, match=f"does not list {node}"):
            provider.inspect(f"{node}/1", node, "cpu", 1, CALL_S)
    engine.is_away = True
    with pytest.raises(Unavailable, match="is away"):
        provider.inspect("gamma/1", "gamma", "cpu", 1, CALL_S)


def test_a_machine_of_which_nobody_said_what_it_has_is_refused(provider: EngineProvider) -> None:
    with pytest.raises(InvalidInput, match="is not told what a machine 'tank' has") as refused:
        provider.request(order(1, pool=replace(POOL, machine="tank")), CALL_S)
    assert "run.providers.ray.machines" in refused.value.remedy


def test_a_file_of_claims_that_is_not_ours_is_said_to_be(engine: RecordingEngine, tmp_path: Path) -> None:
    (tmp_path / "engine-ray.json").write_text('{"version": 2}')
    with pytest.raises(SystemUnfit, match="cannot be used"):
        again(engine, tmp_path)
