"""Solvers are asked only when something changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.pool.program.problems import with_demand, worked_example

from glowplug.pool.planner import solving
from glowplug.pool.planner.solving import Solvers


class Counted:
    """How often whole plans were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self._solve = solving.solve_whole
        monkeypatch.setattr(solving, "solve_whole", self)

    def __call__(self, *arguments: object) -> object:
        self.times += 1
        return self._solve(*arguments)  # type: ignore[arg-type]


def test_the_same_problem_again_has_the_same_plan_without_a_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, solvers = Counted(monkeypatch), Solvers()
    first, again = solvers(worked_example(), 5.0), solvers(worked_example(), 5.0)
    assert counted.times == 1
    assert again.whole.ask.tolist() == first.whole.ask.tolist()
    assert np.array_equal(again.relaxed.scarcity_usd_per_gpu_h, first.relaxed.scarcity_usd_per_gpu_h)
    more = solvers(with_demand(worked_example(), 0, 1, 1.0), 5.0)
    assert more.whole.ask.tolist() != again.whole.ask.tolist()
    assert counted.times == 2


def test_a_plan_says_what_it_was_asked_now(monkeypatch: pytest.MonkeyPatch) -> None:
    solvers, problem = Solvers(), worked_example()
    solvers(problem, 5.0)
    renamed = replace(problem, pools=tuple(replace(pool, domain="moved") for pool in problem.pools))
    assert {pool.failure_domain for pool in solvers(renamed, 5.0).whole.problem.pools} == {"moved"}
