"""A restore on a node that has nothing, from a store 2 ms away, against one from a node's own disk.

    .venv/bin/python benchmarks/snapshot/bench_remote.py --runs 5 --runtime runc

One node captures a PyTorch server, brings the snapshot to a region (a folder) and restores it from its own
disk: with the files in page cache, and with the page cache dropped. Then, as often, a fresh node with an
empty state directory, whose region is that folder behind HTTP with latency and a limit of bytes per second
and connection, is asked for the same server: index, mount and daemon are new each time. Clocks run from the
request to its whole answer. Budget: p50 of the empty node at most 2 x p50 from its own disk, page
cache dropped (exit code 1 when missed). Writes snapshot-remote-RUNTIME.json and .md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coldstart"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "image"))

import report
from bench_torch import TorchApp
from delayed_store import MEGABYTES_PER_S, DelayedStore, serving
from live_session import LiveSession
from native_tools import NativeTools

from glowplug.types.coldstart import ColdStartRecord
from glowplug.types.replica import SnapshotView

ROOT = Path(__file__).resolve().parents[2]
WANTED_FACTOR = 2.0
Samples = dict[str, list[dict[str, Any]]]
WAYS = {"warm": "own disk, in page cache", "dropped": "own disk, page cache dropped", "remote": "empty node"}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds: the local ones, then the remote ones."""
    machine = report.machine()
    tools = NativeTools(ROOT / "build" / "native")
    samples: Samples = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="glowplug-region-", dir="/var/tmp") as region:
        snapshot = _local(arguments, region, samples)
        with serving(tools, Path(region), arguments.latency_ms, arguments.megabytes_per_s) as store:
            for _ in range(arguments.runs):
                samples["remote"].append(_remote(arguments, store, Path(region)))
    quantiles = {
        way: report.quantiles(sorted(sample["answered_s"] for sample in found))
        for way, found in samples.items()
    }
    return {
        "machine": machine,
        "runtime": arguments.runtime,
        "latency_ms": arguments.latency_ms,
        "megabytes_per_s": arguments.megabytes_per_s,
        "snapshot_bytes": snapshot.bytes,
        "samples": samples,
        "quantiles_s": quantiles,
        "factor_p50": quantiles["remote"]["p50"] / quantiles["dropped"]["p50"],
        "factor_p50_warm": quantiles["remote"]["p50"] / quantiles["warm"]["p50"],
    }


def _local(arguments: argparse.Namespace, region: str, samples: Samples) -> SnapshotView:
    with _session(arguments, region) as session:
        app = TorchApp(session, arguments.megabytes, arguments.runtime)
        app.ask()
        snapshot = session.wait_for_snapshot(app.name)
        session.glowplug("snapshot", "push", snapshot.id)
        app.ask_restored()
        for _ in range(arguments.runs):
            samples["warm"].append(_sample(app.ask_restored()))
            session.wait_until_zero(app.name)
            _drop_page_cache()
            samples["dropped"].append(_sample(app.ask_restored()))
        return snapshot


def _remote(arguments: argparse.Namespace, store: DelayedStore, region: Path) -> dict[str, Any]:
    with _session(arguments, store.url) as session:
        app = TorchApp(session, arguments.megabytes, arguments.runtime)
        _drop_page_cache()
        for pack in region.rglob("*"):  # the store's disk is not this machine's
            if pack.is_file():
                pack.read_bytes()
        before = store.counts()
        sample = _sample(app.ask_restored())
        asked = store.counts().since(before)
        return {**sample, "requests": asked.requests, "fetched_bytes": asked.bytes}


def _drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def _session(arguments: argparse.Namespace, region: str) -> LiveSession:
    return LiveSession(
        {
            "GLOWPLUG_TORCH_MB": str(arguments.megabytes),
            "GLOWPLUG_REGION": region,
            "GLOWPLUG_ZONE": "",
            "GLOWPLUG_SHARE_SNAPSHOTS": "pull",
        }
    )


def _sample(measured: tuple[float, ColdStartRecord]) -> dict[str, Any]:
    answered_s, record = measured
    print(f"  {answered_s:.3f} s  {dict(record.bytes_by_tier)}  {_stages(record)}", flush=True)
    return {"answered_s": answered_s, "record": record.model_dump(mode="json")}


def _stages(record: ColdStartRecord) -> str:
    return " ".join(f"{stage.value} {seconds:.2f}" for stage, seconds in record.stages_s.items())


def page(result: dict[str, Any]) -> list[str]:
    """The Markdown page."""
    machine, remote = result["machine"], result["samples"]["remote"]
    fetched_mb = sorted(sample["fetched_bytes"] for sample in remote)[len(remote) // 2] / 1e6
    requests = sorted(sample["requests"] for sample in remote)[len(remote) // 2]
    rows = [
        (name, *(f"{result['quantiles_s'][way][name]:.3f} s" for way in WAYS))
        for name in ("p0", "p25", "p50", "p75", "p100")
    ]
    verdict = "met" if result["factor_p50"] <= WANTED_FACTOR else "MISSED"
    return [
        f"# A snapshot of {result['snapshot_bytes'] / 1e6:.0f} MB restored on a node that has nothing",
        "",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}, {result['runtime']}, "
        f"load {machine['load_average_1min']}; store {result['latency_ms']:g} ms away, "
        f"{result['megabytes_per_s']:g} MB/s a connection; {len(remote)} runs each.",
        "",
        *report.table(("quantile", *WAYS.values()), rows),
        "",
        f"The empty node fetched {fetched_mb:.0f} MB in {requests} requests (medians). At p50 it takes "
        f"{result['factor_p50']:.2f} x its own disk with the page cache dropped (budget {WANTED_FACTOR:g} x: "
        f"{verdict}), {result['factor_p50_warm']:.2f} x its own page cache.",
    ]


def main() -> int:
    """Exit code 1 when the budget is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=100, help="weights the server holds")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--runtime", choices=("runsc", "runc"), default="runsc")
    parser.add_argument("--latency-ms", type=float, default=2.0)
    parser.add_argument("--megabytes-per-s", type=float, default=MEGABYTES_PER_S, help="of each connection")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    arguments = parser.parse_args()
    result = measure(arguments)
    report.write(arguments.output, f"snapshot-remote-{arguments.runtime}", result, page(result))
    return 0 if result["factor_p50"] <= WANTED_FACTOR else 1


if __name__ == "__main__":
    sys.exit(main())
