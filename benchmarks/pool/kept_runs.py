"""Runs of policies in worlds, kept in a file as they end: a comparison of hours is made in pieces, on as many
processors as there are.

One JSON object a line. What the file has is not run again, so it belongs to one state of the code: begin a
new one when that changes.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from glowplug.simulator.bound import clairvoyant
from glowplug.simulator.policies.choice import policies
from glowplug.simulator.result import RunResult
from glowplug.simulator.run import run
from glowplug.simulator.scenario import Scenario, World
from glowplug.simulator.scenario_file import PolicyEntry, ScenarioFile

_NICE = 10
_ENTRY: TypeAdapter[PolicyEntry] = TypeAdapter(PolicyEntry)


@dataclass(frozen=True)
class Task:
    """One policy in one world. ``scenario`` is JSON of a scenario file, whose own policies are not looked at,
    ``policy`` of an entry of its ``policies`` that makes one; ``name``: what its runs are called in the
    tables, and ``family`` their curve.
    """

    case: str
    name: str
    family: str
    seed: int
    scenario: str
    policy: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is kept by."""
        return self.case, self.name, self.seed


class KeptRun(BaseModel):
    """A line of the file. ``least_usd``, ``least_peak_gpus``: the bound when nobody waits."""

    case: str
    hours: float
    least_usd: float
    least_peak_gpus: int
    result: RunResult

    @property
    def key(self) -> tuple[str, str, int]:
        """As of the task."""
        return self.case, self.result.policy, self.result.seed


def kept(path: Path) -> dict[tuple[str, str, int], KeptRun]:
    """What the file has; a line that was cut off is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            one = KeptRun.model_validate(json.loads(line))
        except ValueError:
            continue
        found[one.key] = one
    return found


def run_missing(
    path: Path, folder: Path, tasks: Sequence[Task], processes: int, for_s: float
) -> tuple[int, int]:
    """Run what the file lacks, and begin nothing after ``for_s``. How many were run, and how many are left.

    ``folder``: what scenarios refer to lies there.
    """
    known = kept(path)
    missing = [task for task in tasks if task.key not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with path.open("a") as file, ProcessPoolExecutor(processes, initializer=_be_nice) as pool:
        for one in _as_they_end(pool, folder, missing, processes, time.monotonic() + for_s):
            file.write(one.model_dump_json() + "\n")
            file.flush()
            done += 1
    return done, len(missing) - done


def _as_they_end(
    pool: ProcessPoolExecutor, folder: Path, tasks: Iterable[Task], processes: int, until_s: float
) -> Iterator[KeptRun]:
    waiting = iter(tasks)
    running: set[Future[KeptRun]] = set()
    while True:
        room = processes - len(running) if time.monotonic() < until_s else 0
        running |= {pool.submit(run_one, task, folder) for task in itertools.islice(waiting, room)}
        if not running:
            return
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            yield future.result()


def run_one(task: Task, folder: Path) -> KeptRun:
    """In this process."""
    (policy,) = policies([_ENTRY.validate_json(task.policy)])
    world = _world(task.scenario, folder, task.seed)
    least = clairvoyant(world)
    result = run(world, policy).model_copy(update={"policy": task.name, "family": task.family})
    return KeptRun(
        case=task.case, hours=world.hours, least_usd=least.usd,
        least_peak_gpus=sum(least.peak_gpus.values()), result=result,
    )  # fmt: skip


@lru_cache(maxsize=2)
def _world(scenario: str, folder: Path, seed: int) -> World:
    return Scenario(ScenarioFile.model_validate_json(scenario), folder).world(seed)


def _be_nice() -> None:
    os.nice(_NICE)
