"""Which machines leave, and when: never on one plan's word, and the least valuable first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from glowplug.pool.identity import PoolId
from glowplug.pool.planner.decision import EventKind
from glowplug.pool.planner.state import HeldMachine, Standing, Surplus
from glowplug.pool.planner.turn import Turn


def drain_what_is_unwanted(turn: Turn, unwanted: Mapping[PoolId, int]) -> None:
    """So many machines of each pool are not wanted, those that drain already included.

    A machine that is wanted again stops draining at once. A new one starts to drain when at least as many
    were unwanted in every step for ``release_after_s``.
    """
    rentals_s = {entry.id: entry.min_rental_s for entry in turn.file.pools}
    pools = {held.pool for held in turn.machines.values() if held.standing.is_up}
    for pool in sorted(pools):
        ranked = sorted(
            (held for held in turn.machines_of(pool) if held.standing.is_up),
            key=lambda held: _rank(turn, held),
        )
        draining = [held for held in ranked if held.standing is Standing.DRAINING]
        if pool not in rentals_s:
            _drain(
                turn,
                [held for held in ranked if held not in draining],
                "its pool is not in the file any more",
            )
            continue
        count = unwanted.get(pool, 0)
        for held in draining[count:]:
            turn.stand(held, Standing.READY)
            turn.tell(EventKind.KEPT, held.machine, f"{pool}: it is wanted again")
        matured = _matured(turn, pool, count)
        free = [
            held
            for held in ranked
            if held.standing is Standing.READY and _is_rental_over(turn, held, rentals_s[pool])
        ]
        _drain(turn, free[: max(matured - len(draining), 0)], "no plan wants it")
    still = {str(pool) for pool in pools}
    turn.surplus = {name: surplus for name, surplus in turn.surplus.items() if name in still}


def send_back_what_is_drained(turn: Turn) -> None:
    """Machines whose work ended, or had its time, go; none in the step in which it began to drain."""
    for held in list(turn.machines.values()):
        if held.standing is not Standing.DRAINING or held.since_s >= turn.now_s:
            continue
        drained_s = turn.now_s - held.since_s
        if turn.seen.worth.get(held.machine, 0.0) <= 0:
            turn.send_back(held, held.why)
        elif drained_s >= turn.settings.drain_s:
            turn.send_back(held, f"{held.why}; its work did not end in {drained_s:.0f} s")


def _matured(turn: Turn, pool: PoolId, count: int) -> int:
    """How many were unwanted all the time, once that was long enough; the watch begins anew then."""
    name = str(pool)
    if count <= 0:
        turn.surplus.pop(name, None)
        return 0
    surplus = turn.surplus.get(name, Surplus(turn.now_s, count))
    surplus = replace(surplus, fewest=min(surplus.fewest, count))
    is_over = turn.now_s - surplus.since_s >= turn.settings.release_after_s
    turn.surplus[name] = Surplus(turn.now_s, count) if is_over else surplus
    return surplus.fewest if is_over else 0


def _drain(turn: Turn, leaving: list[HeldMachine], why: str) -> None:
    for held in leaving:
        turn.stand(replace(held, is_node_drained=bool(held.node)), Standing.DRAINING, why)
        turn.tell(EventKind.DRAINING, held.machine, f"{held.pool}: {why}")


def _is_rental_over(turn: Turn, held: HeldMachine, min_rental_s: float) -> bool:
    return held.ready_at_s is None or turn.now_s - held.ready_at_s >= min_rental_s


def _rank(turn: Turn, held: HeldMachine) -> tuple[bool, float, float, str]:
    """The least valuable first: what drains already, what does least, what came last (its caches are the
    coldest).
    """
    worth = turn.seen.worth.get(held.machine, 0.0)
    return held.standing is not Standing.DRAINING, worth, -(held.ready_at_s or 0.0), held.machine
