"""The whole story: by hand where every figure is one number, and from records and a simulation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from glowplug.simulator.story import tell_story
from glowplug.simulator.story_file import Stated, StoryFile, read_story_file
from glowplug.types.errors import InvalidInput

from .worlds import logged, scenario_data

EXAMPLE = Path(__file__).parents[2] / "examples" / "story" / "story.yaml"


def published(seconds: Any) -> dict[str, Any]:
    return {"kind": "published", "seconds": seconds, "source": "somebody's page"}


def measured(*stages: str, path: str = "cpu_snapshot", **changes: Any) -> dict[str, Any]:
    return {"kind": "measured", "records": "starts.json", "path": path, "stages": list(stages), **changes}


def stage(name: str, without: Any, *with_layer: Any) -> dict[str, Any]:
    return {"name": name, "layer": f"{name} layer", "without": without, "with": list(with_layer)}


def story(*stages: dict[str, Any], **changes: Any) -> StoryFile:
    return StoryFile.model_validate({"version": 1, "title": "t", "stages": list(stages), **changes})


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}", "app": "chat", "server": "web", "deployment_id": "v", "replica_id": "x",
        "node": "n", "path": "cpu_snapshot", "outcome": "answered", "started_at": 1.0, "total_s": 1.0,
        "stages_s": {"mount": 0.1, "host_init": float(number)}, **changes,
    }  # fmt: skip


def records(folder: Path, data: Any) -> None:
    (folder / "starts.json").write_text(json.dumps(data))


def test_layers_are_added_one_after_the_other_and_each_ones_share_is_what_it_saves(tmp_path: Path) -> None:
    found = tell_story(
        story(
            stage("rent", published(600), published(0)),
            stage("image", published(300), published(2), published(3)),
            stage("init", published(600), published(600)),
        ),
        tmp_path,
    )
    assert [rung.layers for rung in found.rungs] == [
        "baseline", "+ rent layer", "+ image layer", "+ init layer"
    ]  # fmt: skip
    assert [rung.spread.mean_s for rung in found.rungs] == pytest.approx([1500, 900, 605, 605])
    assert [line.saved_s for line in found.stages] == pytest.approx([600, 295, 0])
    assert [line.share for line in found.stages] == pytest.approx([600 / 895, 295 / 895, 0])
    assert found.rungs[-1].faster == pytest.approx(1500 / 605)
    assert found.stages[1].with_from == "published: somebody's page; published: somebody's page"


def test_what_is_stated_as_quantiles_is_drawn_from_them_and_apart_for_each_stage(tmp_path: Path) -> None:
    table = {0: 100.0, 1: 200.0}
    found = tell_story(
        story(stage("a", published(table), published(0)), stage("b", published(table), published(0))),
        tmp_path,
    )
    assert found.stages[0].without.p50_s == pytest.approx(150, rel=0.05)
    both = found.rungs[0].spread
    assert both.p99_s < 200 + 190, "two draws, not one twice"
    assert both.mean_s == pytest.approx(300, rel=0.03)


def test_stages_of_the_same_records_are_those_of_the_same_starts(tmp_path: Path) -> None:
    """Host and device take 100 s together in each start: had they been drawn apart, the sum would vary."""
    split = [record(n, stages_s={"host_init": n, "device_init": 100.0 - n}) for n in range(0, 100, 5)]
    records(tmp_path, split)
    found = tell_story(
        story(
            stage("host", published(600), measured("host_init")),
            stage("device", published(500), measured("device_init")),
        ),
        tmp_path,
    )
    last = found.rungs[-1].spread
    assert (last.p50_s, last.p99_s) == (pytest.approx(100.0), pytest.approx(100.0))
    assert found.stages[0].with_layer.p99_s > 80
    assert (
        "measured: host_init of 20 starts (any app, cpu_snapshot) in starts.json" in found.stages[0].with_from
    )


def test_only_answered_starts_by_the_path_and_of_the_app_count(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"path": "cold"}, {"outcome": "failed"}, {"app": "other"}]
    others = [record(500, **change) for change in wrong for _ in range(20)]
    records(tmp_path, {"results": [{"record": record(7)} for _ in range(10)], "more": {"all": others}})
    found = tell_story(story(stage("host", published(600), measured("host_init", app="chat"))), tmp_path)
    assert found.stages[0].with_layer.p99_s == pytest.approx(7.0)


def test_a_benchmarks_lines_are_read_as_well(tmp_path: Path) -> None:
    lines = [json.dumps({"case": "restored", "record": record(7)})] * 10 + [json.dumps({"note": "no record"})]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n")
    figure = measured("mount", records="samples.jsonl")
    found = tell_story(story(stage("image", published(300), figure)), tmp_path)
    assert found.stages[0].with_layer.p50_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("data", "figure", "words"),
    [
        ([record(1)] * 9, measured("host_init"), "9 answered starts"),
        ([record(1)] * 10, measured("device_init"), "has the stage device_init"),
        ([record(1, outcome="odd")] * 10, measured("host_init"), "one of its records is wrong"),
        (None, measured("host_init"), "cannot be read as cold starts"),
        ([], {"kind": "simulated", "scenario": "no.yaml", "policy": "x"}, "cannot be read"),
    ],
)
def test_what_is_not_there_is_said_with_its_file(tmp_path: Path, data: Any, figure: Any, words: str) -> None:
    if data is not None:
        records(tmp_path, data)
    with pytest.raises(InvalidInput, match=words):
        tell_story(story(stage("x", published(1), figure)), tmp_path)


def test_provisioning_is_what_replicas_wait_for_machines_in_a_simulation(tmp_path: Path) -> None:
    """Two requests far apart: each replica waits for the lead time of a machine."""
    app = logged(tmp_path, [(0, 5), (3_000, 5)])
    (tmp_path / "world.yaml").write_text(yaml.safe_dump(scenario_data([app], hours=1.5)))
    figure = {"kind": "simulated", "scenario": "world.yaml", "policy": "ttl 60 s"}
    found = tell_story(story(stage("rent", published(600), figure)), tmp_path)
    (line,) = found.stages
    assert (line.with_layer.p50_s, line.with_layer.p99_s) == (pytest.approx(100.0), pytest.approx(100.0))
    assert "simulated: 2 starts of world.yaml under 'ttl 60 s', 0% found a machine ready" in line.with_from
    with pytest.raises(InvalidInput, match="no policy 'magic'"):
        tell_story(story(stage("rent", published(600), {**figure, "policy": "magic"})), tmp_path)


def test_the_same_seed_tells_the_same_story(tmp_path: Path) -> None:
    records(tmp_path, [record(n) for n in range(40)])
    file = story(stage("host", published({0: 1.0, 1: 9.0}), measured("host_init", "mount")), seed=3)
    assert tell_story(file, tmp_path) == tell_story(file, tmp_path)
    other = file.model_copy(update={"seed": 4})
    assert tell_story(other, tmp_path).rungs[1].seconds != tell_story(file, tmp_path).rungs[1].seconds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": []}, "stages"),
        ({"stages": [stage("a", {"kind": "published", "seconds": 1}, published(1))]}, "source"),
        ({"stages": [stage("a", {"kind": "guessed", "seconds": 1}, published(1))]}, "guessed"),
        ({"stages": [stage("a", published(-1), published(1))]}, "seconds"),
        ({"stages": [stage("a", published(1), published(1))] * 2}, "two stages have one name"),
        ({"stages": [stage("a", published(1))]}, "with"),
        ({"draws": 1}, "draws"),
    ],
)
def test_a_figure_without_its_source_is_no_figure(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    data = {"version": 1, "title": "t", "stages": [stage("a", published(1), published(1))], **changes}
    (tmp_path / "story.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InvalidInput) as raised:
        read_story_file(tmp_path / "story.yaml")
    assert words in f"{raised.value} {raised.value.details}"


def test_the_example_says_what_to_type_and_its_baseline_is_the_published_one() -> None:
    file = read_story_file(EXAMPLE)
    assert "glowplug pool story examples/story/story.yaml" in EXAMPLE.read_text()
    assert [stage.without.kind for stage in file.stages] == ["published"] * 4
    baseline = [stage.without.seconds for stage in file.stages if isinstance(stage.without, Stated)]
    assert baseline == [600, 300, 600, 500]
