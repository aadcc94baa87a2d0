"""What a run gives, and what runs of many policies and seeds say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field
from scipy.stats import t as student

from glowplug.pool.economics.meter import Economics

_CONFIDENCE = 0.95


class RunResult(BaseModel):
    """One policy in one world. Seconds of waiting are until a replica works on the request; of a request that
    was lost, how long it could wait.

    ``bound_usd``: what these very waits would have cost somebody who knew everything (``bound.py``);
    ``work_usd``: what the work alone costs, however long it waits. ``cpu_s`` is the processor time it took,
    ``policy_cpu_s`` of it for decisions about machines: the only figures that differ from run to run.
    """

    policy: str
    family: str
    seed: int
    requests: int
    measured: int
    """Requests that count: those after the warm-up. All figures of waiting and money are of that time."""
    answered: int
    lost: int
    retried: int
    wait_p50_s: float
    wait_p90_s: float
    wait_p99_s: float
    wait_max_s: float
    wait_mean_s: float
    usd: float
    usd_per_h: float
    bound_usd: float
    work_usd: float
    over_bound: float
    """``usd`` over ``bound_usd``; 1 where both are nothing."""
    economics: Economics
    wanted_gpu_s: float
    """Of the replicas that the autoscaler wanted: what is rented beyond it is buffer, or did not shrink."""
    starts: dict[str, int]
    place_waits_s: list[float] = Field(exclude=True)
    """Of every replica that was started, how long it had waited for a machine; too many to be printed."""
    machines: dict[str, int]
    peak_gpus: int
    needed_peak_gpus: int
    """The most GPUs that had requests at once, under this policy."""
    notes: dict[str, int] = {}
    cpu_s: float
    policy_cpu_s: float

    def outcome(self) -> dict[str, object]:
        """Everything but this machine's time: the same for the same seed."""
        return self.model_dump(exclude={"cpu_s", "policy_cpu_s"})


class Estimate(BaseModel):
    """A mean over seeds, and half the width of its 95 % interval (Student's t); None with one seed."""

    mean: float
    half_width: float | None


class PolicyLine(BaseModel):
    """One policy over all seeds."""

    policy: str
    family: str
    runs: int
    usd_per_h: Estimate
    wait_p50_s: Estimate
    wait_p99_s: Estimate
    wait_mean_s: Estimate
    lost: Estimate
    over_bound: Estimate
    utilisation: Estimate
    peak_gpus: Estimate
    saved_usd_per_h: Estimate
    """Against keeping the most replicas ever needed always on."""


class Comparison(BaseModel):
    """All of it. ``clairvoyant_usd_per_h``, ``clairvoyant_peak_gpus``: the bound when nobody waits, and the
    most GPUs that had requests at once then.
    """

    version: Literal[1] = 1
    hours: float
    seeds: list[int]
    requests: int
    """That count, in the world of the first seed."""
    clairvoyant_usd_per_h: Estimate
    clairvoyant_peak_gpus: Estimate
    policies: list[PolicyLine]
    runs: list[RunResult]
    wall_s: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values have no mean")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean=mean, half_width=None)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(student.ppf(0.5 + _CONFIDENCE / 2, len(values) - 1))
    return Estimate(mean=mean, half_width=reach * spread)


def line(runs: Sequence[RunResult], hours: float) -> PolicyLine:
    """Of one policy's runs."""

    def of(value: Callable[[RunResult], float]) -> Estimate:
        return estimate([value(run) for run in runs])

    return PolicyLine(
        policy=runs[0].policy,
        family=runs[0].family,
        runs=len(runs),
        usd_per_h=of(lambda run: run.usd_per_h),
        wait_p50_s=of(lambda run: run.wait_p50_s),
        wait_p99_s=of(lambda run: run.wait_p99_s),
        wait_mean_s=of(lambda run: run.wait_mean_s),
        lost=of(lambda run: run.lost),
        over_bound=of(lambda run: run.over_bound),
        utilisation=of(lambda run: run.economics.utilisation or 0.0),
        peak_gpus=of(lambda run: run.peak_gpus),
        saved_usd_per_h=of(lambda run: run.economics.saved_usd / hours),
    )
