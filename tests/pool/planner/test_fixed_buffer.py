"""The buffer that is held when nothing can be planned."""

from __future__ import annotations

import numpy as np
import pytest

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.plan_file import DemandEntry
from glowplug.pool.planner.fixed_buffer import Need, fixed_buffer, needs
from glowplug.pool.program.problem import Pool

NOW_S = 1_700_000_000.0


def pool(name: str, gpus: int, price: float, up: int = 0, **limits: int) -> Pool:
    return Pool(
        PoolId("c", "r", name, Purchase.SPOT), "L4", gpus, np.array([price]), up=up,
        quota=limits.get("quota", 50), supply=limits.get("supply", 50),
    )  # fmt: skip


def asked(pools: list[Pool], wanted: list[Need]) -> dict[str, int]:
    return {name.machine: count for name, count in fixed_buffer(pools, wanted).ask.items()}


def unwanted(pools: list[Pool], wanted: list[Need]) -> dict[str, int]:
    found = fixed_buffer(pools, wanted).unwanted
    assert found is not None
    return {name.machine: count for name, count in found.items() if count}


def test_it_buys_where_a_slot_is_cheapest_and_goes_on_where_that_ends() -> None:
    pools = [pool("one", 1, 2.0, quota=3), pool("four", 4, 12.0)]
    assert asked(pools, [Need("L4", 1, 3)]) == {"one": 3}
    assert asked(pools, [Need("L4", 1, 5)]) == {"one": 3, "four": 1}
    assert asked([pool("one", 1, 2.0, supply=1)], [Need("L4", 1, 5)]) == {"one": 1}


def test_large_slots_come_first_and_small_ones_fill_what_they_leave() -> None:
    pools = [pool("one", 1, 2.0), pool("four", 4, 12.0)]
    assert asked(pools, [Need("L4", 2, 1), Need("L4", 1, 2)]) == {"four": 1}
    assert asked([pool("one", 1, 2.0)], [Need("L4", 2, 1)]) == {}


def test_what_is_too_much_goes_the_dearest_first() -> None:
    pools = [pool("cheap", 1, 1.0, up=4), pool("dear", 1, 3.0, up=4)]
    assert unwanted(pools, [Need("L4", 1, 5)]) == {"dear": 3}
    assert unwanted(pools, [Need("L4", 1, 3)]) == {"dear": 4, "cheap": 1}
    assert unwanted(pools, [Need("L4", 1, 9)]) == {}


@pytest.mark.parametrize(
    ("slots", "share", "needed"),
    [([4.0], 0.5, 6), ([4.0], 0.0, 5), ([0.0], 0.5, 1), ([], 0.5, 1), ([9.0] + [1.0] * 60, 0.0, 2)],
)
def test_a_share_more_and_one_slot_at_least(slots: list[float], share: float, needed: int) -> None:
    series = DemandSeries(NOW_S - 15.0 * len(slots), 15.0, np.array(slots))
    (need,) = needs([DemandEntry(gpu="L4")], [series], NOW_S, share)
    assert need == Need("L4", 1, needed)


def test_floors_and_schedules_hold_here_too() -> None:
    schedule = {"slots": 7, "from": "22:00", "to": "23:00"}
    entry = DemandEntry.model_validate({"gpu": "L4", "floor": 3, "schedules": [schedule]})
    nothing = DemandSeries(NOW_S, 15.0, np.empty(0))
    assert needs([entry], [nothing], NOW_S, 0.2) == [Need("L4", 1, 7)]
    assert needs([entry], [nothing], NOW_S + 7_200, 0.2) == [Need("L4", 1, 3)]
