"""``glowplug pool simulate``: the table, JSON, the picture, errors."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from .conftest import Glowplug

EXAMPLE = Path(__file__).parents[2] / "examples" / "pools" / "azure_llm.yaml"


def test_the_example_compares_policies_and_draws_the_frontier(glowplug: Glowplug, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.svg"
    result = glowplug(
        "pool", "simulate", str(EXAMPLE), "--policy", "ttl", "--policy", "buffer", "--plot", str(picture)
    )
    assert result.exit_code == 0
    assert "OVER BOUND" in result.stdout
    assert "ttl 60 s" in result.stdout
    assert "planner" not in result.stdout
    assert "clairvoyant bound" in result.stdout
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.nightly
def test_the_planner_runs_in_it_and_json_has_every_run(glowplug: Glowplug, tmp_path: Path) -> None:
    scenario = yaml.safe_load(EXAMPLE.read_text())
    scenario |= {"hours": 0.2, "warm_up_s": 120}
    for app in scenario["apps"]:
        app["trace"]["file"]["path"] = str(EXAMPLE.parent / app["trace"]["file"]["path"])
    for price in scenario["plan"]["prices"]:
        price["file"] = str(EXAMPLE.parent / price["file"])
    file = tmp_path / "short.yaml"
    file.write_text(yaml.safe_dump(scenario))
    result = glowplug(
        "pool",
        "simulate",
        str(file),
        "--policy",
        "planner log 0.8",
        "--policy",
        "ttl 60",
        "--seeds",
        "2",
        "--json",
    )
    found = json.loads(result.stdout)
    assert found["version"] == 1
    assert found["seeds"] == [0, 1]
    assert {line["policy"] for line in found["policies"]} == {"planner log 0.8", "ttl 60 s"}
    assert len(found["runs"]) == 4
    for run in found["runs"]:
        assert run["answered"] + run["lost"] == run["requests"]
        assert run["over_bound"] >= 1
        assert run["economics"]["rented_usd"] == pytest.approx(run["usd"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.yaml",), "cannot be read"),
        ((str(EXAMPLE), "--policy", "magic"), "No policy of the file begins with magic"),
        ((str(EXAMPLE), "--plot", "frontier.txt"), "cannot be written"),
    ],
)
def test_errors_say_what_to_do(glowplug: Glowplug, words: tuple[str, ...], said: str) -> None:
    result = glowplug("pool", "simulate", *words)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Remedy:" in result.stderr
