"""Scenario files: what they refer to, what can be wrong in them, and what requests are made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from glowplug.simulator import scenario_file
from glowplug.simulator.quantile_table import draw, table_of
from glowplug.simulator.scenario_file import MadeUp, Part, read_scenario_file
from glowplug.simulator.traces import DAY_S
from glowplug.simulator.traces import made_up as made_up_trace
from glowplug.types.errors import InvalidInput

from .worlds import POOL, START_S, STARTS, app, logged, made_up, scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "pools"


@pytest.mark.parametrize("name", ["azure_llm.yaml", "made_up_day.yaml"])
def test_each_example_says_what_to_type(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert f"glowplug pool simulate examples/pools/{name}" in text
    assert read_scenario_file(EXAMPLES / name).policies


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version"),
        ({"hours": 0}, "hours"),
        ({"policies": []}, "policies"),
        ({"policies": [{"kind": "magic"}]}, "magic"),
        ({"apps": [app(made_up(), gpu="H100")]}, "no demand of 1 H100"),
        ({"apps": [app(made_up()), app(made_up())]}, "one name"),
        ({"apps": [app({})]}, "file or made_up"),
        ({"apps": [app({"made_up": {"per_s": 1}})]}, "durations"),
        ({"apps": [app(made_up(durations_s={0.5: -1}))]}, "quantiles"),
        ({"apps": [app(made_up(durations_s={1.5: 1}))]}, "shares"),
        ({"apps": [app(made_up(durations_s={0: 5, 1: 1}))]}, "fall"),
        ({"market": {"pools": {"gcp/r/other/spot": {}}}}, "gcp/r/other/spot"),
        ({"market": {"default": {"grant_probability": 2}}}, "grant_probability"),
    ],
)
def test_each_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    whole = {
        "version": 1, "hours": 1, "apps": [app(made_up())], "policies": [{"kind": "ttl"}],
        "plan": {"version": 1, "pools": [POOL], "demand": [{"gpu": "L4"}]},
    }  # fmt: skip
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert read_scenario_file(path).hours == 1
    path.write_text(yaml.safe_dump({**whole, **changes}))
    with pytest.raises(InvalidInput) as caught:
        read_scenario_file(path)
    assert any(words in line for line in caught.value.details["fields"]), caught.value.details


def test_machines_that_are_up_and_pools_that_are_missing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="begins with none"):
        scenario(tmp_path, [app(made_up())], pools=[{**POOL, "up": 1}])
    with pytest.raises(InvalidInput, match="No pool has machines with 1 L4"):
        scenario(tmp_path, [app(made_up())], pools=[{**POOL, "gpu": "H100"}])
    with pytest.raises(InvalidInput, match="no price when the simulation begins"):
        scenario(tmp_path, [app(made_up())], pools=[{**POOL, "price_usd_per_h": None}])


def test_a_scenario_without_requests_is_an_error(tmp_path: Path) -> None:
    found = scenario(tmp_path, [logged(tmp_path, [(0, 1)])], starts_at="2023-11-16T00:00:00")
    with pytest.raises(InvalidInput, match="no request"):
        found.world(0)


def test_what_lies_before_the_start_is_history(tmp_path: Path) -> None:
    entry = logged(tmp_path, [(0, 30), (5, 30), (400, 1)])
    found = scenario(tmp_path, [entry], starts_at=None, skip_s=300).world(0)
    (one,) = found.apps
    assert found.start_s == START_S + 300
    assert len(one.trace) == 1
    assert one.demand.start_s == START_S
    before, later = one.demand.until(found.start_s), one.demand.until(found.start_s + 200)
    assert (before.slots.max(), before.slots.sum(), later.slots.sum()) == (2, 2 * 3 + 1, 2 * 3 + 1 + 1)


def test_prices_of_later_replace_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text(
        "region,machine,purchase,gpu,gpus,usd_per_h,at\n"
        f"r,m,on_demand,L4,1,2.0,{START_S - 50}\nr,m,on_demand,L4,1,5.0,{START_S + 900}\n"
        f"r,m,on_demand,L4,1,9.0,{START_S + 90_000}\n"
    )
    bare = {name: value for name, value in POOL.items() if name not in ("price_usd_per_h", "gpu", "gpus")}
    plan = {
        "version": 1, "pools": [bare], "demand": [{"gpu": "L4"}],
        "prices": [{"file": "prices.csv", "cloud": "gcp"}],
    }  # fmt: skip
    (pool,) = scenario(tmp_path, [app(made_up())], plan=plan).world(0).pools
    assert (pool.gpu, pool.gpus) == ("L4", 1)
    assert pool.prices.usd_per_h == [2.0, 5.0]


def test_tables_of_starts_come_from_recorded_cold_starts(tmp_path: Path) -> None:
    def record(path: str, total_s: float, tier: str) -> dict[str, Any]:
        return {
            "id": "x", "app": "a", "server": "s", "deployment_id": "d", "replica_id": "r", "node": "n",
            "path": path, "outcome": "answered", "started_at": 0.0, "total_s": total_s,
            "bytes_by_tier": {tier: 100},
        }  # fmt: skip

    records = [record("cpu_snapshot", 2.0 + i / 10, "ssd") for i in range(11)]
    records += [record("cpu_snapshot", 7.0, "region")] * 10 + [record("cold", 70.0, "ssd")] * 3
    (tmp_path / "starts.json").write_text(json.dumps(records))
    entry = app(made_up(), starts={**STARTS, "records": "starts.json"})
    (one,) = scenario(tmp_path, [entry]).world(0).apps
    assert one.starts.ssd[0.5] == pytest.approx(2.5)
    assert one.starts.region[0.5] == 7.0
    assert one.starts.cold == {0.5: 10.0}, "three starts are too few"
    (tmp_path / "starts.json").write_text("[]")
    with pytest.raises(InvalidInput, match="fewer than 10"):
        scenario(tmp_path, [entry])
    (tmp_path / "starts.json").write_text("{")
    with pytest.raises(InvalidInput, match="glowplug coldstarts"):
        scenario(tmp_path, [entry])


def test_made_up_requests_have_the_rate_the_swing_and_the_crowd_they_were_asked_for() -> None:
    entry = MadeUp.model_validate({
        "per_s": 2.0, "day_swing": 0.8, "busiest_hour": 12, "history_days": 1, "durations_s": {0: 1, 1: 3},
        "crowd": {"at_h": 1, "length_s": 1_200, "factor": 6},
    })  # fmt: skip
    trace = made_up_trace(entry, Path(), 10 * DAY_S, DAY_S, np.random.default_rng(1))
    days = trace.arrivals_s / DAY_S
    history, crowd = (days < 10).sum(), ((days >= 10 + 1 / 24) & (days < 10 + 1 / 24 + 1_200 / DAY_S)).sum()
    noon, midnight = (np.abs(days - 9.5) < 0.02).sum(), (np.abs(days - 9.98) < 0.02).sum()
    assert history == pytest.approx(2 * DAY_S, rel=0.02)
    assert noon > 5 * midnight
    quiet = ((days >= 10 + 2 / 24) & (days < 10 + 2 / 24 + 1_200 / DAY_S)).sum()
    assert crowd > 3 * quiet
    assert 1 <= trace.durations_s.min() <= trace.durations_s.max() <= 3
    assert (np.diff(trace.arrivals_s) >= 0).all()


def test_too_many_made_up_requests_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="more than this can hold"):
        scenario(tmp_path, [app(made_up(per_s=1e6))]).world(0)


def test_a_table_gives_its_own_quantiles_back() -> None:
    values = np.linspace(2.0, 8.0, 1_001)
    table = table_of(values.tolist())
    drawn = draw(table, np.array([0.0, 0.5, 1.0]))
    assert drawn.tolist() == pytest.approx([2.0, 5.0, 8.0])
    with pytest.raises(ValueError, match="no values"):
        table_of([])


def test_every_field_of_the_file_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    parts = [
        part for part in vars(scenario_file).values() if isinstance(part, type) and issubclass(part, Part)
    ]
    names = {name for part in parts for name in part.model_fields}
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", page)] == []
