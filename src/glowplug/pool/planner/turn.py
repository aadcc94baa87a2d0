"""One step in the making: a copy of the state that its parts change one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from glowplug.pool.identity import PoolId
from glowplug.pool.market.supply_log import Happened, SupplyRecord
from glowplug.pool.plan_file import PlanFile
from glowplug.pool.planner.decision import Event, EventKind
from glowplug.pool.planner.observation import Observation
from glowplug.pool.planner.state import FleetState, HeldMachine, OpenOrder, Standing


class Turn:
    """Who changes something here also says so: an event for people, a record for the supply log."""

    def __init__(self, now_s: float, file: PlanFile, seen: Observation, state: FleetState) -> None:
        self.now_s = now_s
        self.file = file
        self.settings = file.run
        self.seen = seen
        self.orders = dict(state.orders)
        self.machines = dict(state.machines)
        self.bad = {name: bad for name, bad in state.bad.items() if bad.until_s > now_s}
        self.surplus = dict(state.surplus)
        self.silent_since_s = dict(state.silent_since_s)
        self.limited_since_s: dict[str, float] = {}
        self.ordered = state.ordered
        self.events: list[Event] = []
        self.records: list[SupplyRecord] = []
        self._before = state

    # -- what is said ----------------------------------------------------------------------------------------

    def tell(self, kind: EventKind, subject: str, words: str) -> None:
        """For people and metrics."""
        self.events.append(Event(self.now_s, kind, subject, words))

    def limited(self, pool: PoolId, words: str) -> None:
        """The spend limit holds requests of the pool back; said once, until it does not any more."""
        name = str(pool)
        since_s = self._before.limited_since_s.get(name)
        if since_s is None:
            self.tell(EventKind.LIMITED, name, words)
        self.limited_since_s[name] = self.now_s if since_s is None else since_s

    def record(self, what: OpenOrder | HeldMachine, happened: Happened, reason: str = "") -> None:
        """For the supply log."""
        request = what.id if isinstance(what, OpenOrder) else what.order
        pool = what.pool
        self.records.append(
            SupplyRecord(
                at_s=self.now_s, request=request, happened=happened, cloud=pool.cloud, region=pool.region,
                machine=pool.machine, purchase=pool.purchase, gpu=what.gpu, reason=reason[:2_000],
            )
        )  # fmt: skip

    # -- what there is ---------------------------------------------------------------------------------------

    @property
    def spend_usd_per_h(self) -> float:
        """Rented, and asked for, whatever is to become of it."""
        return sum(held.usd_per_h for held in self.machines.values()) + sum(
            order.usd_per_h for order in self.orders.values()
        )

    @property
    def kept_usd_per_h(self) -> float:
        """The part of it that is wanted."""
        return sum(
            held.usd_per_h for held in self.machines.values() if held.standing is not Standing.RETURNING
        ) + sum(order.usd_per_h for order in self.orders.values() if order.is_awaited)

    def machines_of(self, pool: PoolId) -> Iterator[HeldMachine]:
        """All of a pool, whatever becomes of them."""
        return (held for held in self.machines.values() if held.pool == pool)

    def orders_of(self, pool: PoolId) -> Iterator[OpenOrder]:
        """All of a pool, given up or not."""
        return (order for order in self.orders.values() if order.pool == pool)

    # -- what becomes of it ----------------------------------------------------------------------------------

    def stand(self, held: HeldMachine, standing: Standing, why: str = "") -> HeldMachine:
        """The machine stands so from now on."""
        moved = replace(held, standing=standing, since_s=self.now_s, why=why)
        self.machines[held.machine] = moved
        return moved

    def send_back(self, held: HeldMachine, why: str, happened: Happened = Happened.GIVEN_BACK) -> None:
        """The machine is to end. In the supply log it is over now; what is given back before it was ready
        says nothing of its market there.
        """
        if held.standing is Standing.RETURNING:
            return
        if not held.is_stray:
            self.record(held, happened, why)
        self.stand(held, Standing.RETURNING, why)

    def give_up(self, order: OpenOrder, why: str, happened: Happened = Happened.FAILED) -> None:
        """The order is cancelled: open until the provider confirms, and over in the supply log."""
        if not order.is_awaited:
            return
        self.orders[order.id] = replace(order, cancelled_at_s=self.now_s)
        self.record(order, happened, why)
        self.tell(EventKind.GIVEN_UP, order.id, f"{order.pool}: {why}")

    def state(self) -> FleetState:
        """What is to be remembered of it so far."""
        return replace(
            self._before,
            stepped_at_s=self.now_s,
            ordered=self.ordered,
            orders=self.orders,
            machines=self.machines,
            bad=self.bad,
            surplus=self.surplus,
            silent_since_s=self.silent_since_s,
            limited_since_s=self.limited_since_s,
        )
