"""What servers cost: replica-seconds that the control plane watched, at the prices of a pool file.

Costs are of what replicas occupied. What else a machine is paid for (the buffer, the minimum rental) is no
server's, and not in them. A replica with a GPU is charged for it while it serves, starts or stands idle; one
that is parked, or has none, costs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from glowplug.types.usage import UsageSpan

if TYPE_CHECKING:
    from glowplug.pool.market.prices import PriceBook
    from glowplug.pool.plan_file import PlanFile


class CostLine(BaseModel):
    """One server. Replica-seconds; ``usd`` and what follows are None where no price is known or needed.

    ``utilisation``: serving over serving, starting and idle. ``saved_usd``: against one replica that is
    always on, over the whole time.
    """

    app: str
    server: str
    gpu: str
    gpus: int
    serving_s: float
    starting_s: float
    idle_s: float
    parked_s: float
    utilisation: float | None
    usd: float | None
    saved_usd: float | None


class CostReport(BaseModel):
    """All servers, over ``period_s`` seconds; ``usd_per_gpu_h``: the prices that were used."""

    version: Literal[1] = 1
    period_s: float
    usd_per_gpu_h: dict[str, float]
    servers: list[CostLine]
    total_usd: float


def usd_per_gpu_h(file: PlanFile, book: PriceBook, now_s: float) -> dict[str, float]:
    """For each GPU kind of a pool file the price of the cheapest pool, as known now."""
    found: dict[str, float] = {}
    for pool in file.pools:
        quote = book.as_of(pool.id, now_s)
        if pool.price_usd_per_h is not None and pool.gpu and pool.gpus:
            gpu, usd = pool.gpu, pool.price_usd_per_h / pool.gpus
        elif quote is not None:
            gpu, usd = quote.offer.gpu, quote.offer.usd_per_h / quote.offer.gpus
        else:
            continue
        found[gpu] = min(usd, found.get(gpu, math.inf))
    return found


def costs(spans: Iterable[UsageSpan], prices: Mapping[str, float], period_s: float) -> CostReport:
    """Add spans up, server by server."""
    servers: dict[tuple[str, str, str, int], list[UsageSpan]] = {}
    for span in spans:
        servers.setdefault((span.app, span.server, span.gpu, span.gpus), []).append(span)
    lines = [_line(*name, found, prices, period_s) for name, found in sorted(servers.items())]
    return CostReport(
        period_s=period_s,
        usd_per_gpu_h=dict(prices),
        servers=lines,
        total_usd=math.fsum(line.usd or 0.0 for line in lines),
    )


def _line(
    app: str,
    server: str,
    gpu: str,
    gpus: int,
    spans: list[UsageSpan],
    prices: Mapping[str, float],
    period_s: float,
) -> CostLine:
    serving_s = math.fsum(span.serving_s for span in spans)
    starting_s = math.fsum(span.starting_s for span in spans)
    idle_s = math.fsum(span.idle_s for span in spans)
    occupied_s = serving_s + starting_s + idle_s
    usd_per_h = prices[gpu] * gpus if gpus and gpu in prices else None
    usd = None if usd_per_h is None else occupied_s / 3_600.0 * usd_per_h
    return CostLine(
        app=app, server=server, gpu=gpu, gpus=gpus,
        serving_s=serving_s, starting_s=starting_s, idle_s=idle_s,
        parked_s=math.fsum(span.parked_s for span in spans),
        utilisation=serving_s / occupied_s if occupied_s > 0 else None,
        usd=usd,
        saved_usd=None if usd is None or usd_per_h is None else period_s / 3_600.0 * usd_per_h - usd,
    )  # fmt: skip
