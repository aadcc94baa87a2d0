"""The spend limit, held strictly: whatever is rented, on its way out or asked for counts with its whole rent.

A request is made only if everything together stays within the limit, should all of it come. When prices rise
or the limit falls, what is worth least goes at once, without waiting for its work to end: the limit is a
promise, serving is an effort.
"""

from __future__ import annotations

import math

from glowplug.pool.market.supply_log import Happened
from glowplug.pool.planner.decision import EventKind
from glowplug.pool.planner.state import HeldMachine, OpenOrder, Standing
from glowplug.pool.planner.turn import Turn

_CENT_USD = 1e-6


def affordable(turn: Turn, usd_per_h: float, wanted: int) -> int:
    """How many of ``wanted`` machines may be asked for."""
    limit = turn.file.budget_usd_per_h
    if limit is None or usd_per_h <= 0:
        return wanted
    room = limit - turn.spend_usd_per_h
    return min(wanted, max(0, math.floor(room / usd_per_h + _CENT_USD)))


def shed(turn: Turn) -> None:
    """Cancel and send back until what is wanted is within the limit: requests first, then what is idle, then
    what does the least for its price.
    """
    limit = turn.file.budget_usd_per_h
    if limit is None or turn.kept_usd_per_h <= limit + _CENT_USD:
        return
    for order in sorted(turn.orders.values(), key=_order_rank):
        if turn.kept_usd_per_h <= limit + _CENT_USD:
            return
        if order.is_awaited and order.usd_per_h > 0:
            turn.give_up(order, f"the spend limit of {limit:g} USD/h", Happened.GIVEN_BACK)
    for held in sorted(turn.machines.values(), key=lambda held: _machine_rank(turn, held)):
        if turn.kept_usd_per_h <= limit + _CENT_USD:
            return
        if held.standing is not Standing.RETURNING and held.usd_per_h > 0:
            turn.send_back(held, f"the spend limit of {limit:g} USD/h")
            turn.tell(
                EventKind.LIMITED,
                held.machine,
                f"{held.pool}: sent back for the spend limit of {limit:g} USD/h",
            )


def _order_rank(order: OpenOrder) -> tuple[bool, bool, float, str]:
    """What was never sent first, then what was not accepted, then the newest."""
    return order.sends > 0, order.is_accepted, -order.asked_at_s, order.id


def _machine_rank(turn: Turn, held: HeldMachine) -> tuple[bool, float, float, str]:
    worth = turn.seen.worth.get(held.machine, 0.0) if held.standing.is_up else 0.0
    return (
        held.standing is Standing.READY,
        worth / max(held.usd_per_h, _CENT_USD),
        -held.asked_at_s,
        held.machine,
    )
