"""What each baseline does in a situation that is written down."""

from __future__ import annotations

from typing import Any

import pytest

from glowplug.control.autoscaler import Load
from glowplug.pool.identity import PoolId, Purchase
from glowplug.simulator.policies.histogram import HistogramScaler
from glowplug.simulator.policies.knative import KnativeScaler
from glowplug.simulator.policies.reactive import ReactiveMachines
from glowplug.simulator.policies.rule import MachineNow, MachineRule, PoolNow, Seen
from glowplug.simulator.policies.spothedge import SpotHedgeMachines
from glowplug.types.clock import ManualClock
from glowplug.types.spec import Scaling

FIRM = PoolId("gcp", "r", "m", Purchase.ON_DEMAND)
SPOT = PoolId("gcp", "r", "m", Purchase.SPOT)
OTHER_SPOT = PoolId("gcp", "s", "m", Purchase.SPOT)
PRICES = {FIRM: 3.0, SPOT: 1.0, OTHER_SPOT: 1.1}


def pool(name: PoolId, **changes: Any) -> PoolNow:
    base: dict[str, Any] = {
        "gpu": "L4", "gpus": 1, "usd_per_h": PRICES[name], "quota": 9, "min_rental_s": 60.0, "up": 0,
        "pending": 0, "refused_at_s": None, "lost_at_s": None,
    }  # fmt: skip
    return PoolNow(name, **{**base, **changes})


def machine(name: str, of: PoolId, free: int = 1, up_at_s: float = 0.0) -> MachineNow:
    return MachineNow(name, of, "L4", 1, PRICES[of], free, up_at_s, 60.0)


def seen(pools: list[PoolNow], machines: list[MachineNow], unplaced: int = 0, wanted: int = 0) -> Seen:
    return Seen(tuple(pools), tuple(machines), {"L4": unplaced}, {"L4": wanted}, dict, tuple, tuple, dict)


def asked(rule: MachineRule, what: Seen, now_s: float = 1_000.0) -> list[PoolId]:
    return [order.pool for order in rule.step(now_s, what).requests]


def test_reactive_asks_the_cheapest_that_has_not_just_refused() -> None:
    rule = ReactiveMachines(["L4"], 0, 10.0)
    assert asked(rule, seen([pool(FIRM), pool(SPOT)], [], unplaced=2)) == [SPOT, SPOT]
    refused = pool(SPOT, refused_at_s=990.0)
    assert asked(rule, seen([pool(FIRM), refused], [], unplaced=1)) == [FIRM]
    full = pool(SPOT, up=8, pending=1)
    assert asked(rule, seen([pool(FIRM), full], [], unplaced=2)) == [FIRM]
    assert asked(rule, seen([pool(SPOT, pending=2)], [], unplaced=2)) == []


def test_reactive_keeps_the_buffer_and_gives_the_dearest_back() -> None:
    rule = ReactiveMachines(["L4"], 1, 10.0)
    machines = [machine("a", FIRM), machine("b", SPOT), machine("c", SPOT, free=0)]
    assert rule.step(1_000.0, seen([pool(FIRM, up=1), pool(SPOT, up=2)], machines)).terminations == ("a",)
    fresh = [machine("a", FIRM, up_at_s=970.0), machine("b", FIRM, up_at_s=970.0)]
    assert rule.step(1_000.0, seen([pool(FIRM, up=2)], fresh)).terminations == ()


def test_spothedge_spreads_spot_and_falls_back_to_on_demand() -> None:
    rule = SpotHedgeMachines(["L4"], 2, 10.0)
    pools = [pool(FIRM), pool(SPOT), pool(OTHER_SPOT)]
    found = asked(rule, seen(pools, [], wanted=2))
    assert sorted(found) == sorted([SPOT, OTHER_SPOT, SPOT, OTHER_SPOT, FIRM, FIRM])
    taken = [pool(FIRM), pool(SPOT, lost_at_s=900.0), pool(OTHER_SPOT)]
    assert set(asked(rule, seen(taken, [], wanted=2))) == {OTHER_SPOT, FIRM}


def test_spothedge_gives_on_demand_back_once_spot_is_up() -> None:
    rule = SpotHedgeMachines(["L4"], 1, 10.0)
    machines = [machine("a", FIRM), machine("b", SPOT), machine("c", OTHER_SPOT)]
    pools = [pool(FIRM, up=1), pool(SPOT, up=1), pool(OTHER_SPOT, up=1)]
    actions = rule.step(1_000.0, seen(pools, machines, wanted=1))
    assert (actions.requests, actions.terminations) == ((), ("a",))


class Looks:
    """Looks of a scaler, one a second."""

    def __init__(self, scaler: Any, clock: ManualClock) -> None:
        self.scaler, self.clock = scaler, clock

    def run(self, seconds: int, in_flight: int, ready: int, held: int = 0) -> int:
        """The last wish."""
        wish = 0
        for _ in range(seconds):
            self.clock.advance(1.0)
            load = Load(ready, 0, in_flight, held, in_flight + held)
            wish = self.scaler.decide(load, None).desired
        return wish


def test_knative_follows_the_mean_and_panics_at_twice_what_is_ready() -> None:
    clock = ManualClock()
    looks = Looks(KnativeScaler(Scaling(target_concurrency=10, max_replicas=50), clock, 0.7), clock)
    assert looks.run(60, in_flight=14, ready=2) == 2
    assert looks.run(6, in_flight=70, ready=2) == 10
    # No panic shrinks, and after it half of what is ready is the least.
    assert looks.run(30, in_flight=0, ready=10) == 10
    assert looks.run(31, in_flight=0, ready=10) == 5


def test_knative_goes_to_zero_after_its_grace_and_wakes_for_a_held_request() -> None:
    clock = ManualClock()
    looks = Looks(KnativeScaler(Scaling(target_concurrency=10), clock, 0.7), clock)
    looks.run(60, in_flight=5, ready=1)
    assert looks.run(62, in_flight=0, ready=1) == 1
    assert looks.run(40, in_flight=0, ready=1) == 0
    assert looks.run(1, in_flight=0, ready=0, held=1) == 1


def test_a_histogram_keeps_for_as_long_as_idle_times_were_and_loads_before_they_end() -> None:
    clock = ManualClock()
    looks = Looks(HistogramScaler(Scaling(target_concurrency=1), clock), clock)
    looks.run(5, in_flight=1, ready=1)
    assert looks.run(599, in_flight=0, ready=1) == 1
    assert looks.run(2, in_flight=0, ready=1) == 0
    for _ in range(24):  # a request every 20 minutes, again and again
        looks.run(5, in_flight=1, ready=1)
        looks.run(1_200, in_flight=0, ready=0)
    looks.run(5, in_flight=1, ready=1)
    assert looks.run(600, in_flight=0, ready=0) == 0
    assert looks.run(590, in_flight=0, ready=0) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_no_scaler_wishes_for_more_than_is_allowed(most: int) -> None:
    clock = ManualClock()
    scaling = Scaling(target_concurrency=1, max_replicas=most)
    for scaler in (KnativeScaler(scaling, clock, 0.7), HistogramScaler(scaling, clock)):
        assert Looks(scaler, clock).run(20, in_flight=100, ready=0) == most
