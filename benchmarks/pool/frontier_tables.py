"""What runs say: each policy's cost and wait, and the planner against the best of each family of baselines.

Worlds are paired: policies met the same requests, refusals and outages. Intervals are 95 %: Student's t of
means and of savings, the bootstrap over worlds of ratios of mean waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from kept_runs import KeptRun
from numpy.typing import NDArray

from glowplug.simulator.result import Estimate, estimate

Floats = NDArray[np.float64]
PLANNER = "planner"
_RESAMPLES = 4_000
_LEAST_WAIT_S = 0.1
"""Shorter waits are as good as none: a ratio of two of them says nothing."""


@dataclass(frozen=True, eq=False)
class Line:
    """One policy: figures by world, worlds in order of their seeds."""

    policy: str
    family: str
    usd_per_h: Floats
    wait_p99_s: Floats
    over_bound: Floats
    over_least: Floats
    """Paid, over the bound when nobody waits."""
    lost: Floats
    retried: Floats
    utilised: Floats
    peak_gpus: Floats
    cpu_s: Floats

    @property
    def is_planner(self) -> bool:
        """Ours."""
        return self.family.startswith(PLANNER)


def lines_of(runs: Sequence[KeptRun]) -> list[Line]:
    """Of one case, in the order in which they were run. Only worlds that every policy was run in count."""
    by_policy: dict[str, dict[int, KeptRun]] = {}
    for one in runs:
        by_policy.setdefault(one.result.policy, {})[one.result.seed] = one
    seeds = sorted(set.intersection(*(set(found) for found in by_policy.values())))
    return [_line([found[seed] for seed in seeds]) for found in by_policy.values()] if seeds else []


def _line(runs: Sequence[KeptRun]) -> Line:
    results = [one.result for one in runs]
    return Line(
        results[0].policy,
        results[0].family,
        np.array([one.usd_per_h for one in results]),
        np.array([one.wait_p99_s for one in results]),
        np.array([one.over_bound for one in results]),
        np.array([one.result.usd / one.least_usd for one in runs]),
        np.array([float(one.lost) for one in results]),
        np.array([float(one.retried) for one in results]),
        np.array([one.economics.utilisation or 0.0 for one in results]),
        np.array([float(one.peak_gpus) for one in results]),
        np.array([one.cpu_s for one in results]),
    )


def print_lines(lines: Sequence[Line]) -> None:
    """The table of every policy."""
    columns = (
        "USD/h", "p99 wait", "paid over bound", "over nobody waiting", "lost", "serving", "peak GPUs",
        "processor time",
    )  # fmt: skip
    print(f"| policy | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for line in lines:
        cells = (
            spread(estimate(line.usd_per_h.tolist()), 2),
            spread(estimate(line.wait_p99_s.tolist()), 1) + " s",
            f"{line.over_bound.mean():.2f}x", f"{line.over_least.mean():.2f}x", f"{line.lost.mean():.1f}",
            f"{line.utilised.mean():.0%}", f"{line.peak_gpus.mean():.1f}", f"{line.cpu_s.mean():.1f} s",
        )  # fmt: skip
        print(f"| {line.policy} | {' | '.join(cells)} |")


def print_comparison(lines: Sequence[Line]) -> None:
    """Each point of the planner against the best of each family at its wait and at its cost."""
    columns = "cheapest that waits no longer | saves | shortest wait for no more | waits longer"
    print(f"\n| planner at | against | {columns} |\n|---|---|---|---:|---|---:|")
    families = dict.fromkeys(line.family for line in lines if not line.is_planner)
    for ours in (line for line in lines if line.is_planner):
        for family in (*families, "any"):
            others = [line for line in lines if not line.is_planner and family in (line.family, "any")]
            cells = (*_at_equal_wait(ours, others), *_at_equal_cost(ours, others))
            print(f"| {ours.policy} | {family} | {' | '.join(cells)} |")


def _at_equal_wait(ours: Line, others: Sequence[Line]) -> tuple[str, str]:
    able = [line for line in others if line.wait_p99_s.mean() <= max(ours.wait_p99_s.mean(), _LEAST_WAIT_S)]
    if not able:
        return "none", ""
    best = min(able, key=lambda line: float(line.usd_per_h.mean()))
    saved = estimate((100 * (1 - ours.usd_per_h / best.usd_per_h)).tolist())
    return best.policy, f"{spread(saved, 1)} %"


def _at_equal_cost(ours: Line, others: Sequence[Line]) -> tuple[str, str]:
    able = [line for line in others if line.usd_per_h.mean() <= ours.usd_per_h.mean()]
    if not able:
        return "none", ""
    best = min(able, key=lambda line: float(line.wait_p99_s.mean()))
    low, ratio, high = _ratio(best.wait_p99_s, ours.wait_p99_s)
    return best.policy, f"{ratio:.1f}x ({low:.1f} to {high:.1f})"


def _ratio(longer_s: Floats, shorter_s: Floats) -> tuple[float, float, float]:
    """Of the means, and its interval."""
    picks = np.random.default_rng(0).integers(0, len(longer_s), (_RESAMPLES, len(longer_s)))

    def ratio(longer: Floats, shorter: Floats) -> Floats:
        return np.asarray(np.maximum(longer, _LEAST_WAIT_S) / np.maximum(shorter, _LEAST_WAIT_S))

    ratios = ratio(longer_s[picks].mean(axis=1), shorter_s[picks].mean(axis=1))
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(ratio(longer_s.mean(), shorter_s.mean())), float(high)


def spread(value: Estimate, digits: int) -> str:
    """Mean ± half of the interval."""
    half = "" if value.half_width is None else f" ± {value.half_width:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


def of_case(runs: Mapping[tuple[str, str, int], KeptRun], case: str) -> list[KeptRun]:
    """Its runs."""
    return [one for one in runs.values() if one.case == case]
