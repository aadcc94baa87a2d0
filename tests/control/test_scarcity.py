"""Scarcity prices of the pools' planner in what makes way: on GPUs, and for lack of memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.control.conftest import Control, app_spec, eventually
from tests.control.fake_agent import FakeAgent
from tests.control.test_gpu_turns import id_of, model, no_gpu
from tests.control.test_ladder import server

from glowplug.control.chips import is_alike
from glowplug.control.heat import weights
from glowplug.control.scarcity import NO_GPU, ScarcityPrices
from glowplug.pool.scarcity import STALE_S, ScarcityPrice, publish_prices
from glowplug.types.clock import ManualClock
from glowplug.types.spec import Resources

H100 = (ScarcityPrice("H100", 1, 2.0, 2.0), ScarcityPrice("H100", 4, 2.0, 8.0))
PRICED = 'glowplug_heat_steps_total{app="shop",server="%s",step="priced"}'


def publish(folder: Path, *prices: ScarcityPrice, at_s: float | None = None) -> None:
    folder.mkdir(exist_ok=True)
    publish_prices(folder, "fleet", time.time() if at_s is None else at_s, "plan", prices)


async def asked(control: Control, *names: str) -> None:
    for name in names:
        assert (await control.get(f"/shop/{name}/")).status_code == 200


@pytest.mark.parametrize(("age_s", "goes"), [(0.0, "wide"), (STALE_S + 60, "narrow")], ids=["fresh", "stale"])
async def test_of_idle_servers_the_one_that_saves_least_for_what_its_gpus_are_worth_makes_way(
    control: Control, agent: FakeAgent, age_s: float, goes: str
) -> None:
    """Three requests for four GPUs against two for one: by themselves three are more."""
    publish(control.state.pools, *H100, at_s=time.time() - age_s)
    await control.deploy(app_spec(model("wide", gpu="H100:4"), model("narrow"), model("new")))
    await asked(control, "wide", "wide", "wide", "narrow", "narrow")
    agent.refusals.append(no_gpu())
    await asked(control, "new")
    assert agent.parks == [(id_of(agent, goes), False)]
    assert await control.metric(PRICED % "wide") == (1 if goes == "wide" else 0)


@pytest.mark.parametrize("cpu_price", [(ScarcityPrice(NO_GPU, 1, 0.01, 0.01),), ()], ids=["priced", "not"])
async def test_for_lack_of_memory_who_starts_again_on_dear_gpus_stays_if_all_prices_are_known(
    control: Control, agent: FakeAgent, cpu_price: tuple[ScarcityPrice, ...]
) -> None:
    publish(control.state.pools, ScarcityPrice("H100", 1, 40.0, 40.0), *cpu_price)
    await control.deploy(app_spec(model("dear"), server("plain", scaledown_window_s=30)))
    await asked(control, "dear", "plain")
    agent.tell_memory(is_short=True)
    await eventually(lambda: agent.parks, "a step down")
    agent.tell_memory(is_short=False)
    assert agent.parks[0] == (id_of(agent, "plain" if cpu_price else "dear"), False)


# -- the rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "usd_per_h"),
    [
        ("H100", 2.0), ("H100:4", 8.0), ("H100:8", 16.0), ("H100:2", 4.0), ("H100-80GB", 2.0),
        ("L4", None), ("A100:2", 5.0), (None, 0.25), ("L40S", None),
    ],
)  # fmt: skip
def test_what_room_for_a_replica_is_worth(tmp_path: Path, gpu: str | None, usd_per_h: float | None) -> None:
    clock = ManualClock(1_000_000.0)
    more = [ScarcityPrice("A100", 4, 2.5, 10.0), ScarcityPrice("L40S", 1, 0.0, 0.0)]
    publish(tmp_path, *H100, *more, ScarcityPrice(NO_GPU, 1, 0.25, 0.25), at_s=clock.wall())
    assert ScarcityPrices(tmp_path, clock).of(Resources(gpu=gpu)) == usd_per_h


def test_prices_are_read_again_and_forgotten_when_nobody_plans_any_more(tmp_path: Path) -> None:
    clock = ManualClock(1_000_000.0)
    prices, wanted = ScarcityPrices(tmp_path, clock), Resources(gpu="H100")
    assert prices.of(wanted) is None
    publish(tmp_path, *H100, at_s=clock.wall())
    assert prices.of(wanted) is None, "it looked a moment ago"
    clock.advance(5.0)
    assert prices.of(wanted) == 2.0
    clock.advance(STALE_S + 1)
    assert prices.of(wanted) is None
    (tmp_path / "prices.json").write_text("nonsense")
    clock.advance(5.0)
    assert prices.of(wanted) is None


def test_a_price_for_no_gpus_is_not_ours(tmp_path: Path) -> None:
    clock = ManualClock(1_000_000.0)
    publish(tmp_path, *H100, at_s=clock.wall())
    file = tmp_path / "prices.json"
    file.write_text(file.read_text().replace('"gpus":4', '"gpus":0'))
    assert ScarcityPrices(tmp_path, clock).of(Resources(gpu="H100")) is None


@pytest.mark.parametrize(
    ("usd_per_h", "weighed"),
    [([2.0, 8.0], [2.0, 8.0]), ([2.0, None], [1.0, 1.0]), ([None], [1.0]), ([], [])],
)
def test_values_are_weighed_only_if_all_that_are_compared_can_be(
    usd_per_h: Any, weighed: list[float]
) -> None:
    assert weights(usd_per_h) == weighed


def test_chips_are_alike_by_their_words() -> None:
    assert is_alike("H100", "h100-80GB")
    assert not is_alike("H100", "H200")
    assert not is_alike("", "H100")
