"""How long starts take, as numbers one can promise: quantiles per path, and ratios between two paths.

There are many definitions of a sample quantile, and on the handful of cold starts anybody has patience
for they differ. Here it is always linear interpolation between order statistics (Hyndman and Fan's type 7,
NumPy's default), so that anybody can check our figures with one line of NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glowplug.types.coldstart import ColdStartRecord, Outcome
from glowplug.types.replica import StartPath

REPORTED_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class PathSummary:
    """One path's starts: ``n`` answered ones, whose seconds the figures describe, and how many failed.

    The figures are NaN when nothing was answered.
    """

    path: StartPath
    n: int
    p50_s: float
    p90_s: float
    p99_s: float
    mean_s: float
    failed: int


@dataclass(frozen=True)
class Speedup:
    """The same quantile ``q`` of two samples, and how many times the second is faster."""

    q: float
    cold_s: float
    restored_s: float
    ratio: float


def quantile(sorted_values: Sequence[float], q: float) -> float:
    """The ``q``-quantile (0 to 1) of values in ascending order, interpolated linearly.

    With ``n`` values it lies at position ``q * (n - 1)`` counted from 0. Raises ValueError for no values
    or a ``q`` outside 0 to 1.
    """
    if not sorted_values:
        raise ValueError("no values have no quantile")
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    position = q * (len(sorted_values) - 1)
    below = math.floor(position)
    above = min(below + 1, len(sorted_values) - 1)
    fraction = position - below
    low, high = sorted_values[below], sorted_values[above]
    # Clamped: in floating point the weighted sum of two neighbours can fall just outside them.
    return min(max(low * (1.0 - fraction) + high * fraction, low), high)


def answered_seconds(records: Iterable[ColdStartRecord], path: StartPath) -> list[float]:
    """Ascending ``total_s`` of the starts by ``path`` that ended in an answer."""
    return sorted(
        record.total_s
        for record in records
        if record.path is path and record.outcome is Outcome.ANSWERED and math.isfinite(record.total_s)
    )


def summarise(records: list[ColdStartRecord]) -> list[PathSummary]:
    """One summary per path that occurs, coldest first.

    A start whose caller went away is left out: its clock stopped for a reason of the caller's.
    """
    summaries = []
    for path in StartPath:
        seconds = answered_seconds(records, path)
        failed = sum(record.path is path and record.outcome is Outcome.FAILED for record in records)
        if seconds or failed:
            summaries.append(_summary(path, seconds, failed))
    return summaries


def _summary(path: StartPath, seconds: list[float], failed: int) -> PathSummary:
    if not seconds:
        return PathSummary(path, 0, math.nan, math.nan, math.nan, math.nan, failed)
    p50_s, p90_s, p99_s = (quantile(seconds, q) for q in REPORTED_QUANTILES)
    return PathSummary(path, len(seconds), p50_s, p90_s, p99_s, math.fsum(seconds) / len(seconds), failed)


def speedups(
    cold_values: Sequence[float],
    restored_values: Sequence[float],
    at: Sequence[float] = REPORTED_QUANTILES,
) -> list[Speedup]:
    """Cold over restored, quantile by quantile. Values may come in any order.

    Raises ValueError when either is empty or holds a value that is not a positive number of seconds.
    """
    for value in (*cold_values, *restored_values):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"a start takes a positive number of seconds, not {value}")
    cold, restored = sorted(cold_values), sorted(restored_values)
    result = []
    for q in at:
        cold_s, restored_s = quantile(cold, q), quantile(restored, q)
        result.append(Speedup(q, cold_s, restored_s, cold_s / restored_s))
    return result
