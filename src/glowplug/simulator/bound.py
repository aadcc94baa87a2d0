"""What the same answers would have cost at least: a bound that no policy can be below.

Given when every request began, somebody who had known everything, whose replicas start in no time and whose
machines come, split and go as they please, would have paid for just the replicas that have requests, each
full but the last, on the cheapest GPUs of that moment, as far as quotas reach. Whatever a policy paid for
those very waits is at least that: its replicas held the same requests, no fuller, on GPUs that it rented.

``work_usd`` lets even replicas be split: then it matters when requests begin only as far as prices move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowplug.simulator.quantile_table import Floats
from glowplug.simulator.scenario import Pool, World


@dataclass(frozen=True)
class Bound:
    """USD, and the most GPUs that had requests at once, by kind."""

    usd: float
    work_usd: float
    peak_gpus: dict[str, int]


def bound(world: World, started_s: Sequence[Floats]) -> Bound:
    """For requests that began at ``started_s``, one array for each app; NaN: never."""
    usd = work_usd = 0.0
    peaks = {}
    for kind in sorted({app.entry.gpu for app in world.apps}):
        times_s, gpus, work = _needs(world, kind, started_s)
        pools = [pool for pool in world.pools if pool.gpu == kind]
        usd += _cheapest_usd(times_s, gpus, pools)
        work_usd += _cheapest_usd(times_s, work, pools)
        peaks[kind] = round(gpus.max(initial=0.0))
    return Bound(usd, work_usd, peaks)


def clairvoyant(world: World) -> Bound:
    """The same when nobody waits."""
    return bound(world, [app.trace.arrivals_s for app in world.apps])


def _needs(world: World, kind: str, started_s: Sequence[Floats]) -> tuple[Floats, Floats, Floats]:
    """Moments, and GPUs of a kind that are needed from each until the next: whole replicas, and parts."""
    changes_s = [t for pool in world.pools if pool.gpu == kind for t in pool.prices.times_s]
    edges = np.array([world.counts_from_s, world.end_s, *changes_s])
    times, whole, parts = [edges], [np.zeros(len(edges))], [np.zeros(len(edges))]
    for app, begins in zip(world.apps, started_s, strict=True):
        if app.entry.gpu != kind:
            continue
        began = np.isfinite(begins)
        starts, ends = begins[began], begins[began] + app.trace.durations_s[began]
        at_s = np.concatenate((starts, ends))
        step = np.concatenate((np.ones(len(starts)), -np.ones(len(starts))))
        # What ends at a moment makes room for what begins then.
        order = np.lexsort((step, at_s))
        running = np.cumsum(step[order])
        replicas = np.ceil(running / app.limit - 1e-9) * app.entry.gpus
        times.append(at_s[order])
        whole.append(np.diff(replicas, prepend=0.0))
        parts.append(step[order] / app.limit * app.entry.gpus)
    at_s = np.concatenate(times)
    order = np.argsort(at_s, kind="stable")
    clipped = np.clip(at_s[order], world.counts_from_s, world.end_s)
    gpus = np.cumsum(np.concatenate(whole)[order])
    work = np.cumsum(np.concatenate(parts)[order])
    return clipped, np.maximum(np.rint(gpus), 0.0), np.maximum(work, 0.0)


def _cheapest_usd(times_s: Floats, gpus: Floats, pools: Sequence[Pool]) -> float:
    """What these GPUs cost, each span on the cheapest at its beginning."""
    changes_s = sorted({t for pool in pools for t in pool.prices.times_s})
    segment = np.searchsorted(changes_s, times_s[:-1], side="right") - 1
    hours = np.diff(times_s) / 3_600.0
    total = 0.0
    for place in range(-1, len(changes_s)):
        inside = segment == place
        if not inside.any():
            continue
        now_s = changes_s[max(place, 0)]
        offers = sorted((pool.prices.at(now_s) / pool.gpus, pool.entry.quota * pool.gpus) for pool in pools)
        reach = np.cumsum([0.0, *(count for _, count in offers)])
        usd_per_h = np.cumsum([0.0, *(usd * count for usd, count in offers)])
        total += float(np.interp(gpus[:-1][inside], reach, usd_per_h) @ hours[inside])
    return total
