"""The whole story: from a machine that has to be rented to an answer, one layer after the other.

Every start is drawn many times: for each stage one of its figures' values, and of two stages that are taken
from the same records those of the same start, so that what belongs together stays together. Stages add up, so
what a layer saves does not depend on the order in which layers are added.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from glowplug.observe.quantiles import quantile
from glowplug.simulator.policies.choice import policies
from glowplug.simulator.quantile_table import Floats, draw
from glowplug.simulator.run import run
from glowplug.simulator.scenario import Scenario
from glowplug.simulator.scenario_file import read_scenario_file
from glowplug.simulator.story_file import Figure, Measured, Simulated, Stated, StoryFile
from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.errors import InvalidInput

_LEAST_STARTS = 10
_RECORD = TypeAdapter(ColdStartRecord)
_KINDS = {"published": "published", "measured_elsewhere": "measured elsewhere"}

Tell = Callable[[str, float | None], None]


class Spread(BaseModel):
    """Of many draws."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


class StageLine(BaseModel):
    """One stage without its layer and with it. ``share``: of all that is saved, how much this layer saves.

    ``without_from``, ``with_from``: where the seconds come from, in words.
    """

    stage: str
    layer: str
    without: Spread
    without_from: str
    with_layer: Spread
    with_from: str
    saved_s: float
    share: float


class Rung(BaseModel):
    """A start with the layers so far. ``seconds``: every draw, ascending."""

    layers: str
    spread: Spread
    faster: float
    """Than the baseline, mean over mean."""
    seconds: list[float]


class Story(BaseModel):
    """All of it: ``rungs`` begins with the baseline, and ends with all layers."""

    version: Literal[1] = 1
    title: str
    draws: int
    stages: list[StageLine]
    rungs: list[Rung]


@dataclass(frozen=True)
class _Drawn:
    seconds: Floats
    words: str


def tell_story(file: StoryFile, folder: Path, tell: Tell = lambda text, share: None) -> Story:
    """Draw it. Raises InvalidInput for what the file refers to and is not there, or is too little."""
    source = _Source(folder, file.draws, file.seed, tell)
    without = [source.draw(index, stage.without) for index, stage in enumerate(file.stages)]
    with_layer = [
        _sum([source.draw(index, figure) for figure in stage.with_layer])
        for index, stage in enumerate(file.stages)
    ]
    saved_s = [float(a.seconds.mean() - b.seconds.mean()) for a, b in zip(without, with_layer, strict=True)]
    lines = [
        StageLine(
            stage=stage.name, layer=stage.layer,
            without=_spread(before.seconds), without_from=before.words,
            with_layer=_spread(after.seconds), with_from=after.words,
            saved_s=saved, share=saved / math.fsum(saved_s) if math.fsum(saved_s) else 0.0,
        )
        for stage, before, after, saved in zip(file.stages, without, with_layer, saved_s, strict=True)
    ]  # fmt: skip
    return Story(title=file.title, draws=file.draws, stages=lines, rungs=_rungs(file, without, with_layer))


def _rungs(file: StoryFile, without: Sequence[_Drawn], with_layer: Sequence[_Drawn]) -> list[Rung]:
    rungs: list[Rung] = []
    for layers in range(len(file.stages) + 1):
        parts = [*with_layer[:layers], *without[layers:]]
        seconds = np.sort(np.sum([part.seconds for part in parts], axis=0))
        name = f"+ {file.stages[layers - 1].layer}" if layers else "baseline"
        mean_s = float(seconds.mean())
        faster = rungs[0].spread.mean_s / mean_s if rungs and mean_s > 0 else 1.0
        rungs.append(Rung(layers=name, spread=_spread(seconds), faster=faster, seconds=seconds.tolist()))
    return rungs


def _sum(drawn: Sequence[_Drawn]) -> _Drawn:
    return _Drawn(np.sum([one.seconds for one in drawn], axis=0), "; ".join(one.words for one in drawn))


def _spread(seconds: Floats) -> Spread:
    ordered = np.sort(seconds).tolist()
    p50_s, p90_s, p99_s = (quantile(ordered, q) for q in (0.5, 0.9, 0.99))
    return Spread(mean_s=math.fsum(ordered) / len(ordered), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


class _Source:
    """Draws figures. Those of the same records draw the same starts."""

    def __init__(self, folder: Path, draws: int, seed: int, tell: Tell) -> None:
        self._folder = folder
        self._draws = draws
        self._seed = seed
        self._tell = tell
        self._records: dict[Path, list[ColdStartRecord]] = {}

    def draw(self, stage: int, figure: Figure) -> _Drawn:
        """``stage``: its number, so that what is stated of two stages is drawn apart."""
        match figure:
            case Stated():
                return self._stated(stage, figure)
            case Measured():
                return self._measured(figure)
            case Simulated():
                return self._simulated(figure)

    def _uniform(self, *names: str) -> Floats:
        key = "/".join(names).encode()
        return np.random.default_rng([self._seed, *key]).random(self._draws)

    def _stated(self, stage: int, figure: Stated) -> _Drawn:
        words = f"{_KINDS[figure.kind]}: {figure.source}"
        if isinstance(figure.seconds, dict):
            return _Drawn(draw(figure.seconds, self._uniform("stated", str(stage))), words)
        return _Drawn(np.full(self._draws, figure.seconds), words)

    def _measured(self, figure: Measured) -> _Drawn:
        starts = [
            record
            for record in self._records_of(figure.records)
            if record.path is figure.path
            and record.outcome is Outcome.ANSWERED
            and figure.app in (None, record.app)
        ]
        named = f"{figure.app or 'any app'}, {figure.path.value}"
        if len(starts) < _LEAST_STARTS:
            raise InvalidInput(
                f"{figure.records} has {len(starts)} answered starts ({named}); {_LEAST_STARTS} are needed.",
                remedy="Record more, or state a figure with its source.",
                file=str(figure.records),
            )
        unknown = [stage for stage in figure.stages if not any(stage in start.stages_s for start in starts)]
        if unknown:
            raise InvalidInput(
                f"No start of {figure.records} ({named}) has the stage {unknown[0].value}.",
                remedy=f"They have: {', '.join(sorted({str(s) for one in starts for s in one.stages_s}))}.",
                file=str(figure.records),
            )
        sums = np.array([sum(one.stages_s.get(stage, 0.0) for stage in figure.stages) for one in starts])
        places = self._uniform("records", str(figure.records), named) * len(starts)
        words = f"measured: {'+'.join(figure.stages)} of {len(starts)} starts ({named}) in {figure.records}"
        return _Drawn(sums[places.astype(int)], words)

    def _records_of(self, records: Path) -> list[ColdStartRecord]:
        if records not in self._records:
            path = self._folder / records
            try:
                self._records[records] = list(_found_in(_parsed(path)))
            except (OSError, ValueError, RecursionError) as problem:
                raise InvalidInput(
                    f"{path} cannot be read as cold starts: {problem}.",
                    remedy="Write it with `glowplug coldstarts --json > FILE`.",
                    file=str(path),
                ) from problem
        return self._records[records]

    def _simulated(self, figure: Simulated) -> _Drawn:
        path = self._folder / figure.scenario
        found = read_scenario_file(path)
        scenario = Scenario(found, path.parent)
        chosen = [one for one in policies(found.policies) if one.name == figure.policy]
        if not chosen:
            names = ", ".join(one.name for one in policies(found.policies))
            raise InvalidInput(
                f"{path} has no policy {figure.policy!r}.", remedy=f"It has: {names}.", file=str(path)
            )
        waits_s: list[float] = []
        for seed in range(figure.seeds):
            text = f"{figure.scenario.name}, {figure.policy}, seed {seed}"

            def tell(share: float, text: str = text, seed: int = seed) -> None:
                self._tell(text, (seed + share) / figure.seeds)

            waits_s += run(scenario.world(seed), chosen[0], tell).place_waits_s
        if not waits_s:
            raise InvalidInput(
                f"In {path} no replica is started after the warm-up.",
                remedy="Simulate for longer.",
                file=str(path),
            )
        places = self._uniform("simulated", str(figure.scenario), figure.policy) * len(waits_s)
        at_once = sum(wait_s == 0 for wait_s in waits_s) / len(waits_s)
        words = (
            f"simulated: {len(waits_s)} starts of {figure.scenario} under {figure.policy!r}, "
            f"{at_once:.0%} found a machine ready"
        )
        return _Drawn(np.array(waits_s)[places.astype(int)], words)


def _parsed(path: Path) -> Any:
    """JSON, or a line of JSON each. Raises OSError, ValueError."""
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def _found_in(data: Any) -> Iterator[ColdStartRecord]:
    """Every record in a JSON document, wherever it is."""
    if isinstance(data, list):
        for item in data:
            yield from _found_in(item)
    elif isinstance(data, dict) and {"stages_s", "path", "outcome"} <= data.keys():
        try:
            yield _RECORD.validate_python(data)
        except ValidationError as problem:
            raise ValueError(f"one of its records is wrong: {problem.errors()[0]['msg']}") from problem
    elif isinstance(data, dict):
        for item in data.values():
            yield from _found_in(item)
