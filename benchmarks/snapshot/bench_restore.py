"""A restore by the node agent against the runtime's own restore command, for both runtimes, in turns.

    .venv/bin/python benchmarks/snapshot/bench_restore.py --runs 9

A server of 300 MB, from the order to start a copy until its canary was answered and every byte verified; the
bare command gets the same image, bundle and mounts, and its clock stops at the first answer. Then the same
with caches dropped, against what reading the image from this disk takes; and how long a server stands still
while it is captured, with no free memory but clean page cache before. Writes restore.json.

Budgets, medians: 1.15 x the bare command, warm; 1.3 x bytes / rate of the disk + 0.3 s, caches dropped;
1.5 s/GB frozen (exit code 1 when one is missed).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import report
from bare_restore import BareRestore
from bare_runc import BareRunc
from machine import fill_memory
from storage import sequential_read_bytes_per_s
from tests.node.cases import captured
from tests.node.live_agent import LiveAgent
from tests.runtime.sandboxes import eventually

MEMORY_BYTES = 1 << 30
SERVER = """
import http.server, os
block = os.urandom({megabytes} << 20)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *words): pass

http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
RUNTIMES = ("runsc", "runc")
WARM_FACTOR, DROPPED_FACTOR, DROPPED_FIXED_S, FROZEN_S_PER_GB = 1.15, 1.3, 0.3, 1.5
UNASKED_S = 1.0
CAPTURE_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36


class Case:
    """One runtime: its server, its snapshot, and the bare command."""

    def __init__(self, agent: LiveAgent, runtime: str, megabytes: int, work: Path) -> None:
        self.agent = agent
        self.server = agent.server(
            *("python3", "-c", SERVER.format(megabytes=megabytes)),
            name=f"restored-{runtime}",
            runtime=runtime,
            snapshot={},
            resources={"memory_bytes": MEMORY_BYTES},
        )
        self.snapshot = captured(agent, self.server)
        self.frozen_s_per_gb: list[float] = []
        self.image = agent.state.lazy / "mounts" / self.snapshot["content"]
        self.samples: dict[str, list[float]] = {"unmeasured": [], "agent": [], "bare": [], "dropped": []}
        self.stages: list[dict[str, float]] = []
        copy = agent.start(self.server)
        folder = agent.state.replicas / copy["id"]
        self.bare = (
            BareRestore(folder, self.image, work)
            if runtime == "runsc"
            else BareRunc(folder, agent.state.runc_root / "sandboxes" / copy["id"], self.image, work)
        )
        agent.stop(copy["id"], grace_s=0)

    def capture(self) -> None:
        """Capture it again, by hand."""
        fill_memory()
        request = self.agent.request(self.server)
        assert self.agent.client.post("/v1/snapshots", json=request).status_code == 202
        before = self.snapshot["created_at"]
        self.snapshot = eventually(lambda: self._captured_after(before), "another snapshot", CAPTURE_S)
        self.frozen_s_per_gb.append(self.snapshot["frozen_s"] / (self.snapshot["bytes"] / 1e9))

    def _captured_after(self, created_at: float) -> dict[str, Any] | None:
        """The snapshot, if it is another one and good."""
        view = self.agent.captured({"server": self.server["name"]})
        return view if view["status"] == "good" and view["created_at"] > created_at else None

    def by_agent(self, what: str) -> None:
        """Restore one copy by the agent."""
        replica_id = self.agent.begin(self.server)
        time.sleep(UNASKED_S)  # the control plane does not ask how far it is: it is told
        view = self.agent.settled(replica_id)
        assert view["path"] == "cpu_snapshot", view
        self.samples[what].append(view["ready_at"] - view["created_at"])
        if what == "agent":
            self.stages.append(view["stages_s"])
        self.agent.stop(view["id"], grace_s=0)

    def by_command(self, index: int) -> None:
        """Restore one copy by the runtime's own command."""
        self.samples["bare"].append(self.bare.run(index, 8000, "GET", "/", None, b"here").answered_s)

    def result(self, bytes_per_s: float) -> dict[str, Any]:
        """Samples, and how they compare with the budgets."""
        del self.samples["unmeasured"]
        agent, bare, dropped = (statistics.median(samples) for samples in self.samples.values())
        limit_s = DROPPED_FACTOR * self.snapshot["bytes"] / bytes_per_s + DROPPED_FIXED_S
        return {
            "bytes": self.snapshot["bytes"],
            "frozen_s_per_gb": self.frozen_s_per_gb,
            "samples_s": self.samples,
            "stages_s": self.stages,
            "warm_factor": agent / bare,
            "dropped_s": dropped,
            "dropped_limit_s": limit_s,
        }


def measure(runs: int, megabytes: int) -> dict[str, Any]:
    """Everything, the two runtimes in turns."""
    machine = report.machine()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # sandboxes of bare runs are reaped here
    with tempfile.TemporaryDirectory(prefix="gpb-", dir="/var/tmp") as made:
        folder = Path(made)
        (folder / "state").mkdir()
        agent = LiveAgent(folder / "state")
        try:
            cases = {}
            for runtime in RUNTIMES:
                (folder / runtime).mkdir()
                cases[runtime] = Case(agent, runtime, megabytes, folder / runtime)
            rate = sequential_read_bytes_per_s(_largest_pack(agent))
            for case in cases.values():
                case.by_agent("unmeasured")  # from here on the image is in the page cache
            for index in range(runs):
                for case in cases.values():
                    case.by_agent("agent")
                    case.by_command(index)
            for _ in range(runs):
                for case in cases.values():
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                    case.by_agent("dropped")
            for _ in range(runs):
                for case in cases.values():
                    case.capture()
            found = {runtime: case.result(rate) for runtime, case in cases.items()}
        finally:
            agent.close()
            for case in cases.values():
                case.bare.close()
    return {"machine": machine, "runs": runs, "storage_bytes_per_s": rate, "runtimes": found}


def _largest_pack(agent: LiveAgent) -> Path:
    files = (path for path in agent.state.chunks.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def misses(result: dict[str, Any]) -> list[str]:
    """The budgets that were not kept."""
    found = []
    for runtime, case in result["runtimes"].items():
        frozen_s_per_gb = statistics.median(case["frozen_s_per_gb"])
        if case["warm_factor"] > WARM_FACTOR:
            found.append(f"{runtime}: {case['warm_factor']:.2f} x the bare command")
        if case["dropped_s"] > case["dropped_limit_s"]:
            found.append(f"{runtime}: {case['dropped_s']:.2f} s of {case['dropped_limit_s']:.2f} s")
        if frozen_s_per_gb > FROZEN_S_PER_GB:
            found.append(f"{runtime}: {frozen_s_per_gb:.2f} s/GB frozen")
    return found


def page(result: dict[str, Any]) -> list[str]:
    """What people read."""
    rows = []
    for runtime, case in result["runtimes"].items():
        cells = [report.spread(case["samples_s"][what]) for what in ("agent", "bare", "dropped")]
        rows.append(
            [
                runtime,
                *cells[:2],
                f"{case['warm_factor']:.2f}",
                cells[2],
                f"{case['dropped_limit_s']:.2f}",
                report.spread(case["frozen_s_per_gb"]),
            ]
        )
    header = [
        "",
        "agent, warm",
        "bare command",
        "factor",
        "agent, caches dropped",
        "its bound",
        "frozen s/GB",
    ]
    return [
        f"Restores: {result['machine']}, {result['runs']} runs, median (least-most) in s; the disk reads "
        f"{result['storage_bytes_per_s'] / 1e9:.2f} GB/s. Budgets: factor {WARM_FACTOR}; "
        f"{DROPPED_FACTOR} x bytes / rate + {DROPPED_FIXED_S} s; {FROZEN_S_PER_GB} s/GB frozen. "
        f"Missed: {misses(result) or 'none'}.",
        "",
        *report.table(header, rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    result = measure(options.runs, options.megabytes)
    report.write(options.output, "restore", result, page(result))
    return int(bool(misses(result)))


if __name__ == "__main__":
    raise SystemExit(main())
