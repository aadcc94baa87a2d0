"""Every policy in the worlds of several seeds, and what comes of it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from glowplug.simulator.bound import clairvoyant
from glowplug.simulator.policies.choice import Policy
from glowplug.simulator.result import Comparison, RunResult, estimate, line
from glowplug.simulator.run import run
from glowplug.simulator.scenario import Scenario

Report = Callable[[str, float | None], None]
"""Told what happens now and how far it is (0 to 1)."""


def compare(
    scenario: Scenario,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    report: Report = lambda text, share: None,
) -> Comparison:
    """Run all of them, one after the other. Raises InvalidInput."""
    began_s = perf_counter()
    runs: dict[str, list[RunResult]] = {policy.name: [] for policy in policies}
    least, hours = [], 0.0
    total = len(seeds) * len(policies)
    for place, seed in enumerate(seeds):
        world = scenario.world(seed)
        hours = world.hours
        least.append(clairvoyant(world))
        for index, policy in enumerate(policies):
            done = place * len(policies) + index
            text = f"{policy.name}, seed {seed}"

            def tell(share: float, done: int = done, text: str = text) -> None:
                report(text, (done + share) / total)

            runs[policy.name].append(run(world, policy, tell))
    return Comparison(
        hours=hours,
        seeds=list(seeds),
        requests=next(iter(runs.values()))[0].measured,
        clairvoyant_usd_per_h=estimate([bound.usd / hours for bound in least]),
        clairvoyant_peak_gpus=estimate([float(sum(bound.peak_gpus.values())) for bound in least]),
        policies=[line(found, hours) for found in runs.values()],
        runs=[one for found in runs.values() for one in found],
        wall_s=perf_counter() - began_s,
    )
