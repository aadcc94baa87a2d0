"""Requests: real ones from a file, or made up around a day's swing, bursts and a crowd.

Made-up requests are a Poisson process whose rate changes every second, and take as long as requests drawn
from a real log, or from a table of quantiles. That fits a log's mean rate and its durations; it does not fit
how a log's requests cluster within seconds, other than by the bursts that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glowplug.pool.forecast.series import DemandSeries, Floats, read_requests, slots_needed
from glowplug.simulator.quantile_table import draw
from glowplug.simulator.scenario_file import FromFile, MadeUp, TraceEntry
from glowplug.types.errors import InvalidInput

DAY_S = 86_400.0
MAX_REQUESTS = 20_000_000


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival (Unix s), and how long a replica works on each (s)."""

    arrivals_s: Floats
    durations_s: Floats

    def __len__(self) -> int:
        return len(self.arrivals_s)

    def between(self, start_s: float, end_s: float) -> Trace:
        """Those that arrive from ``start_s`` to before ``end_s``."""
        first, last = np.searchsorted(self.arrivals_s, (start_s, end_s))
        return Trace(self.arrivals_s[first:last], self.durations_s[first:last])

    def followed_by(self, later: Trace) -> Trace:
        """Both, one after the other."""
        return Trace(
            np.concatenate((self.arrivals_s, later.arrivals_s)),
            np.concatenate((self.durations_s, later.durations_s)),
        )

    def demand(self, step_s: float, requests_per_slot: int, until_s: float, wait_s: float) -> DemandSeries:
        """Slots that they needed until ``until_s``, if none had to wait for longer than ``wait_s``."""
        if not len(self):
            return DemandSeries(until_s, step_s, np.empty(0))
        series = slots_needed(self.arrivals_s, self.durations_s, step_s, requests_per_slot, until_s, wait_s)
        return series.until(until_s)


def trace_of(
    entry: TraceEntry, folder: Path, start_s: float, length_s: float, rng: np.random.Generator
) -> tuple[Trace, Trace]:
    """Requests before ``start_s``, which only forecasts see, and those of the ``length_s`` after it.

    Raises InvalidInput.
    """
    if entry.file is not None:
        whole = _from_file(entry.file, folder)
    else:
        assert entry.made_up is not None  # noqa: S101 - the model lets one of the two through
        whole = made_up(entry.made_up, folder, start_s, length_s, rng)
    return whole.between(-math.inf, start_s), whole.between(start_s, start_s + length_s)


def _from_file(entry: FromFile, folder: Path) -> Trace:
    starts_s, durations_s = read_requests(
        folder / entry.path, entry.prefill_tokens_per_s, entry.decode_tokens_per_s
    )
    usable = np.isfinite(starts_s) & np.isfinite(durations_s) & (durations_s >= 0)
    if not usable.all() or not len(starts_s):
        raise InvalidInput(
            f"{entry.path}: {int((~usable).sum())} of {len(starts_s)} requests have no time or a negative "
            "duration.",
            remedy="Each request has a start and a duration, in seconds.",
            file=str(entry.path),
        )
    order = np.argsort(starts_s, kind="stable")
    starts_s, durations_s = starts_s[order], durations_s[order]
    return Trace(starts_s, durations_s)


def first_arrival_s(entries: Sequence[TraceEntry], folder: Path) -> float | None:
    """Of all logs; None where everything is made up."""
    firsts = [_from_file(entry.file, folder).arrivals_s[0] for entry in entries if entry.file is not None]
    return float(min(firsts)) if firsts else None


def made_up(entry: MadeUp, folder: Path, start_s: float, length_s: float, rng: np.random.Generator) -> Trace:
    """Requests from ``history_days`` before ``start_s`` on. Raises InvalidInput."""
    first_s = math.floor(start_s - entry.history_days * DAY_S)
    seconds = first_s + np.arange(math.ceil(start_s + length_s) - first_s, dtype=np.float64)
    rates = _rates(entry, seconds, start_s, rng)
    if rates.sum() > MAX_REQUESTS:
        raise InvalidInput(
            f"{rates.sum():.3g} requests are more than this can hold in memory.",
            remedy=f"Lower per_s, history_days or hours: at most {MAX_REQUESTS} requests.",
        )
    counts = rng.poisson(rates)
    arrivals_s = np.repeat(seconds, counts) + rng.random(int(counts.sum()))
    arrivals_s.sort()
    return Trace(arrivals_s, _durations(entry, folder, len(arrivals_s), rng))


def _rates(entry: MadeUp, seconds: Floats, start_s: float, rng: np.random.Generator) -> Floats:
    """Requests per second, for each second."""
    hours = (seconds % DAY_S) / 3_600.0
    swing = 1.0 + entry.day_swing * np.cos(2 * np.pi * (hours - entry.busiest_hour) / 24.0)
    rates = entry.per_s * swing
    if entry.bursts is not None:
        bursts = entry.bursts
        count = rng.poisson(bursts.per_h * len(seconds) / 3_600.0)
        for begins_s in rng.uniform(seconds[0], seconds[-1], count):
            ends_s = begins_s + rng.exponential(bursts.length_s)
            rates[(seconds >= begins_s) & (seconds < ends_s)] *= bursts.factor
    if entry.crowd is not None:
        crowd = entry.crowd
        since_s = seconds - (start_s + 3_600.0 * crowd.at_h)
        rise = np.clip(since_s / max(crowd.rise_s, 1.0), 0.0, 1.0)
        fall = np.clip((crowd.length_s - since_s) / max(crowd.rise_s, 1.0), 0.0, 1.0)
        rates = rates * (1.0 + (crowd.factor - 1.0) * np.minimum(rise, fall))
    return np.asarray(rates)


def _durations(entry: MadeUp, folder: Path, count: int, rng: np.random.Generator) -> Floats:
    if entry.durations_like is not None:
        return rng.choice(_from_file(entry.durations_like, folder).durations_s, count)
    return draw(entry.durations_s, rng.random(count))
