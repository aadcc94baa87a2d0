"""Small worlds for tests: everything that is random can be switched off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glowplug.simulator.policies.choice import Policy, policies
from glowplug.simulator.result import RunResult
from glowplug.simulator.run import run
from glowplug.simulator.scenario import Scenario
from glowplug.simulator.scenario_file import ScenarioFile

START_S = 1_700_000_000
LEAD_S, READY_S = 100.0, 10.0
POOL: dict[str, Any] = {
    "cloud": "gcp", "region": "r", "machine": "m", "purchase": "on_demand", "gpu": "L4", "gpus": 1,
    "price_usd_per_h": 3.6, "quota": 20,
}  # fmt: skip
SPOT: dict[str, Any] = {**POOL, "purchase": "spot", "price_usd_per_h": 1.2}
STARTS = {path: {0.5: READY_S} for path in ("cold", "region", "ssd")}
EVERY_POLICY: tuple[dict[str, Any], ...] = (
    {"kind": "ttl", "windows_s": [60, 300]},
    {"kind": "buffer", "gpus": [1, 3]},
    {"kind": "knative", "gpus": [0, 1]},
    {"kind": "hybrid_histogram"},
    {"kind": "spothedge", "extra_gpus": [1]},
    {"kind": "planner", "levels": [0.9], "demand_from": ["log", "live"]},
)


def requests(folder: Path, times: Sequence[tuple[float, float]], name: str) -> str:
    """A log of requests: when after the start, and how long."""
    lines = [f"{START_S + at_s},{duration_s}" for at_s, duration_s in times]
    (folder / name).write_text("\n".join(["at,duration_s", *lines]) + "\n")
    return name


def app(trace: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "chat", "gpu": "L4", "trace": trace, "starts": STARTS,
        "scaling": {"target_concurrency": 1, "max_replicas": 20}, **changes,
    }  # fmt: skip


def logged(folder: Path, times: Sequence[tuple[float, float]], **changes: Any) -> dict[str, Any]:
    """An app with these requests."""
    log = requests(folder, times, f"{changes.get('name', 'chat')}.csv")
    return app({"file": {"path": log}}, **changes)


def made_up(per_s: float = 0.3, **changes: Any) -> dict[str, Any]:
    """Requests that are made up."""
    return {"made_up": {"per_s": per_s, "durations_s": {0: 1.0, 1: 9.0}, **changes}}


def scenario(folder: Path, apps: Sequence[dict[str, Any]], **changes: Any) -> Scenario:
    return Scenario(ScenarioFile.model_validate(scenario_data(apps, **changes)), folder)


def scenario_data(apps: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A scenario file, before it is checked."""
    pools = changes.pop("pools", [POOL])
    plan = {
        "version": 1, "pools": pools, "demand": [{"gpu": "L4", "expected_peak": 2}],
        "horizon": {"periods": 12, "first_s": 30, "length_s": 3_600},
        "run": {"every_s": 30, "health_check": False, "release_after_s": 60},
    }  # fmt: skip
    return {
        "version": 1, "starts_at": "2023-11-14T22:13:20", "hours": 0.5, "plan": plan, "apps": list(apps),
        "market": {"default": {"lead_time_s": {0.5: LEAD_S}}}, "policies": list(EVERY_POLICY), **changes,
    }  # fmt: skip


def policy(kind: str, **numbers: Any) -> Policy:
    """The only one of its kind."""
    entry = {"kind": kind, **numbers}
    (found,) = policies(ScenarioFile.model_validate(_MINIMAL | {"policies": [entry]}).policies)
    return found


def outcome(folder: Path, apps: Sequence[dict[str, Any]], chosen: Policy, **changes: Any) -> RunResult:
    """Of one policy in the world of seed 0."""
    return run(scenario(folder, apps, **changes).world(0), chosen)


_MINIMAL: dict[str, Any] = {
    "version": 1, "hours": 1, "apps": [app(made_up())],
    "plan": {"version": 1, "pools": [POOL], "demand": [{"gpu": "L4"}]},
}  # fmt: skip
