"""What a step covers beyond the forecast: what is needed already, and what waits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.plan_file import DemandEntry
from glowplug.pool.planner.outlook import Outlook

STEP_S, LEAD_S = 10.0, 100.0
STARTS_S = np.array([0.0, 100.0, 200.0, 201.0, 3_600.0])


def covered(slots: list[float], waiting_slot_s: float = 0.0, **entry: Any) -> list[float]:
    """In each of the periods, after an hour of one slot and then these."""
    known = DemandSeries(0.0, STEP_S, np.concatenate((np.ones(360), slots)))
    demand = DemandEntry(gpu="L4", level=0.8, **entry)
    outlook, now_s = Outlook(600.0), STEP_S * len(known.slots)
    return outlook.forecast(0, demand, known, LEAD_S, now_s, STARTS_S, waiting_slot_s).slots.tolist()


def test_a_peak_of_one_step_is_not_chased_and_one_that_lasts_is() -> None:
    assert max(covered([1, 30, 1])) <= 2
    assert max(covered([1, 1, 30])) <= 2
    assert covered([1, 30, 30])[:3] == [30, 30, 30]
    assert max(covered([1, 30, 30])[3:]) <= 7


def test_what_waits_gets_slots_that_serve_it_in_twice_the_lead_time() -> None:
    calm = covered([])
    late = covered([], waiting_slot_s=1_000.0)
    assert late[:3] == [1 + 5] * 3
    assert late[3:] == calm[3:]


@pytest.mark.parametrize("waiting_slot_s", [math.nan, math.inf, -5.0, 1e30])
def test_nonsense_about_what_waits_is_left_out(waiting_slot_s: float) -> None:
    assert covered([], waiting_slot_s) == covered([])


def test_a_floor_stays_whatever_is_needed() -> None:
    assert min(covered([], floor=4.0)) == 4
