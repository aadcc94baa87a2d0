"""An hour in the life of a node: ten apps, Poisson arrivals, and somebody who kills at random.

    .venv/bin/python benchmarks/snapshot/soak.py --minutes 60

Writes soak.json, soak.md and soak-cdf.svg; exit code 1 if an answer was wrong or missing, or something
is left behind.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))

import report
from tests.e2e import leftovers
from tests.e2e.clients import Clients
from tests.e2e.conftest import Apps
from tests.e2e.image_root import make_python_root
from tests.e2e.live import Live, resident_bytes
from tests.faults.random_kills import Killer, unclean
from tests.faults.victims import KINDS, Machine

from glowplug.observe.plot import plot_cdf
from glowplug.observe.quantiles import summarise
from glowplug.types.coldstart import ColdStartRecord

CALLERS_PER_APP = 2
MEAN_PAUSE_S = 4.0
SAMPLE_EVERY_S = 10.0
MIB = 1 << 20
WATCHED = ("agent", "control", "worker")
APPS: dict[str, dict[str, Any]] = {
    "gvisor": {"runtime": "runsc"},
    "runc": {"runtime": "runc"},
    "gvisor-cold": {"runtime": "runsc", "snapshot": False},
    "runc-cold": {"runtime": "runc", "snapshot": False},
    "gvisor-img": {"runtime": "runsc", "image": "root:1"},
    "runc-img": {"runtime": "runc", "image": "root:1"},
    "gvisor-two": {"runtime": "runsc", "max_replicas": 2, "target_concurrency": 1},
    "runc-two": {"runtime": "runc", "max_replicas": 2, "target_concurrency": 1},
    "gvisor-warm": {"runtime": "runsc", "min_replicas": 1},
    "runc-warm": {"runtime": "runc", "min_replicas": 1},
}


def soak(minutes: float, seed: int) -> tuple[dict[str, Any], list[ColdStartRecord]]:
    """Run it; what happened, and the record of every start."""
    rng, pauses = random.Random(seed), random.Random(seed + 1)
    memory: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="glowplug-soak-", dir="/var/tmp") as work, Live() as live:
        apps = Apps(live, Path(work) / "apps")
        apps.folder.mkdir()
        live.cli("image", "import", str(make_python_root(Path(work) / "root")), "root:1")
        deployed = [
            apps.deploy(word=word, **{"scaledown_window_s": 1, "parked_window_s": 3, **kind})
            for word, kind in APPS.items()
        ]
        paths = [app.path + "/who" for app in deployed]
        killer = Killer(live.state, rng)
        callers = CALLERS_PER_APP * len(paths)
        end = time.monotonic() + minutes * 60
        over = threading.Event()
        watcher = threading.Thread(target=_watch_memory, args=(live, memory, over))
        watcher.start()
        try:
            with Clients(live.url, paths, callers, lambda: pauses.expovariate(1 / MEAN_PAUSE_S)) as clients:
                while time.monotonic() < end:
                    killer.kill_one()
                    time.sleep(rng.expovariate(1 / SAMPLE_EVERY_S))
        finally:
            over.set()
            watcher.join()
        records = [record for app in deployed for record in live.cold_starts(app.name)]
        live.remove(apps.names)
        told = clients.told
        result = {
            "machine": report.machine(),
            "minutes": minutes,
            "answers": len(told.answers),
            "wrong": told.wrong,
            "unanswered": told.unanswered,
            "refusals": told.refusals,
            "unclean_refusals": unclean(told.refusals),
            "broken_connections": len(told.broken_connections),
            "killed": dict(killer.killed),
            "starts": [asdict(summary) for summary in summarise(records)],
            "memory_mib": memory,
            "left": leftovers.of_apps(live.state, apps.names),
        }
    return result, records


def _watch_memory(live: Live, memory: list[dict[str, float]], over: threading.Event) -> None:
    """Resident memory of our processes, every few seconds."""
    started = time.monotonic()
    while not over.wait(SAMPLE_EVERY_S):
        machine = Machine.look(live.state.root)
        sample = {"at_s": round(time.monotonic() - started, 1)}
        for kind in WATCHED:
            for process in KINDS[kind](machine, []):
                try:
                    sample[kind] = round(resident_bytes(process.pid) / MIB, 1)
                except (OSError, AssertionError):  # it was killed meanwhile
                    continue
        memory.append(sample)


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    starts = [
        (s["path"], s["n"], *(f"{s[figure]:.2f} s" for figure in ("p50_s", "p90_s", "p99_s")), s["failed"])
        for s in result["starts"]
    ]
    most = {
        kind: max((sample.get(kind, 0.0) for sample in result["memory_mib"]), default=0.0) for kind in WATCHED
    }
    return [
        f"# Soak: {len(APPS)} apps, {result['minutes']:g} minutes",
        "",
        f"{sum(result['killed'].values())} kills: {result['killed']}.",
        "",
        f"- right answers {result['answers'] - len(result['wrong'])}, wrong {len(result['wrong'])}, "
        f"unanswered {len(result['unanswered'])}",
        f"- refused {len(result['refusals'])}, of these not a typed error {len(result['unclean_refusals'])}",
        f"- connections broken while the router was down, and repeated: {result['broken_connections']}",
        f"- left behind: {result['left'] or 'nothing'}",
        f"- most memory, MiB: {most}",
        "",
        *report.table(("path", "n", "p50", "p90", "p99", "failed"), starts),
    ]


def main() -> int:
    """Exit code 1 if anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    result, records = soak(arguments.minutes, arguments.seed)
    plot_cdf(records, arguments.output / "soak-cdf.svg", f"{len(APPS)} apps under random kills")
    report.write(arguments.output, "soak", result, page(result))
    bad = ("wrong", "unanswered", "unclean_refusals", "left")
    return 1 if any(result[name] for name in bad) else 0


if __name__ == "__main__":
    sys.exit(main())
