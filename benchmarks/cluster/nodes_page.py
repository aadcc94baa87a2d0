"""What ``bench_nodes.py`` measured, and the page of it: samples, and promises kept or missed."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import report

from glowplug.observe.quantiles import quantile

JOIN_WANTED_S = 10.0
REMOTE_WANTED_S = 0.5
OVERHEAD_WANTED_MS = 3.0
REGION_WANTED = 1.5
"""Bytes read from the region for all nodes, as a multiple of image and snapshot: "about one"."""


@dataclass
class Burst:
    """From zero to ``replicas`` at once. ``ready_s``: when half and when all were there."""

    replicas: int
    half_ready_s: float = 0.0
    all_ready_s: float = 0.0
    by_node: dict[str, int] = field(default_factory=dict)
    stored_bytes: int = 0
    region_bytes: int = 0
    by_tier: dict[str, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def region_ratio(self) -> float:
        """What came from the region, as a multiple of what lies there: the image, and its snapshot."""
        return self.region_bytes / max(self.stored_bytes, 1)


@dataclass
class Results:
    """Everything, as samples."""

    joins_s: list[float] = field(default_factory=list)
    local_s: list[float] = field(default_factory=list)
    remote_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    direct_ms: list[float] = field(default_factory=list)
    routed_ms: list[float] = field(default_factory=list)
    own_direct_ms: list[float] = field(default_factory=list)
    own_routed_ms: list[float] = field(default_factory=list)
    burst: Burst | None = None

    @property
    def later_s(self) -> float:
        """How much later a node answers that has to fetch from the zone, at p50."""
        return statistics.median(self.remote_s) - statistics.median(self.local_s)

    @property
    def overhead_ms(self) -> float:
        """What the way to another node's replica adds, at p50."""
        return statistics.median(self.routed_ms) - statistics.median(self.direct_ms)


def page(results: Results, machine: dict[str, Any], options: argparse.Namespace) -> tuple[list[str], bool]:
    """The Markdown page, and whether every promise was kept."""
    burst = results.burst
    promises = [("join, the longest", max(results.joins_s), JOIN_WANTED_S, "s")]
    if results.remote_s:
        promises += [
            ("snapshot in the zone: later than on its own node, p50", results.later_s, REMOTE_WANTED_S, "s"),
            (
                "router to another node's replica: overhead, p50",
                results.overhead_ms,
                OVERHEAD_WANTED_MS,
                "ms",
            ),
        ]
    if burst is not None:
        promises.append(("read from the region, x what lies there", burst.region_ratio, REGION_WANTED, ""))
    rows: list[tuple[object, ...]] = [
        (what, f"{found:.2f} {unit}", f"{wanted:g} {unit}", "kept" if found <= wanted else "MISSED")
        for what, found, wanted, unit in promises
    ]
    samples = [
        (name, len(values), *(f"{quantile(sorted(values), q):.3f}" for q in (0.0, 0.5, 0.9, 1.0)))
        for name, values in asdict(results).items()
        if isinstance(values, list) and values
    ]
    lines = [
        f"# {options.nodes} nodes on one machine ({options.runtime})", "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, load {machine['load_average_1min']}.", "",
        *report.table(("promise", "found", "wanted", ""), rows), "",
        *report.table(("samples", "n", "p0", "p50", "p90", "p100"), samples),
    ]  # fmt: skip
    if burst is not None:
        lines += ["", _told(burst)]
    return lines, all(found <= wanted for _, found, wanted, _ in promises)


def _told(burst: Burst) -> str:
    spread = ", ".join(f"{count} on {node}" for node, count in sorted(burst.by_node.items()))
    tiers = ", ".join(f"{size / 1e6:.0f} MB from {tier}" for tier, size in sorted(burst.by_tier.items()))
    return (
        f"0 to {burst.replicas} replicas in {burst.all_ready_s:.1f} s (half of them in "
        f"{burst.half_ready_s:.1f} s): {spread}; the region sent {burst.region_bytes / 1e6:.0f} MB of "
        f"{burst.stored_bytes / 1e6:.0f}, starts read {tiers}."
    )
