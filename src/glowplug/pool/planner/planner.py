"""The rolling planner: one step after another, each from what is seen to what is to be done.

Pure: the clock's reading and everything seen are arguments, the result is data. The same code plans for real
machines, in tests against hostile providers, and in the simulator.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from glowplug.pool.forecast.demand import Forecast
from glowplug.pool.forecast.series import DemandSeries
from glowplug.pool.identity import PoolId
from glowplug.pool.market.supply_log import Happened, SupplyRecord
from glowplug.pool.market_now import Holding, MarketNow
from glowplug.pool.plan_file import DemandEntry, PlanFile, PoolEntry
from glowplug.pool.planner.decision import Decision, EventKind
from glowplug.pool.planner.draining import drain_what_is_unwanted, send_back_what_is_drained
from glowplug.pool.planner.fixed_buffer import fixed_buffer, needs
from glowplug.pool.planner.limits import affordable, shed
from glowplug.pool.planner.memory import MarketMemory
from glowplug.pool.planner.observation import Observation
from glowplug.pool.planner.outlook import Outlook, usable
from glowplug.pool.planner.reconcile import MOST_SENDS, reconcile
from glowplug.pool.planner.solving import PlanMaker, Solvers
from glowplug.pool.planner.state import FleetState, OpenOrder, Standing, shifted
from glowplug.pool.planner.targets import Targets, of_last_plan, of_plan
from glowplug.pool.planner.turn import Turn
from glowplug.pool.planning import LeftOut, PoolsNow, Situation, compose, grid_of
from glowplug.pool.program.problem import Pool
from glowplug.pool.providers.port import Order
from glowplug.types.errors import GlowplugError, InvalidInput


class Planner:
    """Plans for the pools of one file. :attr:`state` is all it remembers; a planner made anew with it, and
    with the supply log as ``past``, goes on where that one was.

    Not safe to use from two threads at once. Raises InvalidInput for a file that no plan can be made of.
    """

    def __init__(
        self,
        file: PlanFile,
        state: FleetState,
        past: Iterable[SupplyRecord] = (),
        make_plan: PlanMaker | None = None,
    ) -> None:
        self.state = state
        self._file = file
        self._entries: dict[PoolId, PoolEntry] = {entry.id: entry for entry in file.pools}
        self._grid = grid_of(file)
        self._memory = MarketMemory(past)
        self._outlook = Outlook(file.run.recalibrate_s)
        self._make_plan = Solvers() if make_plan is None else make_plan

    def step(self, now_s: float, seen: Observation) -> Decision:
        """Plan for Unix time ``now_s``. What is seen and cannot be used is left out, with an event; nothing
        seen makes it raise.
        """
        turn = self._turn(now_s, seen)
        reconcile(turn, lambda pool: self._price_of(turn, pool))
        self._memory.add(turn.records)
        recorded = len(turn.records)
        found, market = self._pools(turn)
        self._reprice(turn, market)
        shed(turn)
        demand = self._demand(turn)
        targets = self._targets(turn, found, demand)
        if targets.unwanted is not None:
            drain_what_is_unwanted(turn, targets.unwanted)
        send_back_what_is_drained(turn)
        self._ask(turn, targets, {pool.id: pool for pool in found.pools})
        requests = _requests(turn)
        self._memory.add(turn.records[recorded:])
        self.state = replace(
            turn.state(),
            last_plan=targets.last_plan,
            scarcity=self.state.scarcity if targets.scarcity is None else targets.scarcity,
        )
        return self._decision(turn, targets, requests, found.left_out)

    # -- what there is ---------------------------------------------------------------------------------------

    def _turn(self, now_s: float, seen: Observation) -> Turn:
        jumped_s = seen.jumped_s
        if self.state.stepped_at_s is not None:
            # Time cannot have gone back: then it was the clock.
            jumped_s = min(jumped_s, now_s - self.state.stepped_at_s)
        if jumped_s:
            self.state = shifted(self.state, jumped_s)
        turn = Turn(now_s, self._file, seen, self.state)
        if jumped_s:
            words = f"it was set by {jumped_s:+.0f} s: every age stays as it was"
            turn.tell(EventKind.CLOCK_JUMPED, "clock", words)
        return turn

    def _price_of(self, turn: Turn, pool: PoolId) -> tuple[float, str, int]:
        """What a stray costs, as far as anybody knows: the last price, or that of any machine of its pool."""
        for held in turn.machines_of(pool):
            return held.usd_per_h, held.gpu, held.gpus
        for order in turn.orders_of(pool):
            return order.usd_per_h, order.gpu, order.gpus
        entry = self._entries.get(pool)
        quote = turn.seen.prices.as_of(pool, turn.now_s)
        if entry is not None and entry.price_usd_per_h is not None:
            return entry.price_usd_per_h, entry.gpu or "", entry.gpus or 1
        if quote is not None:
            return quote.offer.usd_per_h, quote.offer.gpu, quote.offer.gpus
        return 0.0, "", 1

    def _pools(self, turn: Turn) -> tuple[PoolsNow, MarketNow]:
        living = frozenset(held.order for held in turn.machines.values() if held.ready_at_s is not None)
        estimates = self._memory.estimates(turn.now_s, living)
        market = MarketNow(turn.seen.prices, self._file.max_price_age_s, estimates, turn.now_s)
        pools, left_out = [], []
        for entry in self._file.pools:
            try:
                pool, why = market.pool(entry, _holding(turn, entry), len(self._grid))
            except InvalidInput as problem:
                pool, why = None, problem.message
            if pool is not None and entry.cloud not in turn.seen.listings:
                pool, why = replace(pool, quota=min(pool.quota, pool.held)), f"{entry.cloud} does not answer"
            if why:
                left_out.append(LeftOut(str(entry.id), why))
            if pool is not None:
                pools.append(pool)
        return PoolsNow(tuple(pools), tuple(left_out)), market

    def _reprice(self, turn: Turn, market: MarketNow) -> None:
        """Machines cost what they cost now; where nobody knows, what they cost when somebody did."""
        usd_per_h: dict[PoolId, float] = {}
        for entry in self._file.pools:
            try:
                offered = market.offered(entry, Holding())
            except InvalidInput:
                continue
            if offered.usd_per_h is not None and offered.why is None:
                usd_per_h[entry.id] = offered.usd_per_h
        for name, held in turn.machines.items():
            turn.machines[name] = replace(held, usd_per_h=usd_per_h.get(held.pool, held.usd_per_h))
        for name, order in turn.orders.items():
            turn.orders[name] = replace(order, usd_per_h=usd_per_h.get(order.pool, order.usd_per_h))

    def _demand(self, turn: Turn) -> list[DemandSeries]:
        found = []
        for entry, series in zip(self._file.demand, turn.seen.demand, strict=True):
            mended, bad = usable(series)
            if bad:
                name = f"{entry.gpu} x{entry.gpus}"
                turn.tell(EventKind.BAD_INPUT, name, f"{bad} steps of its demand are no numbers of slots")
            found.append(mended)
        return found

    # -- what is wanted --------------------------------------------------------------------------------------

    def _targets(self, turn: Turn, found: PoolsNow, demand: list[DemandSeries]) -> Targets:
        try:
            situation = self._situation(turn, found, demand)
            solved = self._make_plan(situation.problem, turn.settings.solve_s)
        except GlowplugError as failure:
            return self._without_a_plan(turn, found, demand, failure.message)
        except (ValueError, ArithmeticError) as failure:
            # What numpy raises for series of a kind that nobody thought of: no input may end the loop.
            return self._without_a_plan(turn, found, demand, f"{type(failure).__name__}: {failure}")
        for remark in solved.remarks:
            turn.tell(EventKind.SOLVER_FAILED, "solver", remark)
        return of_plan(situation, solved)

    def _situation(self, turn: Turn, found: PoolsNow, demand: list[DemandSeries]) -> Situation:
        def forecast(place: int, entry: DemandEntry, lead_time_s: float) -> Forecast:
            waiting = turn.seen.waiting_slot_s
            return self._outlook.forecast(
                place, entry, demand[place], lead_time_s, turn.now_s, self._grid.starts_s,
                waiting[place] if place < len(waiting) else 0.0,
            )  # fmt: skip

        budget = self._file.budget_usd_per_h
        if budget is not None:
            budget = max(budget - (turn.spend_usd_per_h - turn.kept_usd_per_h), 0.0)
        return compose(self._file, self._grid, found, forecast, turn.now_s, budget)

    def _without_a_plan(self, turn: Turn, found: PoolsNow, demand: list[DemandSeries], why: str) -> Targets:
        last = self.state.last_plan
        if last is not None and turn.now_s - last.made_at_s <= turn.settings.plan_stands_s:
            turn.tell(EventKind.SOLVER_FAILED, "solver", f"the last plan stands: {why}")
            return of_last_plan(last, turn.now_s)
        turn.tell(EventKind.SOLVER_FAILED, "solver", f"a fixed buffer is held: {why}")
        wanted = needs(self._file.demand, demand, turn.now_s, turn.settings.buffer_share)
        return fixed_buffer(found.pools, wanted)

    def _ask(self, turn: Turn, targets: Targets, pools: dict[PoolId, Pool]) -> None:
        """Make orders, the cheapest GPUs first, as far as quota and spend limit go."""
        wanted = [pools[name] for name, count in targets.ask.items() if count > 0 and name in pools]
        for pool in sorted(wanted, key=lambda pool: (pool.price_usd_per_h[0] / pool.gpus, pool.id)):
            entry, usd_per_h = self._entries[pool.id], float(pool.price_usd_per_h[0])
            taken = sum(1 for _ in turn.machines_of(pool.id)) + sum(1 for _ in turn.orders_of(pool.id))
            room = max(min(entry.quota, pool.quota + taken - pool.held) - taken, 0)
            count = min(targets.ask[pool.id], room)
            paid = affordable(turn, usd_per_h, count)
            if paid < count:
                limit = self._file.budget_usd_per_h
                turn.limited(pool.id, f"{count - paid} of {count} machines are beyond {limit} USD/h")
            for _ in range(paid):
                self._order(turn, pool, usd_per_h)

    def _order(self, turn: Turn, pool: Pool, usd_per_h: float) -> None:
        turn.ordered += 1
        name = f"{self.state.order_prefix}{turn.ordered}"
        order = OpenOrder(name, pool.id, pool.gpu, pool.gpus, usd_per_h, turn.now_s)
        turn.orders[name] = order
        turn.record(order, Happened.ASKED)
        turn.tell(EventKind.ASKED, name, f"{pool.id}: {pool.gpus} x {pool.gpu} for {usd_per_h:.2f} USD/h")

    def _decision(
        self, turn: Turn, targets: Targets, requests: tuple[Order, ...], left_out: tuple[LeftOut, ...]
    ) -> Decision:
        def standing(*wanted: Standing) -> tuple[str, ...]:
            return tuple(sorted(name for name, held in turn.machines.items() if held.standing in wanted))

        return Decision(
            turn.now_s,
            targets.source,
            requests=requests,
            cancellations=tuple(
                name
                for name, order in turn.orders.items()
                if not order.is_awaited and not order.is_cancel_confirmed
            ),
            terminations=standing(Standing.RETURNING),
            check=standing(Standing.CHECKING),
            join=standing(Standing.JOINING),
            ready=standing(Standing.READY),
            draining=standing(Standing.DRAINING),
            scarcity=self.state.scarcity,
            supply=tuple(turn.records),
            events=tuple(turn.events),
            left_out=left_out,
            rented_usd_per_h=self.state.rented_usd_per_h,
            spend_usd_per_h=self.state.spend_usd_per_h,
            situation=targets.situation,
            solved=targets.solved,
        )


def _holding(turn: Turn, entry: PoolEntry) -> Holding:
    machines, orders = list(turn.machines_of(entry.id)), list(turn.orders_of(entry.id))
    up = [held for held in machines if held.standing.is_up]
    locked_s = [
        entry.min_rental_s - (turn.now_s - held.ready_at_s)
        for held in up
        if held.standing is Standing.READY and held.ready_at_s is not None
    ]
    starting = [held.asked_at_s for held in machines if held.standing is Standing.BOOTING]
    checking = sum(held.standing in (Standing.CHECKING, Standing.JOINING) for held in machines)
    awaited = [order.asked_at_s for order in orders if order.is_awaited]
    kinds = [(held.usd_per_h, held.gpu, held.gpus) for held in machines if not held.is_stray]
    kinds += [(order.usd_per_h, order.gpu, order.gpus) for order in orders]
    usd_per_h, gpu, gpus = max(kinds, default=(None, None, None))
    return Holding(
        len(up),
        tuple(left_s for left_s in locked_s if left_s > 0),
        tuple(max(turn.now_s - asked_at_s, 0.0) for asked_at_s in awaited),
        tuple(max(turn.now_s - asked_at_s, 0.0) for asked_at_s in starting),
        checking,
        leaving=len(machines) + len(orders) - len(up) - len(starting) - checking - len(awaited),
        usd_per_h=usd_per_h,
        gpu=gpu,
        gpus=gpus,
    )


def _requests(turn: Turn) -> tuple[Order, ...]:
    """Orders that no provider has taken yet: new ones, and those whose call nobody knows about."""
    avoid = tuple(sorted(turn.bad))
    found = []
    for name, order in turn.orders.items():
        is_open = order.is_awaited and not order.is_accepted and name not in turn.seen.calling
        if is_open and order.sends < MOST_SENDS and order.pool.cloud in turn.seen.listings:
            turn.orders[name] = replace(order, sends=order.sends + 1)
            found.append(Order(name, turn.settings.fleet, order.pool, order.gpu, order.gpus, avoid))
    return tuple(found)
