"""Runs the cases of a comparison in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from glowplug.observe.quantiles import quantile

Sample = dict[str, float]
"""What one run gave, by name: ``seconds`` and whatever else the case tells."""

Samples = dict[str, list[Sample]]
"""All runs of a comparison, by case."""


def in_turns(title: str, cases: Mapping[str, Callable[[], Sample]], runs: int) -> Samples:
    """Run each case ``runs`` times; each round begins with another one."""
    names = list(cases)
    found: Samples = {name: [] for name in names}
    for number in range(runs):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started_s = time.monotonic()
            sample = cases[name]()
            found[name].append(sample)
            told = " ".join(f"{key}={value:.4g}" for key, value in sample.items())
            print(
                f"{title} {number + 1}/{runs} {name}: {told} ({time.monotonic() - started_s:.1f} s)",
                file=sys.stderr,
            )
    return found


def values(samples: Sequence[Sample], key: str = "seconds") -> list[float]:
    """One number of each run, those that have it."""
    return [sample[key] for sample in samples if key in sample]


def median(samples: Sequence[Sample], key: str = "seconds") -> float:
    """The middle run's."""
    return statistics.median(values(samples, key))


def summary(samples: Samples) -> dict[str, dict[str, dict[str, float]]]:
    """Quantiles of every number of every case."""
    told: dict[str, dict[str, dict[str, float]]] = {}
    for case, runs in samples.items():
        keys = dict.fromkeys(key for run in runs for key in run)
        told[case] = {key: _quantiles(values(runs, key)) for key in keys}
    return told


def _quantiles(numbers: Sequence[float]) -> dict[str, float]:
    ordered = sorted(numbers)
    points = {f"p{q * 100:g}": round(quantile(ordered, q), 6) for q in (0.0, 0.25, 0.5, 0.75, 1.0)}
    return {"n": len(ordered), **points}
