"""The planner, kept running: looks at the world, steps, writes the decision down, and only then acts on it.

Whatever fails here is told, counted and tried again in the next step; what ends the loop is a ledger that
cannot be written, or another leader. It is on nobody's request path: without it machines stay as they are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glowplug.pool.market.supply_log import Happened, SupplyLog, SupplyRecord
from glowplug.pool.plan_file import PlanFile
from glowplug.pool.planner.calls import CallLane, Ended, Key
from glowplug.pool.planner.decision import Decision, EventKind
from glowplug.pool.planner.inputs import Inputs, InputSource
from glowplug.pool.planner.joining import NodeJoiner
from glowplug.pool.planner.ledger import Ledger
from glowplug.pool.planner.machine_calls import MachineCalls
from glowplug.pool.planner.metrics import PoolMetrics
from glowplug.pool.planner.observation import Answer, Observation, Outcome
from glowplug.pool.planner.planner import Planner
from glowplug.pool.planner.solving import PlanMaker
from glowplug.pool.planner.state import FleetState, HeldMachine, Standing
from glowplug.pool.planner.workforce import Work, Workforce
from glowplug.pool.providers.port import RequestRefused, Sighting, Supplier
from glowplug.pool.report import report_of
from glowplug.pool.scarcity import publish_prices
from glowplug.types.clock import Clock
from glowplug.types.errors import GlowplugError, InvalidInput

SUPPLY_LOG_NAME = "supply.jsonl"
_JUMP_S = 5.0
_POLL_S = 0.1
_LIST = "machines"
_log = logging.getLogger(__name__)


@dataclass
class _Listing:
    """One that is under way, and the orders whose calls were at any time since it was asked for."""

    key: Key
    calling: set[str]


class PlannerLoop:
    """One fleet's loop. ``folder`` is where supply log, prices and metrics go, beside the ledger.

    :meth:`tick` makes one step; :meth:`run` makes them until it is told to end. From one thread.
    """

    def __init__(
        self,
        file: PlanFile,
        folder: Path,
        ledger: Ledger,
        suppliers: Mapping[str, Supplier],
        inputs: InputSource,
        clock: Clock,
        make_plan: PlanMaker | None = None,
        workforce: Workforce | None = None,
    ) -> None:
        self._file = file
        self._settings = file.run
        self._folder = folder
        self._ledger = ledger
        self._suppliers = suppliers
        self._source = inputs
        self._clock = clock
        self._workforce = workforce
        self._supply_log = SupplyLog(folder / SUPPLY_LOG_NAME)
        self._lanes = {
            cloud: CallLane(cloud, self._settings.call_s, clock.monotonic, self._note_answer)
            for cloud in suppliers
        }
        joining = self._settings.join
        self._machines = MachineCalls(
            self._settings,
            suppliers,
            NodeJoiner(joining, workforce) if joining is not None and workforce is not None else None,
            clock.monotonic,
            self._note_answer,
            self._failed,
        )
        self._answered = threading.Event()
        self._ticks = 0
        self._last_wall_s: float | None = None
        self._last_monotonic_s = 0.0
        self._listings: dict[str, _Listing] = {}
        self.metrics = PoolMetrics()
        self._settle_what_the_log_forgot()
        state = ledger.load()
        _require_suppliers(state, suppliers)
        self._planner = Planner(file, state, self._supply_log.read(), make_plan)

    def run(self, ended: threading.Event, steps: int | None = None) -> None:
        """Step every ``every_s``, and sooner when a provider has answered, until ``ended`` or for so many
        ``steps``. Raises Conflict, SystemUnfit when it cannot go on.
        """
        try:
            while not ended.is_set() and (steps is None or self._ticks < steps):
                started_s = self._clock.monotonic()
                self._answered.clear()
                self.tick()
                self._wait(ended, started_s)
        finally:
            self.close()

    def _wait(self, ended: threading.Event, started_s: float) -> None:
        soonest_s, latest_s = started_s + self._settings.sooner_s, started_s + self._settings.every_s
        while not ended.wait(_POLL_S):
            now_s = self._clock.monotonic()
            if now_s >= latest_s or (now_s >= soonest_s and self._answered.is_set()):
                return

    def _note_answer(self, key: Key) -> None:
        if key[0] != _LIST:
            self._answered.set()

    def close(self) -> None:
        """Make no more calls; those under way end by themselves."""
        for lane in self._lanes.values():
            lane.close()
        self._machines.close()

    def tick(self) -> Decision | None:
        """One step; None when prices or demand could never be read. Raises Conflict, SystemUnfit."""
        self._ticks += 1
        started_s = self._clock.monotonic()
        try:
            inputs = self._source.read(self._clock.wall())
        except GlowplugError as problem:
            self._failed("inputs", str(problem))
            return None
        for problem_words in inputs.problems:
            self._failed("inputs", problem_words)
        seen, work = self._look(inputs)
        decision = self._planner.step(self._clock.wall(), seen)
        self._ledger.commit(self._planner.state, decision.supply, decision.events, _report(decision))
        for event in decision.events:
            level = logging.WARNING if event.kind in _WORRYING else logging.INFO
            _log.log(level, "%s %s: %s", event.kind.value, event.subject, event.words)
        self._write_supply_log()
        self._act(decision)
        self._tell_nodes(work)
        self._remove_nodes_without_a_machine(work)
        self._publish(decision, self._clock.monotonic() - started_s)
        return decision

    # -- looking ---------------------------------------------------------------------------------------------

    def _look(self, inputs: Inputs) -> tuple[Observation, Work]:
        jumped_s = self._jumped_s()
        ended = {cloud: lane.collect() for cloud, lane in self._lanes.items()}
        listings, calling = self._list(ended)
        answers: dict[str, dict[str, Answer]] = {"request": {}, "cancel": {}, "terminate": {}}
        for cloud, calls in ended.items():
            for (what, name), call in calls.items():
                self._take(cloud, what, name, call, answers)
        self._machines.collect()
        machines, work = self._planner.state.machines, self._work()
        seen = Observation(
            listings,
            inputs.demand,
            inputs.prices,
            requested=answers["request"],
            cancelled=answers["cancel"],
            terminated=answers["terminate"],
            health=self._machines.take_health(),
            joined=self._machines.take_joined(),
            heard=frozenset(name for name, held in machines.items() if held.place in work.heard),
            silent=frozenset(name for name, held in machines.items() if _is_silent(held, work)),
            drained=frozenset(name for name, held in machines.items() if held.place in work.drained),
            worth={name: _worth(held, work) for name, held in machines.items()},
            calling=calling,
            waiting_slot_s=inputs.waiting_slot_s,
            jumped_s=jumped_s,
        )
        return seen, work

    def _work(self) -> Work:
        if self._workforce is None:
            return Work()
        try:
            return self._workforce.look()
        except GlowplugError as problem:
            self._failed("workforce", str(problem))
            # Nobody knows: then every machine is busy, and what drains has its time to.
            return Work({held.place: 1.0 for held in self._planner.state.machines.values()})

    def _jumped_s(self) -> float:
        wall_s, monotonic_s = self._clock.wall(), self._clock.monotonic()
        last_s, self._last_wall_s = self._last_wall_s, wall_s
        passed_s, self._last_monotonic_s = monotonic_s - self._last_monotonic_s, monotonic_s
        jumped_s = 0.0 if last_s is None else wall_s - last_s - passed_s
        return jumped_s if abs(jumped_s) > _JUMP_S else 0.0

    def _list(
        self, ended: Mapping[str, Mapping[Key, Ended]]
    ) -> tuple[dict[str, tuple[Sighting, ...]], frozenset[str]]:
        """Of every cloud that answers within a step's time, or whose late answer has come; the others are
        silent.

        And the orders whose calls were under way since their listing was asked for: it may not show what
        those did, whether they have ended by now or not.
        """
        for cloud, lane in self._lanes.items():
            under_way = {name for what, name in lane.open_keys if what == "request"}
            if cloud in self._listings:
                self._listings[cloud].calling |= under_way
            else:
                provider, key = self._suppliers[cloud].provider, (_LIST, str(self._ticks))
                self._listings[cloud] = _Listing(key, under_way)
                lane.submit(
                    key, partial(provider.machines, self._settings.fleet, self._settings.call_s), True
                )
        deadline_s = self._clock.monotonic() + min(self._settings.call_s, self._settings.every_s)
        listings = {}
        calling: set[str] = set()
        for cloud, lane in self._lanes.items():
            asked = self._listings[cloud]
            calling |= asked.calling
            answer = ended[cloud].get(asked.key)
            if answer is None:
                answer = lane.wait_for(asked.key, max(deadline_s - self._clock.monotonic(), 0.0))
            if answer is not None:
                del self._listings[cloud]
            if answer is None or answer.error is not None:
                self._failed("listing", f"{cloud}: {answer.error if answer else 'no answer yet'}")
            else:
                listings[cloud] = tuple(answer.value)
        return listings, frozenset(calling)

    def _take(
        self, cloud: str, what: str, name: str, call: Ended, answers: dict[str, dict[str, Answer]]
    ) -> None:
        if what not in answers:
            return  # a listing: it has been looked at
        if call.error is None:
            answers[what][name] = Answer(Outcome.DONE)
        elif isinstance(call.error, RequestRefused):
            answers[what][name] = Answer(Outcome.REFUSED, call.error.message)
        else:
            self._failed(what, f"{cloud}, {name}: {call.error}")

    # -- acting ----------------------------------------------------------------------------------------------

    def _act(self, decision: Decision) -> None:
        state, call_s = self._planner.state, self._settings.call_s
        for order in decision.requests:
            self._call(
                order.pool.cloud, ("request", order.id), lambda who: who.provider.request, order, call_s
            )
        for name in decision.cancellations:
            cloud = state.orders[name].pool.cloud
            self._call(cloud, ("cancel", name), lambda who: who.provider.cancel, name, call_s)
        for name in decision.terminations:
            held = state.machines[name]
            if self._machines.has_left(held):
                cloud = held.pool.cloud
                self._call(cloud, ("terminate", name), lambda who: who.provider.terminate, name, call_s)
        self._machines.act(decision, state)

    def _tell_nodes(self, work: Work) -> None:
        """Have nodes of machines that drain drained, and those used again that we had drained and keep."""
        if self._workforce is None or work.listed is None:
            return
        for held in self._planner.state.machines.values():
            is_told = held.place in work.drained
            drains = held.standing is Standing.DRAINING
            is_ours = held.is_node_drained and held.node in work.listed
            if is_ours and held.standing.is_up and drains != is_told:
                try:
                    self._workforce.drain(held.node, undo=not drains)
                except GlowplugError as problem:
                    self._failed("drain", f"{held.node}: {problem}")
                    return  # each may take its time to fail, and there is another step

    def _remove_nodes_without_a_machine(self, work: Work) -> None:
        """Of machines that ended by themselves, or could not leave, the control plane still has the nodes."""
        if self._workforce is None or work.listed is None:
            return
        state = self._planner.state
        kept = {held.node for held in state.machines.values()}
        for node in sorted(name for name in work.listed - kept if state.is_our_node(name)):
            try:
                self._workforce.remove(node)
            except GlowplugError as problem:
                self._failed("remove", f"{node}: {problem}")
                return  # each may take its time to fail, and there is another step

    def _call(
        self, cloud: str, key: Key, method: Callable[[Supplier], Callable[..., Any]], *asked: Any
    ) -> None:
        supplier = self._suppliers.get(cloud)
        if supplier is not None:
            self._lanes[cloud].submit(key, partial(method(supplier), *asked))

    # -- what is written -------------------------------------------------------------------------------------

    def _write_supply_log(self) -> None:
        """From the ledger to the log: what a crash keeps from it comes with the next step, perhaps twice."""
        try:
            unlogged = self._ledger.unlogged()
            for _number, record in unlogged:
                self._supply_log.append(record)
            if unlogged:
                self._ledger.logged(unlogged[-1][0])
        except GlowplugError as problem:
            self._failed("supply_log", str(problem))

    def _settle_what_the_log_forgot(self) -> None:
        """Requests that the log thinks are under way and the ledger knows nothing of: they failed."""
        self._write_supply_log()
        state = self._ledger.load()
        living = set(state.orders) | {held.order for held in state.machines.values()}
        open_requests: dict[str, SupplyRecord] = {}
        for record in self._supply_log.read():
            if record.happened is Happened.ASKED:
                open_requests[record.request] = record
            else:
                open_requests.pop(record.request, None)
        lost = [record for name, record in open_requests.items() if name not in living]
        for record in lost:
            settled = {
                "at_s": self._clock.wall(),
                "happened": Happened.FAILED,
                "reason": "its ledger forgot it",
            }
            self._supply_log.append(record.model_copy(update=settled))

    def _publish(self, decision: Decision, step_s: float) -> None:
        self.metrics.observe(decision, self._planner.state, step_s)
        try:
            publish_prices(
                self._folder, self._settings.fleet, decision.at_s, decision.source.value, decision.scarcity
            )
            self.metrics.write(self._folder)
        except (GlowplugError, OSError) as problem:
            self._failed("publish", str(problem))

    def _failed(self, what: str, words: str) -> None:
        self.metrics.count_failure(what)
        _log.warning("%s: %s", what, words)


def _worth(held: HeldMachine, work: Work) -> float:
    """A node that we drain is not given back before it is known to get nothing new."""
    worth = work.worth.get(held.place, 0.0)
    is_listed = held.node != "" and work.listed is not None and held.node in work.listed
    is_open = held.standing is Standing.DRAINING and is_listed and held.node not in work.drained
    return max(worth, 1.0) if is_open else worth


def _is_silent(held: HeldMachine, work: Work) -> bool:
    return held.node != "" and work.listed is not None and held.node not in work.heard


_WORRYING = frozenset(
    {
        EventKind.GIVEN_UP, EventKind.NOT_JOINED, EventKind.UNFIT, EventKind.LOST, EventKind.RETURNED,
        EventKind.SOLVER_FAILED, EventKind.CLOCK_JUMPED, EventKind.BAD_INPUT, EventKind.SILENT,
    }
)  # fmt: skip


def _report(decision: Decision) -> bytes:
    """What ``glowplug pool explain`` shows; nothing in a step without a plan: the last report stands."""
    if decision.situation is None or decision.solved is None:
        return b""
    solved = decision.solved
    return report_of(decision.situation, solved.whole, solved.relaxed, solved.gap).model_dump_json().encode()


def _require_suppliers(state: FleetState, suppliers: Mapping[str, Supplier]) -> None:
    """Nobody could give back what is held of a cloud that is not in the file any more."""
    held = {machine.pool.cloud for machine in state.machines.values()}
    held |= {order.pool.cloud for order in state.orders.values()}
    missing = sorted(held - set(suppliers))
    if missing:
        raise InvalidInput(
            f"The fleet {state.fleet} holds machines of {', '.join(missing)}; nobody is named for them.",
            remedy="Keep its entry in run.providers until they are given back; its pools may go at once.",
        )
