"""Policies compared over many simulated worlds: cost at equal wait, wait at equal cost, with intervals.

    .venv/bin/python benchmarks/pool/bench_policies.py --cases azure --seeds 20

Cases: real LLM requests (Azure 2023), with a fleet that has come up and one that comes up, and made-up hours
of day and night, bursts, a crowd of eight times and a ramp to four hundred times the requests, all with real
prices (Google Cloud, 2023-11-16) and a made-up market (``examples/pools``; the file says what is assumed).
For each case the table of every policy, and how each of the planner's points compares with the best of each
family of baselines: USD at a p99 wait that is at least as short, p99 wait at a cost that is no higher.

Hours of processor time: runs are kept in ``--runs`` as they end, and a second start goes on; ``--for-s`` ends
it early. ``--planner`` gives other points of the planner: fields of a demand, of the plan's ``run`` or of
pools, and ``survive=KIND:SHARE``, the share of a kind's demand that must outlive its worst failure domain.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from frontier_tables import lines_of, of_case, print_comparison, print_lines
from kept_runs import Task, kept, run_missing

from glowplug.pool.plan_file import DemandEntry
from glowplug.pool.run_settings import RunSettings
from glowplug.simulator.compare import compare
from glowplug.simulator.policies.choice import policies
from glowplug.simulator.result import RunResult
from glowplug.simulator.scenario import Scenario
from glowplug.simulator.scenario_file import (
    BufferPolicy,
    HistogramPolicy,
    KnativePolicy,
    PlannerPolicy,
    PolicyEntry,
    ScenarioFile,
    SpotHedgePolicy,
    TtlPolicy,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "pools"
CASES = ("azure", "azure_cold", "day", "bursts", "crowd", "ramp", "quiet")
BASELINES: tuple[PolicyEntry, ...] = (
    *(TtlPolicy(kind="ttl", windows_s=(window_s,)) for window_s in (60, 300, 1_200)),
    *(TtlPolicy(kind="ttl", windows_s=(window_s,), fill=True) for window_s in (60, 120, 300, 600)),
    *(BufferPolicy(kind="buffer", gpus=(gpus,)) for gpus in (1, 2, 4)),
    *(BufferPolicy(kind="buffer", gpus=(gpus,), fill=True) for gpus in (1, 2, 3, 4, 6)),
    KnativePolicy(kind="knative"),
    HistogramPolicy(kind="hybrid_histogram"),
    SpotHedgePolicy(kind="spothedge", extra_gpus=(1,)),
)
"""Each entry makes one policy."""
PLANNER = ("log level=0.8", "log level=0.9", "live level=0.8", "live level=0.9")


def case(name: str, hours: float) -> dict[str, Any]:
    """The scenario of a case, as a file would have it. Solvers get all the time they want: a plan that a slow
    machine cut short is not the planner's.
    """
    scenario = _made_up(name, hours)
    if name.startswith("azure"):
        scenario = dict(yaml.safe_load((EXAMPLES / "azure_llm.yaml").read_text()))
    if name == "azure_cold":
        # Counts from ten minutes after a start with nothing: mostly the line that this leaves.
        scenario |= {"skip_s": 1_200, "hours": 0.6, "warm_up_s": 600}
    scenario["plan"]["run"] |= {"solve_s": 120}
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


def tasks(name: str, hours: float, planner: Iterable[str], seeds: int) -> list[Task]:
    """Every policy in every world of a case: all of one world together, the planner's points last."""
    plain = _json(case(name, hours))
    found = [
        (policy.name, policy.family, plain, entry) for entry in BASELINES for policy in policies([entry])
    ]
    for words in planner:
        scenario, entry, family = point(case(name, hours), words)
        found.append((f"planner {words}", family, _json(scenario), entry))
    return [
        Task(name, policy, family, seed, scenario, entry.model_dump_json())
        for seed in range(seeds)
        for policy, family, scenario, entry in found
    ]


def _json(scenario: dict[str, Any]) -> str:
    return ScenarioFile.model_validate(scenario).model_dump_json()


def point(scenario: dict[str, Any], words: str) -> tuple[dict[str, Any], PlannerPolicy, str]:
    """Of ``log level=0.9 wait_s=2``: the scenario that is so, its policy, and the curve that it is on."""
    source, *settings = words.split()
    plan = scenario["plan"]
    for setting in settings:
        field, _, text = setting.partition("=")
        value = yaml.safe_load(text)
        if field == "survive":
            kind, _, share = text.partition(":")
            plan["survive"] = {kind: {"share": float(share)}}
        elif field in RunSettings.model_fields:
            plan["run"][field] = value
        elif field in DemandEntry.model_fields:
            for demand in plan["demand"]:
                demand[field] = value
        else:
            for pool in plan["pools"]:
                pool[field] = value
    others = [setting for setting in settings if not setting.startswith("level=")]
    policy = PlannerPolicy.model_validate({"kind": "planner", "demand_from": [source]})
    return scenario, policy, " ".join(["planner", source, *others])


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
    parser.add_argument("--planner", nargs="+", default=PLANNER, metavar="POINT", help="such as %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("build/benchmarks/policies.jsonl"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--for-s", type=float, default=86_400.0, help="begin no run after so long")
    parser.add_argument("--speed", action="store_true", help="only how fast requests go through")
    options = parser.parse_args()
    if options.speed:
        speed()
        return
    every = [
        task
        for name in options.cases
        for task in tasks(name, options.hours, options.planner, options.seeds)
        if task.name.startswith(tuple(options.policies))
    ]
    done, left = run_missing(options.runs, EXAMPLES, every, options.processes, options.for_s)
    print(f"{done} runs were made, {left} are left.")
    wanted = {task.key for task in every}
    runs = {key: one for key, one in kept(options.runs).items() if key in wanted}
    for name in options.cases:
        lines = lines_of(of_case(runs, name))
        if lines:
            found = of_case(runs, name)
            worlds = len(lines[0].usd_per_h)
            least = sum(one.least_usd / one.hours for one in found) / len(found)
            measured, hours = found[0].result.measured, found[0].hours
            print(f"\n### {name}: {measured:,} requests in {hours:.3g} h, {worlds} worlds")
            print(f"\nNobody waiting costs {least:.2f} USD/h at least.\n")
            print_lines(lines)
            print_comparison(lines)


if __name__ == "__main__":
    main()
