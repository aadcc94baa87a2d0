"""Eight copies of one snapshot at once: how long until the last one answers, and how much memory they take.

    .venv/bin/python benchmarks/snapshot/bench_copies.py --runs 9

A PyTorch server (`make engine` installs PyTorch) with 300 MB of weights, in both runtimes, image in the page
cache and caches dropped; every copy is asked, and must answer as the first replica did. Then memory, the
proportional share (PSS) of a copy: at once, and after the kernel has merged equal pages.

The bound is what the disk takes to read the image once for each copy, as all of them need all of it; what one
reading takes, which is all that copies cost that share the page cache, stands beside it. Budgets: the last
answer within twice the bound, caches dropped; half of the share saved, in runc, whose pages can be merged
(exit code 1 when one is missed). Writes copies.json and copies.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from storage import sequential_read_bytes_per_s
from tests.e2e.engines import ENGINE
from tests.node.live_agent import LiveAgent
from torch_memory import SERVER

RUNTIMES = ("runsc", "runc")
MERGING_RUNTIMES = ("runc",)
WANTED_FACTOR, WANTED_SAVED = 2.0, 0.5
MEMORY_BYTES = 1 << 30
SETTLED_DEADLINE_S = 120.0


class Copies:
    """The copies of one server in one runtime."""

    def __init__(self, agent: LiveAgent, runtime: str, count: int, megabytes: int) -> None:
        self._agent = agent
        self._count = count
        self._server = agent.server(
            *("python3", "-c", SERVER.format(megabytes=megabytes)),
            name=f"copies-{runtime}",
            runtime=runtime,
            trusted=runtime == "runc",
            snapshot={},
            resources={"memory_bytes": MEMORY_BYTES},
        )
        first = agent.start(self._server)
        self._answer = agent.ask(first)
        self.snapshot = agent.captured(first)
        assert self.snapshot["status"] == "good", self.snapshot
        agent.stop(first["id"], grace_s=0)

    def start(self) -> tuple[float, list[dict[str, Any]]]:
        """Start all at once; seconds until the last one answers, and their views."""
        ids = [self._agent.begin(self._server) for _ in range(self._count)]
        views = [self._agent.settled(one) for one in ids]
        assert all(view["path"] == "cpu_snapshot" and view["state"] == "ready" for view in views), views
        answers = [self._agent.ask(view) for view in views]
        assert answers == [self._answer] * self._count, answers
        return max(view["ready_at"] for view in views) - min(view["created_at"] for view in views), views

    def stop(self, views: list[dict[str, Any]]) -> None:
        """Stop them."""
        for view in views:
            self._agent.stop(view["id"], grace_s=0)

    def share_bytes(self, views: list[dict[str, Any]]) -> float:
        """The mean proportional share of a copy."""
        return statistics.mean(self._agent.view(view["id"])["proportional_bytes"] for view in views)

    def settled_share_bytes(self, views: list[dict[str, Any]]) -> float:
        """The share once it no longer falls: readings are up to five seconds old."""
        last = self.share_bytes(views)
        deadline_s = time.monotonic() + SETTLED_DEADLINE_S
        unchanged = 0
        while unchanged < 2 and time.monotonic() < deadline_s:
            time.sleep(8.0)
            now = self.share_bytes(views)
            unchanged = unchanged + 1 if now > 0.99 * last else 0
            last = now
        return last


def drop_caches() -> None:
    """Write out and forget what files hold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(runs: int, count: int, megabytes: int) -> dict[str, Any]:
    """Everything, the two runtimes in turns."""
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="gpb-", dir="/var/tmp") as made:
        agent = LiveAgent(Path(made), venv=ENGINE)
        try:
            cases = {runtime: Copies(agent, runtime, count, megabytes) for runtime in RUNTIMES}
            packs = (path for path in agent.state.chunks.rglob("*") if path.is_file())
            rate = sequential_read_bytes_per_s(max(packs, key=lambda path: path.stat().st_size))
            found: dict[str, dict[str, Any]] = {
                runtime: {"bytes": case.snapshot["bytes"], "warm_s": [], "dropped_s": []}
                for runtime, case in cases.items()
            }
            for _ in range(runs):
                for runtime, case in cases.items():
                    for caches in ("warm_s", "dropped_s"):
                        if caches == "dropped_s":
                            drop_caches()
                        seconds, views = case.start()
                        found[runtime][caches].append(seconds)
                        case.stop(views)
            for runtime, case in cases.items():
                _, views = case.start()
                found[runtime]["share_bytes"] = case.share_bytes(views)
                found[runtime]["merged_share_bytes"] = case.settled_share_bytes(views)
                case.stop(views)
        finally:
            agent.close()
    for case in found.values():
        case["one_reading_s"] = case["bytes"] / rate
        case["bound_s"] = count * case["one_reading_s"]
        case["factor"] = statistics.median(case["dropped_s"]) / case["bound_s"]
        case["saved"] = 1 - case["merged_share_bytes"] / case["share_bytes"]
    return {"machine": machine, "runs": runs, "copies": count, "storage_bytes_per_s": rate, "runtimes": found}


def misses(result: dict[str, Any]) -> list[str]:
    """The budgets that were not kept."""
    found = []
    for runtime, case in result["runtimes"].items():
        if case["factor"] > WANTED_FACTOR:
            found.append(f"{runtime}: the last answer after {case['factor']:.2f} x the bound")
        if runtime in MERGING_RUNTIMES and case["saved"] < WANTED_SAVED:
            found.append(f"{runtime}: {case['saved']:.0%} saved")
    return found


def page(result: dict[str, Any]) -> list[str]:
    """What people read."""
    rows = []
    for runtime, case in result["runtimes"].items():
        rows.append(
            [
                runtime,
                f"{case['bytes'] / 1e6:.0f} MB",
                report.spread(case["warm_s"], 2),
                report.spread(case["dropped_s"], 2),
                f"{case['bound_s']:.2f}",
                f"{case['factor']:.2f}",
                f"{case['one_reading_s']:.2f}",
                f"{case['share_bytes'] / 1e6:.0f} MB",
                f"{case['merged_share_bytes'] / 1e6:.0f} MB",
                f"{case['saved']:.0%}",
            ]
        )
    header = [
        *("", "image", "last of all, warm", "caches dropped", "its bound", "factor", "one reading"),
        *("share", "merged", "saved"),
    ]
    return [
        f"{result['copies']} copies at once: {result['machine']}, {result['runs']} runs, "
        f"median (least-most) in s. The bound: {result['copies']} readings of the image at "
        f"{result['storage_bytes_per_s'] / 1e9:.2f} GB/s. Budgets: factor {WANTED_FACTOR:g}; "
        f"{WANTED_SAVED:.0%} saved in {', '.join(MERGING_RUNTIMES)}. Missed: {misses(result) or 'none'}.",
        "",
        *report.table(header, rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    result = measure(options.runs, options.copies, options.megabytes)
    report.write(options.output, "copies", result, page(result))
    return int(bool(misses(result)))


if __name__ == "__main__":
    raise SystemExit(main())
