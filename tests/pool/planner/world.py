"""A planner in a world of paper machines on a clock that moves when told to: what the loop does with threads
and files, done here one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.market.prices import PriceBook
from glowplug.pool.market.supply_log import SupplyRecord
from glowplug.pool.plan_file import PlanFile
from glowplug.pool.planner.decision import Decision, Event, EventKind
from glowplug.pool.planner.observation import Answer, Observation, Outcome
from glowplug.pool.planner.planner import Planner
from glowplug.pool.planner.solving import PlanMaker, Solved, Solvers
from glowplug.pool.planner.state import FleetState, HeldMachine, Standing
from glowplug.pool.planner.workforce import NodeToken
from glowplug.pool.program.problem import Problem
from glowplug.pool.providers.port import RequestRefused, Sighting, Verdict
from glowplug.pool.providers.simulated import Faults, Market, SimulatedInspector, SimulatedProvider
from glowplug.types.clock import ManualClock
from glowplug.types.errors import DeadlineExceeded, GlowplugError

START_S = 1_700_000_000.0
STEP_S = 15.0

POOL: dict[str, Any] = {
    "cloud": "paper", "region": "r", "machine": "m", "purchase": "on_demand", "gpu": "L4", "gpus": 1,
    "price_usd_per_h": 2.0, "quota": 20, "lead_time_s": 60.0, "interruptions_per_h": 0.0, "min_rental_s": 0.0,
}  # fmt: skip
DEMAND: dict[str, Any] = {"gpu": "L4", "floor": 0}


def file_of(run: dict[str, Any] | None = None, **changes: Any) -> PlanFile:
    """A pool file: one pool of one GPU, no demand but what a test gives."""
    return PlanFile.model_validate(
        {
            "version": 1,
            "horizon": {"periods": 8, "first_s": 15, "last_s": 600, "length_s": 1_800},
            "budget_usd_per_h": 100.0,
            "pools": [POOL],
            "demand": [DEMAND],
            "run": {"fleet": "test", "release_after_s": 60.0, "solve_s": 100.0, **(run or {})},
            **changes,
        }
    )


class World:
    """Steps a planner, and makes the calls that it wants."""

    def __init__(
        self,
        file: PlanFile | None = None,
        market: Market | None = None,
        faults: Faults | None = None,
        seed: int = 0,
        make_plan: PlanMaker | None = None,
    ) -> None:
        self.file = file_of() if file is None else file
        self.clock = ManualClock(START_S)
        self.cloud = SimulatedProvider(
            "paper", self.clock.wall, market or Market(lead_time_spread=0.0), faults, seed
        )
        self.make_plan = make_plan or Solvers()
        self.planner = Planner(self.file, FleetState("test", "0123abcd"), make_plan=self.make_plan)
        self.prices = PriceBook()
        self.slots: list[list[float]] = [[] for _ in self.file.demand]
        self.worth: dict[str, float] = {}
        self.heard: frozenset[str] = frozenset()
        self.silent: frozenset[str] = frozenset()
        self.drained: frozenset[str] = frozenset()
        self.join_answer: Answer | None = Answer(Outcome.DONE)
        """To machines that are to become nodes; without one the control plane does not answer."""
        self.events: list[Event] = []
        self.records: list[SupplyRecord] = []
        self.is_silent = False
        self.hardware = ""
        self._answers: dict[str, dict[str, Any]] = {}
        self._forget_answers()

    # -- a step ----------------------------------------------------------------------------------------------

    def step(
        self, *needed: float, seconds: float = STEP_S, acts: bool = True, jumped_s: float = 0.0
    ) -> Decision:
        """Let time go by with so many slots needed, and step."""
        self.clock.advance(max(seconds, 0.0))
        for place, series in enumerate(self.slots):
            series.append(needed[place] if place < len(needed) else (series[-1] if series else 0.0))
        decision = self.planner.step(self.clock.wall(), self.seen(jumped_s))
        self.events += decision.events
        self.records += decision.supply
        if acts:
            self.act(decision)
        return decision

    def steps(self, count: int, *needed: float) -> Decision:
        """Many, and the last one's decision."""
        for _ in range(count):
            decision = self.step(*needed)
        return decision

    def until(self, is_met: Callable[[], bool], *needed: float, steps: int = 200) -> None:
        """Step until it is so."""
        for _ in range(steps):
            if is_met():
                return
            self.step(*needed)
        raise AssertionError(f"not after {steps} steps: {self.events[-10:]}")

    def seen(self, jumped_s: float = 0.0) -> Observation:
        """What there is to be seen."""
        answers = self._answers
        self._forget_answers()
        listings: dict[str, tuple[Sighting, ...]] = {}
        if not self.is_silent:
            with contextlib.suppress(GlowplugError):
                listings["paper"] = tuple(
                    replace(sighting, hardware=self.hardware)
                    for sighting in self.cloud.machines("test", 60.0)
                )
        now_s = self.clock.wall()
        demand = tuple(
            DemandSeries(now_s - STEP_S * len(series), STEP_S, np.array(series)) for series in self.slots
        )
        return Observation(
            listings, demand, self.prices, answers["request"], answers["cancel"], answers["terminate"],
            answers["health"], self.heard, self.worth, answers["join"], self.silent, self.drained,
            jumped_s=jumped_s,
        )  # fmt: skip

    def act(self, decision: Decision) -> None:
        """Make the calls."""
        for order in decision.requests:
            self._call("request", order.id, lambda order=order: self.cloud.request(order, 60.0))
        for name in decision.cancellations:
            self._call("cancel", name, lambda name=name: self.cloud.cancel(name, 60.0))
        for name in decision.terminations:
            self._call("terminate", name, lambda name=name: self.cloud.terminate(name, 60.0))
        inspector = SimulatedInspector(self.cloud)
        for name in decision.check:
            verdict: Verdict = inspector.inspect(name, "", "L4", 1, 60.0)
            self._answers["health"][name] = verdict
        for name in decision.join:
            if self.join_answer is not None:
                self._answers["join"][name] = self.join_answer

    def restart(self, state: FleetState | None = None) -> None:
        """The planner dies; another goes on from what was written down. Calls' answers die with it."""
        written = (state or self.planner.state).to_json()
        self.planner = Planner(self.file, FleetState.from_json(written), self.records, self.make_plan)
        self._forget_answers()

    def _call(self, what: str, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except RequestRefused as refusal:
            self._answers[what][name] = Answer(Outcome.REFUSED, refusal.message)
        except GlowplugError:
            return
        else:
            self._answers[what][name] = Answer(Outcome.DONE)

    def _forget_answers(self) -> None:
        self._answers = {"request": {}, "cancel": {}, "terminate": {}, "health": {}, "join": {}}

    # -- what there is ---------------------------------------------------------------------------------------

    def standing(self, *wanted: Standing) -> list[HeldMachine]:
        """Machines that stand so."""
        return [held for held in self.planner.state.machines.values() if held.standing in wanted]

    @property
    def ready(self) -> int:
        """Machines that take work."""
        return len(self.standing(Standing.READY))

    def told(self, kind: EventKind) -> list[Event]:
        """Events of a kind so far."""
        return [event for event in self.events if event.kind is kind]

    @property
    def billed_usd_per_h(self) -> float:
        """What the cloud takes for everything that exists, whatever the planner knows of it."""
        prices = {entry.id: entry.price_usd_per_h or 0.0 for entry in self.file.pools}
        return sum(prices.get(paper.pool, 0.0) for paper in self.cloud.existing())


class NoNodes:
    """A control plane that nothing joins, and that drains nothing."""

    def token(self, ttl_s: float) -> NodeToken:
        raise AssertionError("nothing is to join")

    def revoke(self, token: NodeToken) -> None:
        raise AssertionError("nothing is to join")

    def drain(self, node: str, *, undo: bool) -> None:
        raise AssertionError(f"{node} is none of ours")

    def remove(self, node: str) -> None:
        raise AssertionError(f"{node} is none of ours")


class BrokenSolver:
    """Fails while :attr:`is_broken`."""

    def __init__(self) -> None:
        self.is_broken = False
        self._solvers = Solvers()

    def __call__(self, problem: Problem, timeout_s: float) -> Solved:
        """As a solver whose time is over."""
        if self.is_broken:
            raise DeadlineExceeded(
                f"no plan after {timeout_s:g} s.", remedy="The last plan stands.", stage="solve"
            )
        return self._solvers(problem, timeout_s)
