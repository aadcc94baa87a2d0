"""``glowplug costs``: a table, USD where prices are known, JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Glowplug
from .fake_control import FakeControl

POOLS = """
version: 1
pools:
  - {cloud: gcp, region: r, machine: dear, purchase: spot, gpu: L4, gpus: 2, price_usd_per_h: 4.0, quota: 1}
  - {cloud: gcp, region: r, machine: cheap, purchase: spot, gpu: L4, gpus: 1, price_usd_per_h: 0.5, quota: 1}
demand: [{gpu: L4}]
"""


def span(server: str, gpu: str = "L4", **seconds: float) -> dict[str, Any]:
    return {
        "app": "chat", "server": server, "gpu": gpu, "gpus": 2 if gpu else 0, "starts_at": 1_700_000_100.0,
        **seconds,
    }  # fmt: skip


@pytest.fixture
def pools(tmp_path: Path) -> str:
    path = tmp_path / "pools.yaml"
    path.write_text(POOLS)
    return str(path)


def test_seconds_are_added_up_and_cost_what_the_cheapest_pool_does(
    glowplug: Glowplug, control: FakeControl, pools: str
) -> None:
    control.usage = [
        span("vllm", serving_s=1_800.0, parked_s=99_000.0),
        span("vllm", starting_s=600.0, idle_s=1_200.0),
        span("index", gpu="", serving_s=60.0),
    ]
    result = glowplug("costs", "chat", "--since", "2h", "--pools", pools, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    index, vllm = report["servers"]
    assert control.asked[-1].startswith("GET /api/v1/usage?")
    assert "app=chat" in control.asked[-1]
    assert "since_s=7200" in control.asked[-1]
    # An hour of two GPUs at 0.50 USD; always on, it were two.
    assert (vllm["usd"], vllm["saved_usd"], vllm["utilisation"]) == (1.0, 1.0, 0.5)
    assert (index["usd"], index["serving_s"]) == (None, 60.0)
    assert report["total_usd"] == 1.0
    table = glowplug("costs", "--pools", pools).stdout
    assert "chat/vllm" in table
    assert "27.50 h" in table
    assert "1.00 USD for the GPUs" in table


def test_without_prices_there_are_hours_only(glowplug: Glowplug, control: FakeControl) -> None:
    control.usage = [span("vllm", serving_s=3_600.0)]
    result = glowplug("costs")
    assert "1.00 h" in result.stdout
    assert "--pools" in result.stderr
    control.usage = []
    assert "No replica was seen" in glowplug("costs").stderr


def test_a_pool_file_that_is_none_is_an_error(glowplug: Glowplug) -> None:
    result = glowplug("costs", "--pools", "none.yaml")
    assert result.exit_code == 1
    assert "cannot be read as a pool file" in result.stderr
