"""How often bounds of demand held, out of sample: each made from nothing but what was known at its moment.

    .venv/bin/python benchmarks/pool/bench_forecast.py

The second half of an hour of real LLM requests (Azure 2023, ``examples/pools``; short lead times, since the
hour is), and of three weeks of made-up demand: day and night, with bursts, growing threefold. Prints a table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glowplug.pool.forecast.backtest import backtest
from glowplug.pool.forecast.demand import Forecaster
from glowplug.pool.forecast.series import DemandSeries, read_requests, slots_needed

TRACE = Path(__file__).parents[2] / "examples" / "pools" / "azure_conv.csv.gz"
LEVELS = (0.95, 0.99)
STEP_S = 60.0
DAYS = 21


def real(step_s: float) -> DemandSeries:
    """Azure's conversations, four requests to a slot."""
    return slots_needed(*read_requests(TRACE, prefill_tokens_per_s=5_000, decode_tokens_per_s=40), step_s, 4)


def made_up(seed: int, burst: float, growth: float) -> DemandSeries:
    """Poisson demand around a day's swing; one step in a hundred is a burst."""
    rng = np.random.default_rng(seed)
    steps = int(DAYS * 86_400 / STEP_S)
    swing = 20 + 15 * np.sin(2 * np.pi * np.arange(steps) * STEP_S / 86_400)
    bursts = np.where(rng.random(steps) < 0.01, burst, 1.0)
    return DemandSeries(
        0.0, STEP_S, rng.poisson(swing * bursts * np.linspace(1, growth, steps)).astype(float)
    )


def main() -> None:
    cases = [
        ("Azure conversations", real(1.0), (60.0, 120.0)),
        ("day and night", made_up(1, 1.0, 1.0), (600.0, 1_800.0)),
        ("with bursts", made_up(2, 4.0, 1.0), (600.0, 1_800.0)),
        ("growing threefold", made_up(3, 1.0, 3.0), (600.0, 1_800.0)),
    ]
    print("| demand | lead time | promised | held | n |\n|---|---:|---:|---:|---:|")
    for name, series, lead_times_s in cases:
        for lead_time_s in lead_times_s:
            for level in LEVELS:
                found = backtest(Forecaster(level, lead_time_s), series)
                print(f"| {name} | {lead_time_s:.0f} s | {level:.0%} | {found.covered:.1%} | {found.tried} |")


if __name__ == "__main__":
    main()
