"""The log's records as machines' lives, which is what estimates are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from glowplug.pool.identity import PoolId
from glowplug.pool.market.supply_log import Happened, SupplyRecord


@dataclass(frozen=True)
class Life:
    """One requested machine until now. ``lead_time_s``: until the grant, or until now while it is awaited."""

    pool: PoolId
    gpu: str
    asked_at_s: float
    lead_time_s: float
    is_granted: bool
    is_failed: bool
    up_s: float
    is_interrupted: bool
    is_up: bool

    @property
    def is_awaited(self) -> bool:
        """Asked for, neither granted nor refused."""
        return not (self.is_granted or self.is_failed)


@dataclass(frozen=True)
class History:
    """Every life, oldest request first. ``contradictions``: events that cannot be, left out."""

    lives: tuple[Life, ...]
    contradictions: int


def lives(records: Iterable[SupplyRecord], now_s: float) -> History:
    """Put each machine's events together.

    Events come twice, out of order or from a clock that jumped; of each kind the first counts, a span that is
    negative counts as zero, what lies in the future as now. A request that was given back before it was
    granted was withdrawn by ourselves: it says nothing and is left out. Events of a machine that was never
    asked for, or a grant after a failure, are contradictions.
    """
    events: dict[str, dict[Happened, SupplyRecord]] = {}
    for record in records:
        events.setdefault(record.request, {}).setdefault(record.happened, record)
    found, contradictions = [], 0
    for of_one in events.values():
        asked = of_one.get(Happened.ASKED)
        if asked is None or (Happened.GRANTED in of_one and Happened.FAILED in of_one):
            contradictions += len(of_one)
            continue
        if Happened.GIVEN_BACK in of_one and not {Happened.GRANTED, Happened.FAILED} & set(of_one):
            continue
        found.append(_life(asked, of_one, now_s))
    found.sort(key=lambda life: life.asked_at_s)
    return History(tuple(found), contradictions)


def _life(asked: SupplyRecord, events: dict[Happened, SupplyRecord], now_s: float) -> Life:
    granted, interrupted = events.get(Happened.GRANTED), events.get(Happened.INTERRUPTED)
    failed, ended = events.get(Happened.FAILED), interrupted or events.get(Happened.GIVEN_BACK)
    settled = granted or failed
    settled_s = min(settled.at_s, now_s) if settled else now_s
    ended_s = min(ended.at_s, now_s) if ended else now_s
    return Life(
        asked.pool,
        asked.gpu,
        asked.at_s,
        max(settled_s - asked.at_s, 0.0),
        granted is not None,
        failed is not None,
        max(ended_s - settled_s, 0.0) if granted else 0.0,
        granted is not None and interrupted is not None,
        granted is not None and ended is None,
    )


def kin(pool: PoolId, gpu: str) -> tuple[tuple[str, ...], ...]:
    """Groups of ever less alike pools that this one is in, the narrowest (itself) first, all of them last."""
    return (
        ("pool", str(pool)),
        ("machine", pool.cloud, pool.machine, pool.purchase.value),
        ("kind", gpu, pool.purchase.value),
        ("purchase", pool.purchase.value),
    )
