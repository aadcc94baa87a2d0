"""Policies compared over many simulated worlds: cost at equal wait, wait at equal cost, with intervals.

    .venv/bin/python benchmarks/pool/bench_policies.py --seeds 20 --output build/benchmarks/policies.json

Cases: an hour of real LLM requests (Azure 2023) and made-up hours of day and night, bursts, a crowd of eight
times and a ramp to four hundred times the requests, all with real prices (Google Cloud, 2023-11-16) and a
made-up market (``examples/pools``; the file says what is assumed). For each case the table of every policy,
and how the planner's points compare with the best of each family of baselines: USD at a p99 wait that is at
least as short, p99 wait at a cost that is no higher. A
baseline that cannot be had at that wait or cost is said to be none. Intervals are 95 %, of paired
differences of the same worlds.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from glowplug.simulator.compare import compare
from glowplug.simulator.policies.choice import policies
from glowplug.simulator.result import Comparison, PolicyLine, RunResult, estimate
from glowplug.simulator.scenario import Scenario
from glowplug.simulator.scenario_file import ScenarioFile

EXAMPLES = Path(__file__).parents[2] / "examples" / "pools"
CASES = ("azure", "day", "bursts", "crowd", "ramp", "quiet")
FULL: list[dict[str, Any]] = [
    {"kind": "ttl", "windows_s": [60, 300], "fill": True},
    {"kind": "buffer", "gpus": [1, 4], "fill": True},
]


def case(name: str, hours: float) -> dict[str, Any]:
    """The scenario of a case, as a file would have it. Solvers get all the time they want: a plan that a slow
    machine cut short is not the planner's.
    """
    scenario = _made_up(name, hours)
    if name == "azure":
        scenario = dict(yaml.safe_load((EXAMPLES / "azure_llm.yaml").read_text()))
    *baselines, planner = scenario["policies"]
    scenario["policies"] = [*baselines, *FULL, {**planner, "demand_from": ["log", "live"]}]
    scenario["plan"]["run"] |= {"solve_s": 120, "every_s": 15}
    return scenario


def _made_up(name: str, hours: float) -> dict[str, Any]:
    scenario = dict(yaml.safe_load((EXAMPLES / "made_up_day.yaml").read_text()))
    scenario["hours"] = hours
    scenario["starts_at"] = "2023-11-16T09:00:00"
    trace = scenario["apps"][0]["trace"]["made_up"]
    trace.pop("bursts")
    if name == "bursts":
        trace["bursts"] = {"per_h": 1.0, "length_s": 240, "factor": 4}
    elif name == "crowd":
        trace["crowd"] = {"at_h": hours / 2, "length_s": 1_800, "factor": 8}
    elif name == "ramp":
        trace |= {"per_s": 0.5, "day_swing": 0.0}
        trace["crowd"] = {"at_h": 1.25, "length_s": 3_600 * (hours - 1.5), "factor": 400, "rise_s": 120}
        scenario["apps"][0]["scaling"]["max_replicas"] = 1_000
        for pool in scenario["plan"]["pools"]:
            pool["quota"] = 200
    elif name == "quiet":
        trace |= {"per_s": 0.004, "day_swing": 0.5}
    return scenario


def equal_wait(found: Comparison, ours: PolicyLine, family: str) -> tuple[PolicyLine, str] | None:
    """The cheapest of a family whose p99 wait is at most ours, and what we save against it."""
    able = [
        line
        for line in found.policies
        if line.family == family and line.wait_p99_s.mean <= ours.wait_p99_s.mean
    ]
    if not able:
        return None
    best = min(able, key=lambda line: line.usd_per_h.mean)
    return best, paired(found, ours, best, lambda one, other: 100 * (1 - one.usd / other.usd), "%")


def equal_cost(found: Comparison, ours: PolicyLine, family: str) -> tuple[PolicyLine, str] | None:
    """The least p99 wait in a family at our cost or less, and by what it is longer than ours."""
    able = [
        line
        for line in found.policies
        if line.family == family and line.usd_per_h.mean <= ours.usd_per_h.mean
    ]
    if not able:
        return None
    best = min(able, key=lambda line: line.wait_p99_s.mean)
    return best, f"{best.wait_p99_s.mean / max(ours.wait_p99_s.mean, 1e-9):.2f}x"


def paired(found: Comparison, ours: PolicyLine, other: PolicyLine, compared: Any, unit: str) -> str:
    """Mean and interval of a comparison of two policies, world by world."""
    runs: dict[tuple[str, int], RunResult] = {(run.policy, run.seed): run for run in found.runs}
    values = [
        compared(runs[ours.policy, seed], runs[other.policy, seed])
        for seed in found.seeds
        if runs[other.policy, seed].usd > 0
    ]
    mean = estimate(values)
    spread = "" if mean.half_width is None else f" ± {mean.half_width:.1f}"
    return f"{mean.mean:.1f}{spread} {unit}"


def show(name: str, found: Comparison) -> None:
    """The tables of one case."""
    print(
        f"\n### {name}: {found.requests:,} requests in {found.hours:g} h, {len(found.seeds)} worlds; "
        f"bound {found.clairvoyant_usd_per_h.mean:.2f} USD/h, at most "
        f"{found.clairvoyant_peak_gpus.mean:.0f} GPUs; {found.wall_s:.0f} s\n"
    )
    print("| policy | USD/h | p50 wait | p99 wait | lost | over bound | utilised | peak GPUs |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for line in found.policies:
        cells = (
            _spread(line.usd_per_h.mean, line.usd_per_h.half_width, 2),
            f"{line.wait_p50_s.mean:.1f} s",
            _spread(line.wait_p99_s.mean, line.wait_p99_s.half_width, 1) + " s",
            f"{line.lost.mean:.1f}", f"{line.over_bound.mean:.2f}x", f"{line.utilisation.mean:.0%}",
            f"{line.peak_gpus.mean:.1f}",
        )  # fmt: skip
        print(f"| {line.policy} | {' | '.join(cells)} |")
    families = list(
        dict.fromkeys(line.family for line in found.policies if not line.family.startswith("planner"))
    )
    print("\n| planner at | against | cheapest at that wait | saves | best wait at that cost | its wait is |")
    print("|---|---|---|---:|---|---:|")
    for ours in (line for line in found.policies if line.family.startswith("planner")):
        for family in families:
            wait, cost = equal_wait(found, ours, family), equal_cost(found, ours, family)
            print(f"| {ours.policy} | {family} | {_cells(wait)} | {_cells(cost)} |")


def _cells(found: tuple[PolicyLine, str] | None) -> str:
    return "none | " if found is None else f"{found[0].policy} | {found[1]}"


def _spread(mean: float, half_width: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if half_width is None else f" ± {half_width:.{digits}f}")


def speeds(runs: Iterable[RunResult]) -> None:
    """Requests of trace per second of processor time, without what policies took to decide about machines."""
    found: dict[str, list[float]] = {}
    for run in runs:
        found.setdefault(run.family, []).append(run.requests / max(run.cpu_s - run.policy_cpu_s, 1e-9))
    for family, values in found.items():
        print(f"{family}: {min(values):,.0f} to {max(values):,.0f} requests/s of trace (n = {len(values)})")


def speed() -> None:
    """How fast requests go through, where there are many: an hour of a hundred a second, the autoscaler and
    reactive machines.
    """
    scenario = case("day", 1.0)
    scenario["apps"][0]["trace"]["made_up"] |= {"per_s": 100.0, "day_swing": 0.3, "history_days": 0}
    scenario["apps"][0]["scaling"] |= {"target_concurrency": 16, "max_replicas": 200}
    scenario["apps"][0] |= {"at_most_at_once": 24}
    for pool in scenario["plan"]["pools"]:
        pool["quota"] = 100
    scenario |= {"warm_up_s": 600, "look_s": 1, "policies": [{"kind": "ttl"}, {"kind": "buffer"}]}
    file = ScenarioFile.model_validate(scenario)
    found = compare(Scenario(file, EXAMPLES), policies(file.policies), [0])
    speeds(found.runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--hours", type=float, default=4.0, help="of the made-up cases")
    parser.add_argument("--policies", nargs="+", default=[""], help="only those whose name begins so")
    parser.add_argument("--output", type=Path, help="write every run there, as JSON")
    parser.add_argument("--speed", action="store_true", help="only how fast requests go through")
    options = parser.parse_args()
    if options.speed:
        speed()
        return
    every = {}
    for name in options.cases:
        file = ScenarioFile.model_validate(copy.deepcopy(case(name, options.hours)))
        chosen = [one for one in policies(file.policies) if one.name.startswith(tuple(options.policies))]
        found = compare(Scenario(file, EXAMPLES), chosen, range(options.seeds))
        show(name, found)
        speeds(found.runs)
        every[name] = found.model_dump(mode="json")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(every, indent=1))


if __name__ == "__main__":
    main()
