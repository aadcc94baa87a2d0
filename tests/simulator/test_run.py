"""Runs: by hand where everything is known, and what must hold whatever happens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glowplug.simulator.bound import clairvoyant
from glowplug.simulator.policies.choice import policies
from glowplug.simulator.run import run

from .worlds import EVERY_POLICY, POOL, SPOT, app, logged, made_up, outcome, policy, scenario

HOSTILE = {
    "default": {
        "lead_time_s": {0: 30, 1: 300}, "grant_probability": 0.6, "interruptions_per_h": 8.0,
        "outages_per_day": 60, "outage_s": 200, "capacity": 4,
    }
}  # fmt: skip


def test_one_request_that_wakes_everything_by_hand(tmp_path: Path) -> None:
    """It comes at 0 s. The machine is up at 100 s, the replica ready at 110 s, the answer there at 115 s. A
    minute (and a look) later nothing is wanted any more: the replica stops at 177 s, and the next step, at
    180 s, gives the machine back.
    """
    found = outcome(tmp_path, [logged(tmp_path, [(0, 5)])], policy("ttl", windows_s=[60]))
    assert (found.requests, found.answered, found.lost) == (1, 1, 0)
    assert found.wait_max_s == pytest.approx(110.0)
    (pool,) = found.economics.pools
    assert pool.rented_gpu_s == pytest.approx(80.0)
    assert (pool.serving_gpu_s, pool.starting_gpu_s) == (pytest.approx(5.0), pytest.approx(10.0))
    assert pool.idle_gpu_s == pytest.approx(62.0)
    assert pool.unallocated_gpu_s == pytest.approx(3.0)
    assert found.usd == pytest.approx(80.0 * 3.6 / 3_600)
    assert found.bound_usd == pytest.approx(5.0 * 3.6 / 3_600)
    assert found.wanted_gpu_s == pytest.approx(177.0)
    assert found.starts == {"region": 1}
    assert found.place_waits_s == pytest.approx([100.0])


def test_a_buffer_makes_the_same_request_wait_for_the_replica_only(tmp_path: Path) -> None:
    found = outcome(tmp_path, [logged(tmp_path, [(600, 5)])], policy("buffer", gpus=[1]))
    assert found.wait_max_s == pytest.approx(10.0)
    (pool,) = found.economics.pools
    # From 100 s to the end; the second one, asked for when the first was taken, takes its place at 710 s.
    assert pool.rented_gpu_s == pytest.approx(1_700.0)
    assert found.peak_gpus == 2


def test_a_second_start_on_a_machine_is_from_its_disk(tmp_path: Path) -> None:
    starts = {"cold": {0.5: 60.0}, "region": {0.5: 20.0}, "ssd": {0.5: 2.0}, "has_snapshot": False}
    scaling = {"target_concurrency": 1, "scaledown_window_s": 10}
    times = [(600, 5), (900, 5)]
    found = outcome(
        tmp_path,
        [logged(tmp_path, times, starts=starts, scaling=scaling)],
        policy("buffer", gpus=[1]),
        pools=[{**POOL, "quota": 1}],
    )
    assert found.starts == {"cold": 1, "ssd": 1}
    assert found.wait_max_s == pytest.approx(60.0)
    assert found.wait_mean_s == pytest.approx(31.0)


def test_where_slots_are_no_gpus_replicas_are_parked_and_woken(tmp_path: Path) -> None:
    scaling = {"target_concurrency": 1, "scaledown_window_s": 10, "parked_window_s": 400}
    starts = {**{path: {0.5: 10.0} for path in ("cold", "region", "ssd")}, "parked": {0.5: 0.25}}
    times = [(600, 5), (900, 5)]
    found = outcome(
        tmp_path,
        [logged(tmp_path, times, scaling=scaling, starts=starts, on_cpu=True)],
        policy("buffer", gpus=[1]),
        pools=[{**POOL, "quota": 1}],
    )
    assert found.starts == {"region": 1, "parked": 1}
    assert found.wait_mean_s == pytest.approx((10.0 + 0.25) / 2)
    (line,) = found.economics.apps
    assert line.parked_gpu_s > 250.0
    on_gpu = outcome(
        tmp_path, [logged(tmp_path, times, scaling=scaling, starts=starts)], policy("buffer", gpus=[1])
    )
    assert "parked" not in on_gpu.starts


def test_a_machine_that_is_taken_away_loses_no_request(tmp_path: Path) -> None:
    market = {"default": {"lead_time_s": {0.5: 20}, "interruptions_per_h": 30.0}}
    found = outcome(tmp_path, [app(made_up(0.2))], policy("buffer", gpus=[2]), pools=[SPOT], market=market)
    assert found.machines["interrupted"] > 3
    assert found.retried > 0
    assert found.answered == found.requests


def test_requests_that_nothing_can_serve_are_counted_as_lost(tmp_path: Path) -> None:
    market = {"default": {"grant_probability": 0.0}}
    found = outcome(
        tmp_path,
        [logged(tmp_path, [(0, 5), (9, 5)], hold_s=60)],
        policy("ttl", windows_s=[60]),
        market=market,
    )
    assert (found.answered, found.lost, found.usd) == (0, 2, 0.0)
    assert found.wait_p99_s == 60.0
    assert found.machines["refused"] > 0


def test_what_happens_while_it_warms_up_does_not_count(tmp_path: Path) -> None:
    entry = logged(tmp_path, [(0, 5), (905, 5)])
    found = outcome(
        tmp_path, [entry], policy("buffer", gpus=[1]), warm_up_s=900, pools=[{**POOL, "quota": 1}]
    )
    assert (found.requests, found.answered, found.measured) == (2, 2, 1)
    assert found.wait_max_s == pytest.approx(10.0)
    (pool,) = found.economics.pools
    assert pool.rented_gpu_s == pytest.approx(900.0)
    assert pool.serving_gpu_s == pytest.approx(5.0)
    assert pool.starting_gpu_s == pytest.approx(10.0)
    assert found.usd_per_h == pytest.approx(3.6)


def test_two_apps_share_a_kind_of_machine(tmp_path: Path) -> None:
    apps = [logged(tmp_path, [(0, 5)]), logged(tmp_path, [(60, 5)], name="code")]
    found = outcome(tmp_path, apps, policy("ttl", windows_s=[60]))
    assert {line.name for line in found.economics.apps} == {"chat", "code"}
    assert found.answered == 2


@pytest.mark.parametrize("index", range(len(EVERY_POLICY)))
def test_the_same_seed_gives_the_same_outcome(tmp_path: Path, index: int) -> None:
    found = scenario(tmp_path, [app(made_up(0.3))], pools=[POOL, SPOT], market=HOSTILE)
    for chosen in policies(found.file.policies[index : index + 1]):
        first, again = (run(found.world(3), chosen) for _ in range(2))
        assert first.outcome() == again.outcome()
        other = run(found.world(4), chosen)
        assert (other.requests, other.wait_mean_s) != (first.requests, first.wait_mean_s)


def hostile_outcomes(folder: Path, trace: dict[str, Any], seed: int) -> None:
    """Every policy: nobody is forgotten, nobody pays less than the least, nothing is metered twice."""
    found = scenario(folder, [app(trace, hold_s=200)], pools=[POOL, SPOT], market=HOSTILE)
    world = found.world(seed)
    for chosen in policies(found.file.policies):
        result = run(world, chosen)
        assert result.answered + result.lost == result.requests
        assert result.bound_usd <= result.usd + 1e-9, chosen.name
        assert result.work_usd <= result.bound_usd + 1e-9
        assert result.wait_max_s <= 200.0 + 1e-6
        economics = result.economics
        for pool in economics.pools:
            assert pool.unallocated_gpu_s >= -1e-6, chosen.name
            assert pool.unallocated_usd >= -1e-9
        counts = result.machines
        assert counts["granted"] + counts["refused"] <= counts["asked"]
        assert counts["interrupted"] + counts["given_back"] <= counts["granted"]
        assert result.needed_peak_gpus <= result.peak_gpus


def test_nobody_is_forgotten_and_nobody_pays_less_than_the_clairvoyant(tmp_path: Path) -> None:
    hostile_outcomes(tmp_path, made_up(0.3, bursts={"per_h": 6, "length_s": 120, "factor": 5}), 1)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_in_any_world(tmp_path: Path, seed: int, per_s: float) -> None:
    hostile_outcomes(tmp_path, made_up(per_s), seed)


def test_the_bound_by_hand(tmp_path: Path) -> None:
    """One replica for 0..10 s and a second one for 4..10 s; spot has a quota of one machine."""
    found = scenario(
        tmp_path, [logged(tmp_path, [(0, 10), (4, 6)])], pools=[POOL, {**SPOT, "quota": 1}]
    ).world(0)
    least = clairvoyant(found)
    assert least.usd == pytest.approx((10 * 1.2 + 6 * 3.6) / 3_600)
    assert least.peak_gpus == {"L4": 2}
    shared = scenario(tmp_path, [logged(tmp_path, [(0, 10), (4, 6)], at_most_at_once=2)], pools=[POOL]).world(
        0
    )
    assert clairvoyant(shared).usd == pytest.approx(10 * 3.6 / 3_600)
    assert clairvoyant(shared).work_usd == pytest.approx(16 / 2 * 3.6 / 3_600)


def test_the_planner_is_shown_demand_as_it_was(tmp_path: Path) -> None:
    """... which here is what the trace needs, once machines are there: nothing of it is lost or doubled."""
    found = scenario(tmp_path, [app(made_up(0.3))], market={"default": {"lead_time_s": {0.5: 5}}})
    world = found.world(0)
    result = run(world, policy("planner"))
    assert result.notes == {"plan": sum(result.notes.values())}
    assert result.answered == result.requests
    assert np.isfinite(result.wait_p99_s)
