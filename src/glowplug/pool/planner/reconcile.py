"""What providers say, against what we believe: orders become machines, machines come, go, and get lost.

A machine that no open order explains is a second grant, a late one or an orphan: it is sent back. An order or
a machine is forgotten only when its provider has confirmed its end, and until then its rent counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from glowplug.pool.identity import PoolId
from glowplug.pool.market.supply_log import Happened
from glowplug.pool.planner.decision import EventKind
from glowplug.pool.planner.observation import Outcome
from glowplug.pool.planner.state import BadHardware, HeldMachine, OpenOrder, Standing
from glowplug.pool.planner.turn import Turn
from glowplug.pool.providers.port import MachineState, Sighting, Verdict

MOST_SENDS = 3
_MOST_JOINS = 3
_OVER = (MachineState.GONE, MachineState.REFUSED)

PriceOf = Callable[[PoolId], tuple[float, str, int]]
"""USD per hour, GPU kind and GPUs of a machine of a pool, as far as anybody knows."""


def reconcile(turn: Turn, price_of: PriceOf) -> None:
    """Take in everything that was seen."""
    _take_answers(turn)
    clouds = {entry.cloud for entry in turn.file.pools}
    clouds |= {held.pool.cloud for held in turn.machines.values()}
    clouds |= {order.pool.cloud for order in turn.orders.values()}
    for cloud in sorted(clouds):
        if cloud in turn.seen.listings:
            turn.silent_since_s.pop(cloud, None)
            _take_listing(turn, cloud, price_of)
        elif cloud not in turn.silent_since_s:
            turn.silent_since_s[cloud] = turn.now_s
            turn.tell(EventKind.SILENT, cloud, f"{cloud} does not answer: nothing is asked of it")
    _give_up_what_is_overdue(turn)
    for machine, verdict in turn.seen.health.items():
        held = turn.machines.get(machine)
        if held is not None:
            _take_verdict(turn, held, verdict)
    _take_nodes(turn)


def _take_answers(turn: Turn) -> None:
    for name, answer in turn.seen.requested.items():
        order = turn.orders.get(name)
        if order is None:
            continue
        if answer.outcome is Outcome.DONE:
            turn.orders[name] = replace(order, is_accepted=True)
        else:
            _refused(turn, order, answer.reason)
    for name, answer in turn.seen.cancelled.items():
        order = turn.orders.get(name)
        if order is not None and not order.is_awaited and answer.outcome is Outcome.DONE:
            turn.orders[name] = replace(order, is_cancel_confirmed=True)
    for name, answer in turn.seen.terminated.items():
        held = turn.machines.get(name)
        if held is not None and answer.outcome is Outcome.DONE and held.standing is Standing.RETURNING:
            turn.machines[name] = replace(held, is_end_confirmed=True)


def _refused(turn: Turn, order: OpenOrder, reason: str) -> None:
    del turn.orders[order.id]
    if order.is_awaited:
        turn.record(order, Happened.FAILED, reason)
        turn.tell(EventKind.REFUSED, order.id, f"{order.pool}: {reason or 'refused'}")


def _take_listing(turn: Turn, cloud: str, price_of: PriceOf) -> None:
    shown: dict[str, Sighting] = {}
    # Of two that claim one order the one that is up is taken, and of those always the same.
    ranked = sorted(
        turn.seen.listings[cloud], key=lambda seen: (seen.state is not MachineState.UP, seen.machine)
    )
    for sighting in ranked:
        shown.setdefault(sighting.machine, replace(sighting, pool=replace(sighting.pool, cloud=cloud)))
    for sighting in shown.values():
        held, order = turn.machines.get(sighting.machine), turn.orders.get(sighting.order)
        if held is not None:
            _take_known(turn, held, sighting)
        elif order is not None and order.pool == sighting.pool:
            _take_of_order(turn, order, sighting)
        elif sighting.state not in _OVER:
            _take_stray(turn, sighting, price_of)
    for held in [held for held in turn.machines.values() if held.pool.cloud == cloud]:
        if held.machine not in shown:
            _take_missing(turn, held)
    listed = {sighting.order for sighting in shown.values() if sighting.state not in _OVER}
    for order in [order for order in turn.orders.values() if order.pool.cloud == cloud]:
        if order.is_cancel_confirmed and order.id not in listed:
            del turn.orders[order.id]


def _take_known(turn: Turn, held: HeldMachine, sighting: Sighting) -> None:
    if sighting.state in _OVER:
        _ended(turn, held, sighting.reason or "its provider says that it is gone")
        return
    held = replace(
        held,
        missing_since_s=None,
        address=sighting.address or held.address,
        hardware=sighting.hardware or held.hardware,
    )
    turn.machines[held.machine] = held
    if sighting.state is MachineState.ENDING and held.standing is not Standing.RETURNING:
        _lost(turn, held, sighting.reason or "its provider ends it")
    elif sighting.state is MachineState.UP and held.standing is Standing.BOOTING:
        _came_up(turn, held)


def _take_of_order(turn: Turn, order: OpenOrder, sighting: Sighting) -> None:
    if sighting.state in _OVER:
        _refused(turn, order, sighting.reason)
        return
    if sighting.state is MachineState.PENDING:
        turn.orders[order.id] = replace(order, is_accepted=True)
        return
    del turn.orders[order.id]
    held = HeldMachine(
        sighting.machine, order.id, order.pool, order.gpu, order.gpus, order.usd_per_h, Standing.BOOTING,
        asked_at_s=order.asked_at_s, since_s=turn.now_s, address=sighting.address,
        hardware=sighting.hardware, is_stray=not order.is_awaited,
    )  # fmt: skip
    turn.machines[held.machine] = held
    if held.is_stray:
        turn.send_back(held, "it came after it was given up")
        turn.tell(EventKind.RETURNED, held.machine, f"{held.pool}: it came after it was given up")
    elif held.hardware in turn.bad:
        why = f"this hardware was found unfit: {turn.bad[held.hardware].why}"
        turn.send_back(held, why, Happened.FAILED)
        turn.tell(EventKind.UNFIT, held.machine, f"{held.pool}: {why}")
    elif sighting.state is MachineState.ENDING:
        _lost(turn, held, sighting.reason or "its provider ends it")
    elif sighting.state is MachineState.UP:
        _came_up(turn, held)


def _take_stray(turn: Turn, sighting: Sighting, price_of: PriceOf) -> None:
    usd_per_h, gpu, gpus = price_of(sighting.pool)
    why = "no open order explains it" if sighting.order else "it carries no order"
    turn.machines[sighting.machine] = HeldMachine(
        sighting.machine, sighting.order, sighting.pool, gpu, gpus, usd_per_h, Standing.RETURNING,
        asked_at_s=turn.now_s, since_s=turn.now_s, why=why, is_stray=True,
    )  # fmt: skip
    turn.tell(EventKind.RETURNED, sighting.machine, f"{sighting.pool}: {why}")


def _take_missing(turn: Turn, held: HeldMachine) -> None:
    if held.standing is Standing.RETURNING:
        # Who only does not list it may list it again: it is forgotten when its end was confirmed as well.
        if held.is_end_confirmed:
            _ended(turn, held, held.why)
        return
    if held.machine in turn.seen.heard:
        turn.machines[held.machine] = replace(held, missing_since_s=None)
        return
    since_s = turn.now_s if held.missing_since_s is None else held.missing_since_s
    held = turn.machines[held.machine] = replace(held, missing_since_s=since_s)
    missing_s = turn.now_s - since_s
    if missing_s >= turn.settings.lost_after_s:
        _lost(turn, held, f"its provider has not listed it for {missing_s:.0f} s")


def _came_up(turn: Turn, held: HeldMachine) -> None:
    held = turn.stand(held, Standing.CHECKING)
    if not turn.settings.health_check:
        _take_verdict(turn, held, Verdict(is_fit=True))


def _lost(turn: Turn, held: HeldMachine, why: str) -> None:
    """It is gone, or as good as gone; that it ends is made sure of."""
    _over_for_the_log(turn, held, why)
    turn.stand(held, Standing.RETURNING, why)
    turn.tell(EventKind.LOST, held.machine, f"{held.pool}: {why}")


def _ended(turn: Turn, held: HeldMachine, why: str) -> None:
    del turn.machines[held.machine]
    if held.standing is Standing.RETURNING:
        turn.tell(EventKind.GIVEN_BACK, held.machine, f"{held.pool}: {held.why or why}")
        return
    _over_for_the_log(turn, held, why)
    turn.tell(EventKind.LOST, held.machine, f"{held.pool}: {why}")


def _over_for_the_log(turn: Turn, held: HeldMachine, why: str) -> None:
    turn.record(held, Happened.FAILED if held.ready_at_s is None else Happened.INTERRUPTED, why)


def _give_up_what_is_overdue(turn: Turn) -> None:
    limit_s = turn.settings.give_up_s
    for order in list(turn.orders.values()):
        if turn.now_s - order.asked_at_s >= limit_s:
            turn.give_up(order, f"neither granted nor refused in {limit_s:.0f} s")
        elif (
            order.sends >= MOST_SENDS
            and not order.is_accepted
            and order.pool.cloud in turn.seen.listings
            and order.id not in turn.seen.calling
        ):
            turn.give_up(order, f"{order.sends} calls were not answered, and it is not listed")
    for held in list(turn.machines.values()):
        if held.standing.is_coming and turn.now_s - held.asked_at_s >= limit_s:
            turn.send_back(held, f"not ready in {limit_s:.0f} s", Happened.FAILED)
            turn.tell(EventKind.GIVEN_UP, held.machine, f"{held.pool}: not ready in {limit_s:.0f} s")


def _take_verdict(turn: Turn, held: HeldMachine, verdict: Verdict) -> None:
    if verdict.is_fit:
        if held.standing is Standing.CHECKING and turn.settings.join is None:
            _ready(turn, held)
        elif held.standing is Standing.CHECKING:
            joining = turn.stand(held, Standing.JOINING)
            turn.machines[held.machine] = replace(joining, node=held.order)
        return
    if held.standing in (Standing.BOOTING, Standing.RETURNING):
        return
    why = verdict.reason or "unfit"
    if held.hardware:
        until_s = turn.now_s + turn.settings.bad_for_s
        turn.bad[held.hardware] = BadHardware(held.hardware, why, until_s)
    _over_for_the_log(turn, held, why)
    turn.stand(held, Standing.RETURNING, why)
    turn.tell(EventKind.UNFIT, held.machine, f"{held.pool}: {why}")


def _ready(turn: Turn, held: HeldMachine) -> None:
    ready = turn.stand(held, Standing.READY)
    turn.machines[held.machine] = replace(ready, ready_at_s=turn.now_s)
    turn.record(held, Happened.GRANTED)
    lead_s = turn.now_s - held.asked_at_s
    turn.tell(EventKind.GRANTED, held.machine, f"{held.pool}: ready {lead_s:.0f} s after it was asked for")


def _take_nodes(turn: Turn) -> None:
    for name, answer in turn.seen.joined.items():
        held = turn.machines.get(name)
        if held is None or held.standing is not Standing.JOINING:
            continue
        if answer.outcome is Outcome.DONE:
            _ready(turn, held)
        else:
            _not_joined(turn, held, answer.reason)
    for held in list(turn.machines.values()):
        if held.standing is Standing.JOINING and turn.settings.join is None:
            _ready(turn, held)  # the file was changed meanwhile
        elif held.node and held.standing.is_up:
            _take_node(turn, held)


def _not_joined(turn: Turn, held: HeldMachine, why: str) -> None:
    held = turn.machines[held.machine] = replace(held, failed_joins=held.failed_joins + 1)
    words = f"{held.pool}: attempt {held.failed_joins} of {_MOST_JOINS} to become a node: {why}"
    turn.tell(EventKind.NOT_JOINED, held.machine, words)
    if held.failed_joins >= _MOST_JOINS:
        turn.send_back(held, f"it did not become a node: {why}", Happened.FAILED)


def _take_node(turn: Turn, held: HeldMachine) -> None:
    """What the control plane says of a machine's node, if it says anything."""
    if held.machine in turn.seen.heard:
        is_drained = held.standing is Standing.DRAINING or held.machine in turn.seen.drained
        held = replace(held, silent_since_s=None, is_node_drained=held.is_node_drained and is_drained)
    elif held.machine in turn.seen.silent and held.silent_since_s is None:
        held = replace(held, silent_since_s=turn.now_s)
    turn.machines[held.machine] = held
    silent_s = 0.0 if held.silent_since_s is None else turn.now_s - held.silent_since_s
    if held.machine in turn.seen.silent and silent_s >= turn.settings.lost_after_s:
        _lost(turn, held, f"its node has not been heard of for {silent_s:.0f} s")
