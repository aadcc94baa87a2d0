"""From a line of the scenario file to policies that can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from glowplug.control.autoscaler import Autoscaler
from glowplug.simulator.apps import Scaler
from glowplug.simulator.policies.histogram import HistogramScaler
from glowplug.simulator.policies.knative import KnativeScaler
from glowplug.simulator.policies.planned import PlannedMachines
from glowplug.simulator.policies.reactive import ReactiveMachines
from glowplug.simulator.policies.rule import MachineRule
from glowplug.simulator.policies.spothedge import SpotHedgeMachines
from glowplug.simulator.scenario import World, policy_plan
from glowplug.simulator.scenario_file import (
    BufferPolicy,
    DemandSource,
    HistogramPolicy,
    KnativePolicy,
    PlannerPolicy,
    PolicyEntry,
    SpotHedgePolicy,
    TtlPolicy,
)
from glowplug.types.clock import Clock
from glowplug.types.spec import Scaling

MakeScaler = Callable[[Scaling, Clock], Scaler]
MakeRule = Callable[[World], MachineRule]


@dataclass(frozen=True)
class Policy:
    """``family``: policies that differ in one number only, and make one curve. ``always_looks``: see AppRun.
    ``fills``: replicas are aimed to have all the requests that they take.
    """

    name: str
    family: str
    make_scaler: MakeScaler
    make_rule: MakeRule
    always_looks: bool = False
    fills: bool = False


def policies(entries: Sequence[PolicyEntry]) -> list[Policy]:
    """All of them, in the file's order."""
    return [policy for entry in entries for policy in _policies(entry)]


def _policies(entry: PolicyEntry) -> Iterator[Policy]:
    match entry:
        case TtlPolicy():
            for window_s in entry.windows_s:
                yield _maybe_full(
                    Policy(f"ttl {window_s:g} s", "ttl", _with_window(window_s), _reactive(0)), entry.fill
                )
        case BufferPolicy():
            for gpus in entry.gpus:
                yield _maybe_full(Policy(f"buffer {gpus}", "buffer", Autoscaler, _reactive(gpus)), entry.fill)
        case KnativePolicy():
            for gpus in entry.gpus:
                name = f"knative, buffer {gpus}" if gpus else "knative"
                yield Policy(name, "knative", _knative(entry.utilisation), _reactive(gpus))
        case HistogramPolicy():
            yield Policy(
                "hybrid histogram", "hybrid histogram", HistogramScaler, _reactive(0), always_looks=True
            )
        case SpotHedgePolicy():
            for gpus in entry.extra_gpus:
                yield Policy(f"spothedge +{gpus}", "spothedge", Autoscaler, _spothedge(gpus))
        case PlannerPolicy():
            for source in entry.demand_from:
                for level in entry.levels or (None,):
                    name = f"planner {source}" if level is None else f"planner {source} {level:g}"
                    yield Policy(name, f"planner {source}", Autoscaler, _planned(level, source))


def _maybe_full(policy: Policy, fills: bool) -> Policy:
    if not fills:
        return policy
    return replace(policy, name=f"{policy.name}, full", family=f"{policy.family}, full", fills=True)


def _with_window(window_s: float) -> MakeScaler:
    def make(scaling: Scaling, clock: Clock) -> Scaler:
        return Autoscaler(scaling.model_copy(update={"scaledown_window_s": window_s}), clock)

    return make


def _knative(utilisation: float) -> MakeScaler:
    def make(scaling: Scaling, clock: Clock) -> Scaler:
        return KnativeScaler(scaling, clock, utilisation)

    return make


def _reactive(buffer_gpus: int) -> MakeRule:
    def make(world: World) -> MachineRule:
        return ReactiveMachines([app.entry.gpu for app in world.apps], buffer_gpus, world.file.step_s)

    return make


def _spothedge(extra_gpus: int) -> MakeRule:
    def make(world: World) -> MachineRule:
        return SpotHedgeMachines([app.entry.gpu for app in world.apps], extra_gpus, world.file.step_s)

    return make


def _planned(level: float | None, source: DemandSource) -> MakeRule:
    def make(world: World) -> MachineRule:
        return PlannedMachines(policy_plan(world.file.plan, level), world.prices, world.seed, source)

    return make
