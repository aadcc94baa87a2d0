"""The market: the same luck for everybody, prices over time, and outages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from glowplug.simulator.market import Market
from glowplug.simulator.scenario import PriceTrack

from .worlds import POOL, SPOT, START_S, app, made_up, scenario


def market(folder: Path, **entry: Any) -> tuple[Market, float, float]:
    world = scenario(folder, [app(made_up())], pools=[SPOT, POOL], market={"default": entry}).world(7)
    return Market(world.pools, 7, world.start_s, world.end_s), world.start_s, world.end_s


def test_the_nth_request_of_a_pool_meets_the_same_luck_whatever_else_is_asked(tmp_path: Path) -> None:
    entry = {"grant_probability": 0.5, "interruptions_per_h": 1.0}
    one, start_s, _ = market(tmp_path, **entry)
    other, _, _ = market(tmp_path, **entry)
    fates = [one.ask(0, 0, start_s) for _ in range(20)]
    again = []
    for _ in range(20):
        other.ask(1, 0, start_s)
        again.append(other.ask(0, 0, start_s))
    assert fates == again
    assert {fate.is_granted for fate in fates} == {True, False}
    assert all(fate.ends_s > fate.settles_s for fate in fates if fate.is_granted)


def test_quota_and_capacity_refuse(tmp_path: Path) -> None:
    found, start_s, _ = market(tmp_path, capacity=3, refusal_s=5)
    assert found.ask(0, 2, start_s).is_granted
    refused = found.ask(0, 3, start_s)
    assert (refused.is_granted, refused.settles_s, refused.reason) == (False, start_s + 5, "capacity")
    assert found.ask(0, 20, start_s).reason == "quota"


def test_nothing_comes_in_an_outage_and_spot_machines_are_taken_at_its_start(tmp_path: Path) -> None:
    found, start_s, end_s = market(
        tmp_path, outages_per_day=200, outage_s=60, outage_takes=1.0, lead_time_s={0.5: 1.0}
    )
    for index in (0, 1):
        outage = found.outages[index][0]
        assert start_s < outage.begins_s < outage.ends_s
        assert found.ask(index, 0, outage.begins_s + 0.1).reason == "outage"
    begins_s = found.outages[0][0].begins_s
    assert found.ask(0, 0, start_s).ends_s == begins_s
    assert found.ask(1, 0, start_s).ends_s == math.inf  # on demand
    assert end_s > begins_s


def test_a_price_holds_until_the_next_one() -> None:
    track = PriceTrack([START_S, START_S + 3_600, START_S + 7_200], [1.0, 3.0, 2.0])
    assert [track.at(START_S + s) for s in (-5, 0, 3_599, 3_600, 9_999)] == [1.0, 1.0, 1.0, 3.0, 2.0]
    assert track.usd(START_S, START_S + 3_600) == pytest.approx(1.0)
    assert track.usd(START_S + 1_800, START_S + 9_000) == pytest.approx(0.5 + 3.0 + 1.0)
    assert track.usd(START_S + 10, START_S + 10) == 0.0
