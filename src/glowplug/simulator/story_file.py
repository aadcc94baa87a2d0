"""The file of ``glowplug pool story``: the stages from a machine that is needed to an answer, each as it was
without its layer and as it is with it.

YAML, checked field by field; paths are relative to the file. No figure comes from anywhere but the file, and
each says what it is: published by somebody, measured (here, from records; or elsewhere, stated with its
source), or simulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from glowplug.pool.yaml_file import read_yaml
from glowplug.simulator.quantile_table import QuantileTable
from glowplug.simulator.scenario_file import NotNegative, Part
from glowplug.types.replica import Stage, StartPath

Text = Annotated[str, Field(min_length=1, max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=60)]


class Stated(Part):
    """Seconds that somebody states: one number, or a table of quantiles; ``source`` says who, and where."""

    kind: Literal["published", "measured_elsewhere"]
    seconds: NotNegative | QuantileTable
    source: Text


class Measured(Part):
    """The sum of some stages of recorded cold starts, those by ``path`` that were answered.

    ``records``: what ``glowplug coldstarts --json`` printed, or the JSON (or JSON lines) of a benchmark that
    has such records in it.
    """

    kind: Literal["measured"]
    records: Path
    path: StartPath
    stages: tuple[Stage, ...] = Field(min_length=1)
    app: str | None = None


class Simulated(Part):
    """How long replicas wait for a machine in a scenario of ``glowplug pool simulate``, under one policy."""

    kind: Literal["simulated"]
    scenario: Path
    policy: Text
    seeds: int = Field(default=1, ge=1, le=100)


Figure = Annotated[Stated | Measured | Simulated, Field(discriminator="kind")]


class StoryStage(Part):
    """One stage, and the layer that shortens it: ``with`` it the stage takes the sum of these figures."""

    name: Name
    layer: Name
    without: Figure
    with_layer: tuple[Figure, ...] = Field(alias="with", min_length=1, max_length=5)


class StoryFile(Part):
    """All of it. The layers are added in the order of their stages."""

    version: Literal[1]
    title: Name
    draws: int = Field(default=2_000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0)
    stages: tuple[StoryStage, ...] = Field(min_length=1, max_length=20)

    @model_validator(mode="after")
    def _names_are_unique(self) -> StoryFile:
        for what in ("name", "layer"):
            names = [getattr(stage, what) for stage in self.stages]
            if len(set(names)) < len(names):
                raise ValueError(f"two stages have one {what}")
        return self


def read_story_file(path: Path) -> StoryFile:
    """Read and check it. Raises InvalidInput that names every field that is wrong."""
    return read_yaml(path, StoryFile, what="story", page="docs/simulator.md", example="examples/story/")
