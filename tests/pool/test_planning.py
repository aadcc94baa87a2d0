"""From a user's file to a problem: what files, prices and logs can get wrong, and the examples."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from glowplug.pool.forecast.demand import Basis
from glowplug.pool.identity import Purchase
from glowplug.pool.market.supply_log import Happened, SupplyLog, SupplyRecord
from glowplug.pool.plan_file import read_plan_file
from glowplug.pool.planning import Situation, situation
from glowplug.pool.report import plan_report
from glowplug.types.errors import InvalidInput

EXAMPLES = [
    file
    for file in sorted((Path(__file__).parents[2] / "examples" / "pools").glob("*.yaml"))
    if "\nplan:" not in file.read_text()  # those are of the simulator
]
NOW_S = 1_700_000_000.0

POOL = {
    "cloud": "gcp", "region": "r", "machine": "m", "purchase": "spot", "gpu": "L4", "gpus": 1,
    "price_usd_per_h": 1.0, "quota": 4,
}  # fmt: skip
FILE: dict[str, Any] = {
    "version": 1,
    "horizon": {"periods": 12, "length_s": 3_000},
    "pools": [POOL],
    "demand": [{"gpu": "L4", "floor": 2}],
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return path


def planned_for(path: Path) -> Situation:
    return situation(read_plan_file(path), path.parent, NOW_S)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_gives_a_plan_and_says_what_to_type(file: Path) -> None:
    assert f"glowplug pool plan examples/pools/{file.name}" in file.read_text()
    report = plan_report(planned_for(file), timeout_s=120)
    assert report.left_out == {}
    assert report.gap is not None
    assert report.gap <= 0.01
    assert sum(line.ask for line in report.pools) >= 1


def test_a_plan_asks_for_what_a_floor_wants(tmp_path: Path) -> None:
    report = plan_report(planned_for(written(tmp_path)))
    assert report.pools[0].ask >= 2
    assert report.demand[0].needed == 2
    fractions = plan_report(planned_for(written(tmp_path)), solver="highs", wants_fractions=True)
    assert (fractions.gap, fractions.solver) == (None, "highs")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version"),
        ({"pool": []}, "pool"),
        ({"pools": []}, "pools"),
        ({"pools": [POOL, POOL]}, "listed twice"),
        ({"pools": [{**POOL, "purchase": "stolen"}]}, "purchase"),
        ({"pools": [{**POOL, "price_usd_per_h": -1}]}, "price_usd_per_h"),
        ({"pools": [{**POOL, "price_usd_per_h": float("nan")}]}, "price_usd_per_h"),
        ({"pools": [{**POOL, "quota": -1}]}, "quota"),
        ({"pools": [{**POOL, "quota": 1.5}]}, "quota"),
        ({"pools": [{**POOL, "lead_time_s": "soon"}]}, "lead_time_s"),
        ({"budget_usd_per_h": -3}, "budget_usd_per_h"),
        ({"demand": [{"gpu": "L4", "level": 1.0}]}, "level"),
        ({"demand": [{"gpu": "L4", "schedules": [{"slots": 1, "from": "25:00"}]}]}, "from"),
        ({"demand": [{"gpu": "L4", "schedules": [{"slots": 1, "timezone": "Mars/Crater"}]}]}, "Mars/Crater"),
        ({"now": "yesterday"}, "now"),
    ],
)
def test_each_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_plan_file(written(tmp_path, **changes))
    assert any(words in line for line in caught.value.details["fields"])


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "a: b: c", "\x00", "version: !!python/object:os.system {}", "a: &a [*a]"],
)
def test_what_is_no_pool_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput):
        read_plan_file(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_plan_file(tmp_path / "none.yaml")


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.floats() | st.text(max_size=5),
        lambda kids: (
            st.lists(kids) | st.dictionaries(st.sampled_from(["version", "pools", "demand", "gpu"]), kids)
        ),
        max_leaves=8,
    )
)
def test_any_yaml_is_a_pool_file_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.mktemp("pool") / "pool.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(InvalidInput):
        read_plan_file(path)


def priced(folder: Path, at: str, **changes: Any) -> dict[str, Any]:
    (folder / "prices.csv").write_text(
        f"region,machine,purchase,gpu,gpus,usd_per_h,at\nr,m,spot,L4,1,0.5,{at}\nr,bad,spot,L4,1,nan,{at}\n"
    )
    bare = {name: value for name, value in POOL.items() if name not in ("price_usd_per_h", "gpu", "gpus")}
    return {"prices": [{"file": "prices.csv", "cloud": "gcp"}], "pools": [{**bare, **changes}]}


def test_prices_and_kinds_come_from_price_files_and_bad_rows_are_told(tmp_path: Path) -> None:
    found = planned_for(written(tmp_path, **priced(tmp_path, str(NOW_S - 60))))
    (pool,) = found.problem.pools
    assert (pool.gpu, pool.gpus, pool.price_usd_per_h[0]) == ("L4", 1, 0.5)
    assert "1 rows are no prices (line 3" in found.remarks[0]


def test_a_stale_price_buys_nothing(tmp_path: Path) -> None:
    old = priced(tmp_path, str(NOW_S - 10 * 86_400))
    with pytest.raises(InvalidInput, match="No pool has a price") as caught:
        planned_for(written(tmp_path, **old))
    assert "10.0 days old" in caught.value.details["pools"][0]
    here = planned_for(written(tmp_path, **priced(tmp_path, str(NOW_S - 10 * 86_400), up=1)))
    assert here.left_out[0].why == "the last price is 10.0 days old"
    report = plan_report(here)
    assert (report.pools[0].ask, report.pools[0].peak_up) == (0, pytest.approx(1))


def test_a_price_of_the_future_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No pool has a price"):
        planned_for(written(tmp_path, **priced(tmp_path, str(NOW_S + 60))))


def test_machines_that_are_up_and_have_no_price_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="2 machines up"):
        planned_for(written(tmp_path, **priced(tmp_path, str(NOW_S), machine="other", up=2)))


def test_a_file_without_dates_is_as_old_as_it_is(tmp_path: Path) -> None:
    changes = priced(tmp_path, "")
    os.utime(tmp_path / "prices.csv", (NOW_S - 5 * 86_400,) * 2)
    with pytest.raises(InvalidInput, match="No pool has a price"):
        planned_for(written(tmp_path, **changes))
    assert planned_for(written(tmp_path, **changes, max_price_age_s=6 * 86_400)).problem.pools
    os.utime(tmp_path / "prices.csv", (NOW_S + 60,) * 2)
    with pytest.raises(InvalidInput, match="No pool has a price"):
        planned_for(written(tmp_path, **changes))


def test_a_kind_that_the_price_files_deny_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="price files say 1 L4"):
        planned_for(written(tmp_path, **priced(tmp_path, str(NOW_S), gpu="H100", gpus=8)))


def test_the_supply_log_says_what_is_under_way_and_what_is_refused(tmp_path: Path) -> None:
    log = SupplyLog(tmp_path / "supply.jsonl")

    def happened(what: str, request: str, ago_s: float) -> None:
        log.append(
            SupplyRecord(
                at_s=NOW_S - ago_s, request=request, happened=Happened(what), cloud="gcp", region="r",
                machine="m", purchase=Purchase.SPOT, gpu="L4",
            )
        )  # fmt: skip

    happened("asked", "a", 300)
    happened("asked", "b", 200)
    happened("failed", "b", 10)
    (pool,) = planned_for(written(tmp_path, supply_log="supply.jsonl")).problem.pools
    assert (pool.outstanding, pool.supply) == (1, 0)
    assert 0.5 < sum(pending.machines for pending in pool.pending) < 1
    assert pool.supply_per_h == pytest.approx(60)
    with pytest.raises(InvalidInput, match="no supply log"):
        planned_for(written(tmp_path, supply_log="none.jsonl"))


def test_quota_zero_asks_for_nothing(tmp_path: Path) -> None:
    report = plan_report(planned_for(written(tmp_path, pools=[{**POOL, "quota": 0}])))
    assert report.pools[0].ask == 0
    assert report.demand[0].missing == 2


def test_a_demand_that_is_new_says_so(tmp_path: Path) -> None:
    (forecast,) = planned_for(written(tmp_path)).forecasts
    assert forecast.basis is Basis.NEW
