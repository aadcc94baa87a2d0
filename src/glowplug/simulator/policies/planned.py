"""Machines by the pools' planner, unchanged: it is shown what a provider would list, and what it wants is
done.

Every call to a provider is answered at the next step. Machines are found fit, of which it hears sooner, as
its loop would. It is told the truth about nothing: lead times, refusals and interruptions it learns from what
happens to its requests.
"""

from __future__ import annotations

from glowplug.pool.market.prices import PriceBook
from glowplug.pool.plan_file import PlanFile
from glowplug.pool.planner.decision import Decision
from glowplug.pool.planner.observation import Answer, Observation, Outcome
from glowplug.pool.planner.planner import Planner
from glowplug.pool.planner.state import FleetState
from glowplug.pool.providers.port import Verdict
from glowplug.simulator.policies.rule import FLEET, Actions, Seen
from glowplug.simulator.scenario_file import DemandSource

_DONE = Answer(Outcome.DONE)


class PlannedMachines:
    """One planner, and what it decided last. ``sources``: how often each source of targets was used."""

    works_at_once = False

    def __init__(self, file: PlanFile, prices: PriceBook, seed: int, demand_from: DemandSource) -> None:
        self._demand_from: DemandSource = demand_from
        self._planner = Planner(file, FleetState(fleet=FLEET, nonce=f"s{seed}"))
        self._prices = prices
        self._last: Decision | None = None
        self._run = file.run
        self.every_s = file.run.every_s
        self.sources: dict[str, int] = {}

    def step(self, now_s: float, seen: Seen) -> Actions:
        """One step of the planner."""
        last = self._last
        observation = Observation(
            listings=seen.listings(),
            demand=seen.demand(self._demand_from),
            prices=self._prices,
            requested={} if last is None else {order.id: _DONE for order in last.requests},
            cancelled={} if last is None else dict.fromkeys(last.cancellations, _DONE),
            terminated={} if last is None else dict.fromkeys(last.terminations, _DONE),
            health={} if last is None else dict.fromkeys(last.check, Verdict(is_fit=True)),
            joined={} if last is None else dict.fromkeys(last.join, _DONE),
            worth=seen.busy_gpus(),
            # A log says nothing of those who still wait.
            waiting_slot_s=seen.waiting_slot_s() if self._demand_from == "live" else (),
        )
        self._last = decision = self._planner.step(now_s, observation)
        self.every_s = self._run.sooner_s if decision.check or decision.join else self._run.every_s
        self.sources[decision.source.value] = self.sources.get(decision.source.value, 0) + 1
        return Actions(
            decision.requests,
            decision.cancellations,
            decision.terminations,
            works=decision.ready,
            drains=decision.draining,
        )
