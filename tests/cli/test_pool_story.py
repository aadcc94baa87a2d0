"""``glowplug pool story``: what it prints, draws and refuses."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from .conftest import Glowplug

EXAMPLE = Path(__file__).parents[2] / "examples" / "story" / "story.yaml"


def written(folder: Path) -> Path:
    def stated(seconds: float, kind: str = "published") -> dict[str, object]:
        return {"kind": kind, "seconds": seconds, "source": "a page"}

    stages = [
        {"name": "rent", "layer": "pools", "without": stated(600), "with": [stated(6, "measured_elsewhere")]},
        {"name": "image", "layer": "lazy images", "without": stated(300), "with": [stated(4)]},
    ]
    file = folder / "story.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "title": "Our story", "draws": 100, "stages": stages}))
    return file


def test_it_says_what_each_layer_saves_and_where_the_seconds_come_from(
    glowplug: Glowplug, tmp_path: Path
) -> None:
    picture = tmp_path / "cdf.svg"
    result = glowplug("pool", "story", str(written(tmp_path)), "--svg", str(picture))
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["rent", "pools", "600", "s", "6.0", "s", "6.0", "s", "594", "s", "66.7%"] in lines
    assert ["baseline", *["900", "s"] * 4, "1x"] in lines
    assert ["+", "lazy", "images", *["10", "s"] * 4, "90x"] in lines
    assert "rent, with: measured elsewhere: a page" in result.stdout
    assert "○ baseline" in result.stdout
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.nightly
def test_the_example_begins_at_2000_s_and_says_which_figures_are_measured_and_which_are_not(
    glowplug: Glowplug,
) -> None:
    """Nightly: half a minute of simulation."""
    found = json.loads(glowplug("pool", "story", str(EXAMPLE), "--json").stdout)
    first, last = found["rungs"][0], found["rungs"][-1]
    assert first["spread"]["p50_s"] == first["spread"]["p99_s"] == 2_000
    assert last["faster"] > 20
    words = [line["with_from"].partition(":")[0] for line in found["stages"]]
    assert words == ["simulated", "measured", "measured", "published"]
    assert sum(line["share"] for line in found["stages"]) == pytest.approx(1.0)


def test_json_has_every_draw(glowplug: Glowplug, tmp_path: Path) -> None:
    found = json.loads(glowplug("pool", "story", str(written(tmp_path)), "--json").stdout)
    assert (found["version"], found["draws"]) == (1, 100)
    assert [len(rung["seconds"]) for rung in found["rungs"]] == [100, 100, 100]
    assert found["stages"][0]["with_layer"]["mean_s"] == 6.0


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_simulated(
    glowplug: Glowplug, tmp_path: Path
) -> None:
    result = glowplug("pool", "story", str(written(tmp_path)), "--svg", str(tmp_path / "cdf.txt"))
    assert result.exit_code == 1
    assert ".svg" in result.stderr
