"""How long the program of pools takes to build and to solve: cold, and again after ten seconds of change.

    .venv/bin/python benchmarks/pool/bench_program.py --pools 50 200 --runs 9

Fleets are made up, the same for each seed: six GPU kinds, machines of 1, 2, 4 and 8 GPUs, four atoms of lead
time each, half of them spot, demand for 1, 4 and 8 GPUs at once that swings within the horizon. Between two
warm solutions a tenth of the prices moves by up to 2 %, every demand by up to 3 %, and time goes on by ten
seconds. ``build`` is from the problem to sparse arrays; a solution includes telling the solver. Prints a
table; ``--output`` writes all samples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from glowplug.pool.identity import PoolId, Purchase
from glowplug.pool.program.assembly import Assembled, assemble
from glowplug.pool.program.glop import GlopSolver
from glowplug.pool.program.grid import Grid
from glowplug.pool.program.highs import HighsSolver
from glowplug.pool.program.integers import solve_whole
from glowplug.pool.program.linear import LinearSolver
from glowplug.pool.program.problem import Atom, Demand, Pool, Problem

KINDS = 6
SIZES = (1, 4, 8)
TIMEOUT_S = 240.0
_Result = TypeVar("_Result")


def fleet(pools: int, periods: int, seed: int) -> Problem:
    """A problem of the given size; demand grows with the number of pools."""
    rng = np.random.default_rng(seed)
    grid = Grid.stretching(periods, horizon_s=225.0 * periods)
    made = [_pool(index, rng, periods) for index in range(pools)]
    return Problem(grid, tuple(made), demands(grid, pools, 0.0))


def _pool(index: int, rng: np.random.Generator, periods: int) -> Pool:
    kind, gpus, is_spot = index % KINDS, int(rng.choice([1, 2, 4, 8])), bool(rng.random() < 0.5)
    purchase = Purchase.SPOT if is_spot else Purchase.ON_DEMAND
    price = (1 + kind) * gpus * (0.4 if is_spot else 1.0) * rng.uniform(0.8, 1.3)
    median_s = rng.uniform(300, 1_200)
    return Pool(
        PoolId(f"cloud-{index % 4}", f"region-{index % 10}", f"machine-{index}", purchase), f"kind-{kind}",
        gpus, np.full(periods, price),
        lead_time=tuple(Atom(median_s * at, 0.25 * rng.uniform(0.8, 1.0)) for at in (0.6, 0.9, 1.1, 1.6)),
        interruptions_per_h=0.05 if is_spot else 0.001, up=int(rng.integers(0, 3)),
        quota=int(rng.integers(2, 20)), supply=8, supply_per_h=4.0, min_rental_s=60.0,
        request_usd=0.1 * gpus, release_usd=0.01, interruption_usd=0.5,
    )  # fmt: skip


def demands(grid: Grid, pools: int, after_s: float) -> tuple[Demand, ...]:
    """Demand as it is seen ``after_s`` later."""
    hours = (grid.starts_s + after_s) / 3_600
    return tuple(
        Demand(
            f"kind-{kind}", size, tolerated=0.02,
            slots=np.ceil(base * pools / 200 * (1.2 + np.sin(2 * np.pi * (hours / 6 + kind / KINDS)))),
        )
        for kind in range(KINDS)
        for size, base in zip(SIZES, (20, 3, 1), strict=True)
    )  # fmt: skip


def later(problem: Problem, pools: int, run: int) -> Problem:
    """The same ten seconds on."""
    rng = np.random.default_rng(1_000 + run)
    moved = tuple(
        replace(
            pool,
            price_usd_per_h=pool.price_usd_per_h * (rng.uniform(0.98, 1.02) if rng.random() < 0.1 else 1.0),
        )
        for pool in problem.pools
    )
    changed = tuple(
        replace(demand, slots=np.ceil(demand.slots * rng.uniform(0.97, 1.03)))
        for demand in demands(problem.grid, pools, 10.0 * (run + 1))
    )
    return replace(problem, pools=moved, demands=changed)


class Watch:
    """Times calls by the clock, or by the processor time of this process, whose solvers use one thread."""

    def __init__(self, uses_cpu_time: bool) -> None:
        self._now_s = time.process_time if uses_cpu_time else time.perf_counter

    def timed(self, call: Callable[[], _Result]) -> tuple[float, _Result]:
        """Seconds it took, and what it gave."""
        began_s = self._now_s()
        result = call()
        return self._now_s() - began_s, result


def measure(watch: Watch, pools: int, periods: int, runs: int, solvers: list[LinearSolver]) -> dict[str, Any]:
    """Every sample of one size, seconds."""
    problem = fleet(pools, periods, 1)
    assembled = assemble(problem)
    samples: dict[str, Any] = {
        "pools": pools, "periods": periods, "rows": assembled.program.shape[0],
        "columns": assembled.program.shape[1], "coefficients": int(assembled.program.matrix.nnz), "build": [],
    }  # fmt: skip
    for solver in solvers:
        cold_s, _ = watch.timed(partial(solver.solve, assembled.program, TIMEOUT_S))
        samples[f"{solver.name} cold"] = [cold_s]
        samples[f"{solver.name} warm"] = []
    for run in range(runs):
        problem = later(problem, pools, run)
        build_s, now = watch.timed(partial(assemble, problem))
        samples["build"].append(build_s)
        objectives = []
        for solver in solvers:
            warm_s, solution = watch.timed(partial(solver.solve, now.program, TIMEOUT_S))
            assert solution.is_warm
            samples[f"{solver.name} warm"].append(warm_s)
            objectives.append(solution.objective)
        assert np.allclose(objectives, objectives[0], rtol=1e-6), objectives
    return samples


def measure_whole(watch: Watch, assembled: Assembled, timeout_s: float) -> dict[str, float]:
    """A plan in whole machines: seconds and gap."""
    took_s, whole = watch.timed(partial(solve_whole, assembled, timeout_s))
    return {"seconds": took_s, "gap": whole.gap}


def show(samples: dict[str, Any]) -> None:
    """One row for each thing that was measured: median, least and most, milliseconds."""
    print(
        f"\n{samples['pools']} pools x {samples['periods']} periods: {samples['rows']} rows, "
        f"{samples['columns']} columns, {samples['coefficients']} coefficients"
    )
    for name, values in samples.items():
        if isinstance(values, list):
            middle, least, most = (1e3 * f(values) for f in (statistics.median, min, max))
            print(f"| {name} | {middle:,.0f} ms | {least:,.0f}-{most:,.0f} | {len(values)} |")
    if "whole" in samples:
        whole = samples["whole"]
        print(f"| whole machines | {1e3 * whole['seconds']:,.0f} ms | gap {whole['gap']:.2%} | 1 |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pools", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--periods", type=int, default=96)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--solvers", nargs="+", choices=("glop", "highs"), default=["glop", "highs"])
    parser.add_argument(
        "--whole-timeout", type=float, default=0.0, help="also in whole machines, so many seconds"
    )
    parser.add_argument("--output", type=Path, help="write all samples there, as JSON")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, where others work, too")
    options = parser.parse_args()
    watch = Watch(options.cpu_time)
    kinds = {"glop": GlopSolver, "highs": HighsSolver}
    found = []
    for pools in options.pools:
        samples = measure(
            watch, pools, options.periods, options.runs, [kinds[name]() for name in options.solvers]
        )
        if options.whole_timeout:
            samples["whole"] = measure_whole(
                watch, assemble(fleet(pools, options.periods, 1)), options.whole_timeout
            )
        show(samples)
        found.append(samples)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
