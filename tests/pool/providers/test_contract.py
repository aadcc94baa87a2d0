"""What every provider owes the planner: the same tests for machines on paper, of one's own, and of SkyPilot.

SkyPilot is spoken to as its API server 0.10 and newer answers; the server itself is a fake, see ``fake_sky``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.providers.own import OwnProvider
from glowplug.pool.providers.port import MachineState, Order, Provider, RequestRefused, Sighting
from glowplug.pool.providers.simulated import Market, SimulatedProvider
from glowplug.pool.providers.skypilot import SkyPilotProvider
from glowplug.pool.run_settings import OwnEntry, OwnMachine, SkyPilotEntry

from .fake_sky import FakeSky

POOL = PoolId("cloud", "us-central1-a", "g2-standard-4", Purchase.ON_DEMAND)
CALL_S = 60.0
OVER = (MachineState.GONE, MachineState.REFUSED)
Make = Callable[[], Provider]
"""A provider of the same world: called again, it is as after a restart."""


def order(number: int, fleet: str = "test") -> Order:
    return Order(f"{fleet}-0123abcd-{number}", fleet, POOL, "L4", 1)


def paper(folder: Path) -> Make:
    market = Market(lead_time_s=0.2, lead_time_spread=0.0, capacity=3)
    return lambda: SimulatedProvider("cloud", time.time, market, file=folder / "paper.json")


def own(folder: Path) -> Make:
    machines = tuple(
        OwnMachine(host=f"host-{n}", region=POOL.region, machine=POOL.machine, is_local=True)
        for n in range(3)
    )
    return lambda: OwnProvider("cloud", OwnEntry(kind="own", machines=machines), folder / "own.json")


def sky(folder: Path) -> Make:
    server = FakeSky(capacity=3)
    return lambda: SkyPilotProvider(
        "cloud",
        SkyPilotEntry(kind="skypilot", cloud="gcp"),
        folder / "sky.json",
        httpx.MockTransport(server.answer),
    )


@pytest.fixture(params=[paper, own, sky])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    made: Make = request.param(tmp_path)
    return made


def listed(provider: Provider, fleet: str = "test") -> dict[str, Sighting]:
    return {found.order: found for found in provider.machines(fleet, CALL_S) if found.state not in OVER}


def until_up(provider: Provider, count: int) -> dict[str, Sighting]:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        found = listed(provider)
        if sum(sighting.state is MachineState.UP for sighting in found.values()) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not up: {found}")


def test_what_is_asked_for_comes_with_its_order_and_pool(make: Make) -> None:
    provider = make()
    assert provider.machines("test", CALL_S) == []
    provider.request(order(1), CALL_S)
    (found,) = until_up(provider, 1).values()
    assert (found.order, found.pool) == (order(1).id, POOL)
    assert found.address


def test_the_same_order_twice_makes_one_machine_also_after_a_restart(make: Make) -> None:
    make().request(order(1), CALL_S)
    again = make()
    again.request(order(1), CALL_S)
    until_up(again, 1)
    assert len(listed(again)) == 1


def test_machines_of_other_fleets_are_not_listed(make: Make) -> None:
    provider = make()
    provider.request(order(1), CALL_S)
    until_up(provider, 1)
    assert listed(provider, "tes") == {}
    assert all(found.startswith("test-") for found in listed(provider))


def test_beyond_what_there_is_an_order_is_refused_at_once_or_in_a_listing(make: Make) -> None:
    provider = make()
    for number in range(3):
        provider.request(order(number), CALL_S)
    try:
        provider.request(order(9), CALL_S)
    except RequestRefused:
        return
    states = {found.order: found for found in provider.machines("test", CALL_S)}
    assert states[order(9).id].state is MachineState.REFUSED
    assert states[order(9).id].reason


def test_what_is_terminated_is_gone_and_its_place_is_free_again(make: Make) -> None:
    provider = make()
    for number in range(3):
        provider.request(order(number), CALL_S)
    found = until_up(provider, 3)
    gone = found[order(0).id].machine
    provider.terminate(gone, CALL_S)
    provider.terminate(gone, CALL_S)
    provider.terminate("never-was", CALL_S)
    assert set(listed(provider)) == {order(1).id, order(2).id}
    provider.request(order(7), CALL_S)
    machines = {sighting.machine for sighting in until_up(provider, 3).values()}
    assert gone not in machines


def test_what_is_cancelled_does_not_come(make: Make) -> None:
    provider = make()
    provider.request(order(1), CALL_S)
    provider.cancel(order(1).id, CALL_S)
    provider.cancel(order(1).id, CALL_S)
    provider.cancel(order(5).id, CALL_S)
    assert listed(provider) == {}
